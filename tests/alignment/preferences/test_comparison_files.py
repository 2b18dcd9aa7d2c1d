"""Comparisons out of the files that people have: CSV, HH-RLHF dialogues, message trees, an artifact of responses."""

import json
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import write_records
from alignment.errors import Fault, InputError
from alignment.preferences.comparison_files import LeftOut, stream_comparisons
from alignment.preferences.preference_files import KnownComparison
from alignment.records import Message, Prompt, Response, Sampling


def _read(path: Path, fewest: int = 1) -> list[tuple[int, KnownComparison]]:
    found = list(stream_comparisons(path, fewest))
    assert all(isinstance(one, tuple) and not isinstance(one, LeftOut) for one in found), found
    return found  # type: ignore[return-value]


def _texts(known: KnownComparison) -> list[str]:
    return [response.text for response in known.comparison.responses]


def _ranked(known: KnownComparison) -> list[list[str]] | None:
    by_id = {response.id: response.text for response in known.comparison.responses}
    return None if known.ranking is None else [[by_id[one] for one in group] for group in known.ranking]


@pytest.mark.parametrize(
    ("delimiter", "cells"),
    [
        (",", 'prompt,response_1,response_2,kind\n"Why, though?","Be\ncause.",So.,code\n\nHow?,A,B,\n'),
        (";", "prompt;response_1;response_2;kind\nWhy, though?;Because.;So.;code\nHow?;A;B;\n"),
        ("\t", "prompt\tresponse_1\tresponse_2\tkind\nWhy, though?\tBecause.\tSo.\tcode\nHow?\tA\tB\t\n"),
    ],
)
def test_a_table_has_a_row_a_comparison_with_its_line(tmp_path: Path, delimiter: str, cells: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(cells, encoding="utf-8-sig")
    (first, one), (second, two) = _read(path)
    assert (first, second) == ((2, 5) if delimiter == "," else (2, 3))  # the first one's answer goes over two lines
    assert one.comparison.prompt.messages == (Message(role="user", content="Why, though?"),)
    assert (one.comparison.prompt.kind, two.comparison.prompt.kind) == ("code", "general")
    assert _texts(two) == ["A", "B"]


def test_a_table_says_the_same_as_json_lines_do(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": "[INST] is text"}]  # fmt: skip
    rows: list[dict[str, Any]] = [
        {"prompt": talk, "responses": ["One.", "Two, three."]},
        {"prompt": "[not json", "chosen": "A", "rejected": "B"},
        {"prompt": "Alone?", "response": '[{"a": 1}]'},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for number, row in enumerate(rows):
        names = list(row)
        cells = [value if isinstance(value, str) else json.dumps(value) for value in row.values()]
        quoted = ",".join('"' + cell.replace('"', '""') + '"' for cell in cells)
        (tmp_path / f"{number}.csv").write_text(f"{','.join(names)}\n{quoted}\n")
    tables = [known for number in range(3) for _line, known in _read(tmp_path / f"{number}.csv")]
    assert tables == [known for _row, known in _read(tmp_path / "rows.jsonl")]
    assert _ranked(tables[1]) == [["A"], ["B"]]


@pytest.mark.parametrize(
    ("text", "row", "field", "said"),
    [
        ("prompt,chosen,rejected\nWhy?,A,B\nHow?,A\n", 3, None, "2 cells, and the first line names 3 columns"),
        ("prompt,chosen,rejected\nWhy?,,B\n", 2, "chosen", "empty"),
        ("prompt,response_1,response_2\nWhy?,A,A\n", 2, "responses", "two answers are the same"),
        ("prompt,chosen,rejected,margin\nWhy?,A,B,much\n", 2, "margin", "not a number"),
    ],
)
def test_what_is_wrong_in_a_table_has_its_line(
    tmp_path: Path, text: str, row: int, field: str | None, said: str
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(text)
    [fault] = [one for one in stream_comparisons(path, 1) if isinstance(one, Fault)]
    assert (fault.file, fault.row, fault.field) == (str(path), row, field)
    assert said in fault.problem


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"), (b"prompt,response\n", "empty"), (b"prompt,prompt\nWhy?,A\n", "stands twice"),
        (b'prompt,response\n"Why?,A\n', "not CSV"), (b"prompt,response\nWhy?,\xff\n", "not UTF-8"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_read_is_a_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said) as caught:
        list(stream_comparisons(path, 1))
    assert str(path) in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        list(stream_comparisons(tmp_path / "none.csv", 1))


def test_dialogues_are_pairs_with_a_known_answer_and_what_diverges_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    said = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why?\n\nAssistant: "
    rows = [
        {"chosen": f"{said}Because.", "rejected": f"{said}No."},
        {"chosen": f"{said}Because.", "rejected": "\n\nHuman: Ho\n\nAssistant: No."},
        {"chosen": f"{said}Because.", "rejected": f"{said}Because."},
        {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi\n\nAssistant: A"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, *left_out, fault = list(stream_comparisons(path, 1))
    assert isinstance(first, tuple)
    _row, known = first
    assert isinstance(known, KnownComparison)
    assert [turn.content for turn in known.comparison.prompt.messages] == ["Hi", "Hello", "Why?"]
    assert _ranked(known) == [["Because."], ["No."]]
    assert left_out == [
        LeftOut(2, "the dialogues differ before the last answer"), LeftOut(3, "chosen and rejected are identical"),
    ]  # fmt: skip
    assert isinstance(fault, Fault)
    assert (fault.row, fault.field) == (4, "chosen")


def _reply(text: str, rank: int | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "text": text, "rank": rank, "replies": []} | more


def test_a_tree_gives_the_replies_to_each_message_with_their_order_where_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    again = {"role": "prompter", "text": "And then?", "replies": [_reply("X"), _reply("Y"), _reply("X")]}
    replies = [_reply("Second", 1), _reply("Best", 0, replies=[again]), _reply("Also second", 1),
               _reply("Gone", 2, deleted=True)]  # fmt: skip
    alone = {"prompt": {"role": "prompter", "text": "One?", "replies": [_reply("Only", 0)]}}
    wrong = {"prompt": {"role": "prompter", "text": "One?", "replies": [_reply("A", "top")]}}  # type: ignore[arg-type]
    tree = {"message_tree_id": "t", "prompt": {"role": "prompter", "text": "Why?", "replies": replies}}
    path.write_text("".join(json.dumps(row) + "\n" for row in (tree, alone, wrong)))
    found = list(stream_comparisons(path, 1))
    known = [one[1] for one in found if isinstance(one, tuple) and not isinstance(one, LeftOut)]
    assert [_ranked(one) for one in known] == [[["Best"], ["Second", "Also second"]], None]  # type: ignore[arg-type]
    assert [turn.content for turn in known[1].comparison.prompt.messages] == ["Why?", "Best", "And then?"]  # type: ignore[union-attr]
    assert [one.why for one in found if isinstance(one, LeftOut)] == [
        "a message was deleted by its community", "chosen and rejected are identical",
    ]  # fmt: skip
    [fault] = [one for one in found if isinstance(one, Fault)]
    assert (fault.row, fault.field) == (3, "prompt.replies.0.rank")


def test_more_replies_than_can_be_shown_are_the_first_nine_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "trees.jsonl"
    tree = {"prompt": {"role": "prompter", "text": "Why?", "replies": [_reply(f"R{at}", at) for at in range(11)]}}
    path.write_text(json.dumps(tree) + "\n")
    *left_out, (row, known) = stream_comparisons(path, 1)  # type: ignore[misc]
    assert (row, len(known.comparison.responses)) == (1, 9)  # type: ignore[union-attr]
    assert left_out == [LeftOut(1, "a reply beyond the first 9")] * 2


def test_what_a_run_has_sampled_is_a_pair_a_prompt(tmp_path: Path) -> None:
    prompts = [Prompt(id=f"p{at}", messages=(Message(role="user", content=f"Q{at}"),)) for at in range(2)]
    responses = [
        Response(id=f"r{at}", prompt_id=f"p{at // 3}", text=text, model="policy/1", sampling=Sampling(), seed=at,
                 tokens=1, finished=True)
        for at, text in enumerate(("A", "B", "C", "D", "D", " "))
    ]  # fmt: skip
    write_records(tmp_path / "prompts.jsonl", prompts)
    write_records(tmp_path / "responses.jsonl", responses)
    [(_row, known)] = _read(tmp_path)  # the second prompt has one answer
    assert set(_texts(known)) < {"A", "B", "C"}
    assert {response.model for response in known.comparison.responses} == {"policy/1"}
    with pytest.raises(InputError, match="holds no prompts"):
        list(stream_comparisons(tmp_path.parent, 1))
