"""One conversation that several columns describe: once where they agree, a fault with its row where they do not."""

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest

from alignment.data.demonstrations import read_demonstrations
from alignment.data.preferences import read_preferences
from alignment.data.prompts import read_prompts
from alignment.errors import InputError
from alignment.preferences.preference_files import read_comparisons

Writer = Callable[..., Path]
S = {"role": "system", "content": "Be brief."}
Q = {"role": "user", "content": "What colour?"}
A = {"role": "assistant", "content": "Red."}
B = {"role": "assistant", "content": "Blue, I should think."}
Q_NEWLINE = {"role": "user", "content": "What colour?\n"}
OTHER = {"role": "user", "content": "What size?"}


def contents(messages: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content.strip()) for message in messages]


PROMPTS = ("What colour?", "What colour?\n", [Q], [Q_NEWLINE], [S, Q])
ANSWERS = ("{a}", ["a"], ["q", "a"], ["q\n", "a"], ["s", "q", "a"])


def column(form: Any, answer: dict[str, str]) -> Any:
    parts = {"a": answer, "q": Q, "q\n": Q_NEWLINE, "s": S}
    return answer["content"] if isinstance(form, str) else [parts[name] for name in form]


SYSTEMS = (None, "Be brief.", "Be brief.\n")


@pytest.mark.parametrize(("prompt", "form", "system"), list(product(PROMPTS, ANSWERS, SYSTEMS)))
def test_descriptions_that_agree_are_one_conversation(
    write_rows: Writer, prompt: Any, form: Any, system: str | None
) -> None:
    more = {} if system is None else {"system": system}
    told = system is not None or (isinstance(prompt, list) and prompt[0] == S) or "s" in form
    question = [("system", "Be brief."), ("user", "What colour?")][0 if told else 1 :]
    row = {"prompt": prompt, "chosen": column(form, A), "rejected": column(form, B)} | more
    (pair,) = read_preferences(write_rows([row]), "trl").pairs
    assert contents(pair.prompt) == question
    assert (pair.chosen, pair.rejected) == (A["content"], B["content"])
    (demonstration,) = read_demonstrations(write_rows([{"prompt": prompt, "completion": column(form, A)} | more]))
    assert contents(demonstration.messages) == [*question, ("assistant", "Red.")]


@pytest.mark.parametrize(
    ("row", "field", "problem"),
    [
        ({"chosen": [OTHER, A], "rejected": [Q, B]}, "chosen", "does not begin with the conversation in prompt"),
        ({"chosen": [Q, A], "rejected": [OTHER, B]}, "rejected", "does not begin with the conversation in prompt"),
        ({"chosen": [Q, A], "rejected": [Q]}, "rejected", "does not begin with the conversation in prompt"),
        ({"system": "Be long.", "chosen": [S, Q, A], "rejected": [Q, B]}, "chosen", "another system message"),
        ({"chosen": [Q, Q, A], "rejected": [Q, B]}, "chosen", "message 2 repeats message 1"),
        ({"chosen": [Q, A, A], "rejected": [Q, B]}, "chosen", "message 3 repeats message 2"),
        ({"chosen": [Q, A, B], "rejected": [Q, B]}, "chosen", "messages 2 and 3 are both of the assistant"),
        (
            {"chosen": [Q, A, {"role": "user", "content": " "}, B], "rejected": [Q, B]},
            "chosen",
            "message 3 (the user's) is empty",
        ),
        ({"chosen": "Human: q\n\nAssistant: a", "rejected": "b"}, "chosen", "one text holds a whole dialogue"),
    ],
)
def test_descriptions_that_differ_are_a_fault(
    write_rows: Writer, row: dict[str, Any], field: str, problem: str
) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    with pytest.raises(InputError) as caught:
        read_preferences(write_rows([good, {"prompt": "What colour?"} | row]), "trl")
    (fault,) = caught.value.faults
    assert (fault.row, fault.field) == (2, field)
    assert problem in fault.problem
    with pytest.raises(InputError):
        read_comparisons(write_rows([{"prompt": "What colour?"} | row]))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "What size?", "messages": [Q, A]}, "another conversation than the column prompt"),
        ({"prompt": "What size?", "completion": [Q, A]}, "does not begin with the conversation in prompt"),
        ({"messages": [A, Q, B]}, "the assistant speaks first"),
        ({"messages": [S, A, Q, B]}, "the assistant speaks first"),
        ({"messages": [{"role": "tool", "content": "4"}, Q, A]}, "the tool speaks first"),
        (
            {"messages": [Q, {"role": "tool", "content": "4"}, A]},
            "message 2 is of a tool, and the assistant called none",
        ),
        ({"messages": [Q, A, {"role": "tool", "content": " "}, A]}, "message 3 (the tool's) is empty"),
        ({"messages": [Q, OTHER, A]}, "messages 1 and 2 are both of the user"),
        ({"messages": [Q, A, Q_NEWLINE, Q, A]}, "message 4 repeats message 3"),
        ({"messages": [Q, {"role": "assistant", "content": ""}, Q, A]}, "message 2 (the assistant's) is empty"),
        ({"messages": [{"role": "system", "content": " "}, Q, A]}, "message 1 (the system's) is empty"),
    ],
)
def test_turns_out_of_order_are_a_fault(write_rows: Writer, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError) as caught:
        read_demonstrations(write_rows([{"messages": [Q, A]}, row]))
    assert [fault.row for fault in caught.value.faults] == [2]
    assert problem in caught.value.faults[0].problem


def test_tools_speak_behind_the_answers_that_called_them(write_rows: Writer) -> None:
    """One call or several at once; the conversation goes on with the assistant."""
    result, other = {"role": "tool", "content": "4"}, {"role": "tool", "content": "5"}
    whole = [S, Q, A, result, other, A, Q, A, result, B]
    (demonstration,) = read_demonstrations(write_rows([{"messages": whole}]))
    assert contents(demonstration.messages) == [(turn["role"], turn["content"]) for turn in whole]
    (prompt,) = read_prompts(write_rows([{"messages": [Q, A, result, B, OTHER]}]))
    assert [message.role for message in prompt.messages] == ["user", "assistant", "tool", "assistant", "user"]


def test_a_prompt_with_its_whole_conversation_beside_it(write_rows: Writer) -> None:
    path = write_rows([{"prompt": "What colour?", "messages": [Q, A]}])
    assert contents(read_prompts(path)[0].messages) == [("user", "What colour?")]
    assert contents(read_demonstrations(path)[0].messages) == [("user", "What colour?"), ("assistant", "Red.")]


def test_shared_turns_that_differ_in_white_space_are_one_question(write_rows: Writer) -> None:
    path = write_rows([{"chosen": [Q, A], "rejected": [Q_NEWLINE, B]}])
    found = read_preferences(path)
    assert len(found.pairs) == 1
    assert not found.skipped


def test_every_fault_of_a_row_and_of_a_file_is_told(tmp_path: Path) -> None:
    rows = [
        b'{"prompt": 3, "kind": 4, "reference": 5}',
        b"{not json",
        b'{"prompt": "caf\xe9"}',
        b'{"prompt": "good"}',
        b'{"prompt": "a", "prompt": "b"}',
    ]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(rows))
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert [(fault.row, fault.field) for fault in caught.value.faults] == [
        (1, "prompt"), (1, "kind"), (1, "reference"), (2, None), (3, None), (5, "prompt"),
    ]  # fmt: skip


def test_numbers_that_no_float_holds_are_a_fault(write_rows: Writer) -> None:
    long = int("9" * 400)
    path = write_rows([{"prompt": "q", "chosen": "a", "rejected": "b", "margin": long}])
    with pytest.raises(InputError, match=r":1:margin: 9{39}… is more than 1,000,000"):
        read_preferences(path)
    replies = [{"role": "assistant", "text": text, "rank": rank} for text, rank in (("a", 0), ("b", long))]
    tree = {"prompt": {"role": "prompter", "text": "q", "replies": replies}}
    with pytest.raises(InputError, match=r"replies\.1\.rank: the rank is not a whole number"):
        read_preferences(write_rows([tree]))


def test_a_tree_whose_speakers_do_not_take_turns(write_rows: Writer) -> None:
    node = {"role": "prompter", "text": "q", "replies": [{"role": "prompter", "text": "r", "replies": []}]}
    with pytest.raises(InputError, match="a message of the prompter answers one of the same"):
        read_preferences(write_rows([{"prompt": node}]))


def test_parquet_text_that_is_not_utf8_is_a_row_and_a_column(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    raw = pyarrow.array([b"fine", b"caf\xe9", b"good"]).view(pyarrow.string())
    pq.write_table(pyarrow.table({"prompt": raw}), path)
    with pytest.raises(InputError) as caught:
        read_prompts(path)
    assert str(caught.value) == f"{path}:2:prompt: the text is not UTF-8; write it again as UTF-8"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.parquet"])
def test_a_pointer_in_a_files_place(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match="a Git LFS pointer, not the file itself; fetch the file"):
        read_prompts(path)


def test_a_good_file_reads_as_before(write_rows: Writer) -> None:
    rows = [json.dumps({"prompt": [Q, A, OTHER]}), json.dumps({"prompt": "x", "system": "s"})]
    assert [len(prompt.messages) for prompt in read_prompts(write_rows(rows))] == [3, 2]
