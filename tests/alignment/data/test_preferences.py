import json
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignment.data import hh_rlhf, oasst, trl
from alignment.data.pairing import Skip
from alignment.data.preferences import Form, Format, read_preferences, write_preferences
from alignment.digests import pair_id, prompt_id
from alignment.errors import InputError
from alignment.records import Message, PreferencePair

Writer = Callable[..., Path]
SAID = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(lambda text: text.strip())

EXPORT = "export message trees: one object a line, with replies inside replies"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def bot(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def pair(prompt: list[dict[str, str]], chosen: str, rejected: str, margin: float | None = None) -> PreferencePair:
    messages = tuple(Message.model_validate(message) for message in prompt)
    return PreferencePair(
        id=pair_id(messages, chosen, rejected),
        prompt_id=prompt_id(messages),
        prompt=messages,
        chosen=chosen,
        rejected=rejected,
        margin=margin,
    )


PROMPT = st.lists(SAID, min_size=1, max_size=5).map(
    lambda said: [
        user(text) if n % 2 == 0 else bot(text) for n, text in enumerate(said[: len(said) - 1 + len(said) % 2])
    ]
)
ANSWERS = st.tuples(SAID, SAID).filter(lambda both: both[0].strip() != both[1].strip())


# --- TRL's columns


@given(prompt=PROMPT, answers=ANSWERS, margin=st.none() | st.floats(0, 100))
def test_all_forms_of_trl_columns_give_the_same_pair(
    prompt: list[dict[str, str]], answers: tuple[str, str], margin: float | None
) -> None:
    chosen, rejected = answers
    expected = [pair(prompt, chosen, rejected, margin)]
    assert (
        trl.parse({"prompt": prompt, "chosen": [bot(chosen)], "rejected": [bot(rejected)], "margin": margin})
        == expected
    )
    whole = {"chosen": [*prompt, bot(chosen)], "rejected": [*prompt, bot(rejected)], "margin": margin}
    assert trl.parse(whole) == expected
    assert trl.parse(whole | {"prompt": prompt}) == expected
    assert trl.parse({"prompt": prompt, "chosen": chosen, "rejected": rejected, "margin": margin}) == expected
    if len(prompt) == 1:
        text = {"prompt": prompt[0]["content"], "margin": margin}
        assert trl.parse(text | {"chosen": chosen, "rejected": rejected}) == expected
        assert trl.parse(text | {"chosen": whole["chosen"], "rejected": whole["rejected"]}) == expected


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"prompt": "q", "chosen": "a"},
            ":rejected: no rejected among the columns prompt and chosen; name them prompt, chosen and rejected",
        ),
        ({"prompt": "q", "chosen": "a", "rejected": None}, ":rejected: null, not text; write text, or remove the row"),
        ({"prompt": "q", "chosen": 7, "rejected": "b"}, ":chosen: int, not text; write text, or remove the row"),
        ({"prompt": "q", "chosen": "", "rejected": "b"}, ":chosen: empty; write the text, or remove the row"),
        (
            {"prompt": "q", "chosen": "a", "rejected": " a\n"},
            ":rejected: identical to chosen; remove the row, or give the answer that was rejected",
        ),
        (
            {"chosen": "q a", "rejected": [user("q"), bot("b")]},
            ':chosen: plain text without a prompt; add the column "prompt", or write messages',
        ),
        (
            {"chosen": [bot("a")], "rejected": [user("q"), bot("b")]},
            ":chosen: no message is the user's; put the user's message before the assistant's",
        ),
        (
            {"chosen": [user("q"), bot("a")], "rejected": [user("q")]},
            ":rejected: the last message is of the user; end with a message of the assistant",
        ),
        (
            {"prompt": [user("q"), bot("p")], "chosen": "a", "rejected": "b"},
            ":prompt: the last message is of the assistant; end with a message of the user",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"},
            ":margin: not a number; write how much better chosen is, from 0, or leave it out",
        ),
        (
            {"prompt": "q", "chosen": "a", "rejected": "b", "margin": -1},
            ":margin: -1 is not a finite number from 0; write how much better chosen is, or leave it out",
        ),
        (
            '{"prompt": "q", "chosen": "a", "rejected": "b", "margin": NaN}',
            ":margin: nan is not a finite number from 0; write how much better chosen is, or leave it out",
        ),
    ],
)
def test_a_bad_row_of_trl_columns_is_one_line(write_rows: Writer, row: Any, line: str) -> None:
    path = write_rows([{"prompt": "q", "chosen": "a", "rejected": "b"}, row])
    with pytest.raises(InputError) as caught:
        read_preferences(path)
    assert str(caught.value) == f"{path}:2{line}"


def test_trl_dialogues_that_differ_earlier_are_counted(write_rows: Writer) -> None:
    rows = [
        {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b")]},
        {"chosen": [user("q"), bot("a")], "rejected": [user("q"), bot("b"), user("r"), bot("c")]},
    ]
    found = read_preferences(write_rows(rows))
    assert found.pairs == [pair([user("q")], "a", "b")]
    assert found.skipped == {Skip.DIVERGED: 1}


# --- HH-RLHF


@given(prompt=PROMPT, answers=ANSWERS)
def test_dialogues_are_read_turn_by_turn(prompt: list[dict[str, str]], answers: tuple[str, str]) -> None:
    names = {"user": "Human", "assistant": "Assistant"}
    start = "".join(f"\n\n{names[message['role']]}: {message['content']}" for message in prompt)
    row = {side: f"{start}\n\nAssistant: {text}" for side, text in zip(("chosen", "rejected"), answers, strict=True)}
    stripped = [message | {"content": message["content"].strip()} for message in prompt]
    assert hh_rlhf.parse(row) == [pair(stripped, answers[0].strip(), answers[1].strip())]


@pytest.mark.parametrize(
    ("chosen", "rejected", "found"),
    [
        ("Human: q\n\nAssistant: a", "Human: q\n\nAssistant: b", pair([user("q")], "a", "b")),
        # two turns of one speaker are one
        (
            "\n\nHuman: q\n\nHuman: r\n\nAssistant: a",
            "\n\nHuman: q\n\nr\n\nAssistant: b",
            pair([user("q\n\nr")], "a", "b"),
        ),
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant: a ", Skip.IDENTICAL),
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: q\n\nAssistant:", Skip.EMPTY),
        ("\n\nHuman: \n\nAssistant: a", "\n\nHuman: \n\nAssistant: b", Skip.EMPTY),
        ("\n\nHuman: q\n\nAssistant: a", "\n\nHuman: other\n\nAssistant: b", Skip.DIVERGED),
        # an answer to an earlier turn is no alternative to an answer to a later one
        (
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c",
            "\n\nHuman: q\n\nAssistant: b",
            Skip.DIVERGED,
        ),
        (
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: c",
            "\n\nHuman: q\n\nAssistant: b\n\nHuman: r\n\nAssistant: d",
            Skip.DIVERGED,
        ),
    ],
)
def test_pairs_of_dialogues(chosen: str, rejected: str, found: PreferencePair | Skip) -> None:
    assert hh_rlhf.parse({"chosen": chosen, "rejected": rejected}) == [found]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"chosen": "plain", "rejected": "\n\nHuman: q\n\nAssistant: b"},
            ':chosen: not a dialogue of "Human:" and "Assistant:" turns; begin with Human:, or set the format to trl',
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"},
            ":rejected: the dialogue does not go from Human: to Assistant:; give whole dialogues, or remove the row",
        ),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": None},
            ":rejected: null, not text; write text, or remove the row",
        ),
    ],
)
def test_a_bad_dialogue_is_one_line(write_rows: Writer, row: dict[str, Any], line: str) -> None:
    path = write_rows([row])
    with pytest.raises(InputError) as caught:
        read_preferences(path, "hh_rlhf")
    assert str(caught.value) == f"{path}:1{line}"


def test_a_file_without_any_pair(write_rows: Writer) -> None:
    same = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: a"}
    path = write_rows([same, same])
    with pytest.raises(InputError) as caught:
        read_preferences(path)
    expected = (
        "no usable pair (2 × chosen and rejected are identical); give pairs of different answers to the same prompt"
    )
    assert str(caught.value) == f"{path}: {expected}"


# --- Open-Assistant


def reply(text: str, rank: object, **more: Any) -> dict[str, Any]:
    return {"text": text, "role": "assistant", "rank": rank, "replies": [], **more}


def tree(*replies: dict[str, Any], text: str = "q") -> dict[str, Any]:
    return {"prompt": {"text": text, "role": "prompter", "replies": list(replies)}}


@given(ranks=st.lists(st.none() | st.integers(0, 8), max_size=8))
def test_each_pair_of_a_ranking_is_better_over_worse(ranks: list[int | None]) -> None:
    found = oasst.parse(tree(*(reply(f"answer {n}", rank) for n, rank in enumerate(ranks))))
    rank_of = {f"answer {n}": rank for n, rank in enumerate(ranks)}
    pairs = [one for one in found if isinstance(one, PreferencePair)]
    known = [rank for rank in ranks if rank is not None]
    assert len(pairs) == sum(a != b for a, b in combinations(known, 2))
    for one in pairs:
        better, worse = rank_of[one.chosen], rank_of[one.rejected]
        assert better is not None
        assert worse is not None
        assert one.margin == worse - better > 0
    if len(ranks) > 1:
        skipped = Counter(one for one in found if isinstance(one, Skip))
        assert skipped[Skip.UNRANKED] == ranks.count(None)
        assert skipped[Skip.TIED] == sum(a == b for a, b in combinations(known, 2))


def test_adjacent_pairs_of_a_ranking() -> None:
    ranked = tree(reply("worst", 2), reply("best", 0), reply("middle", 1))
    assert oasst.parse(ranked, "adjacent") == [
        pair([user("q")], "best", "middle", 1.0),
        pair([user("q")], "middle", "worst", 1.0),
    ]
    assert len(oasst.parse(ranked)) == 3


def test_only_siblings_are_compared_and_deeper_ones_know_what_was_said() -> None:
    inner = {"text": "r", "role": "prompter", "replies": [reply("c", 1), reply("d", 0)]}
    found = oasst.parse(tree(reply("a", 0), reply("b", 1, replies=[inner])))
    assert found == [
        pair([user("q")], "a", "b", 1.0),
        pair([user("q"), bot("b"), user("r")], "d", "c", 1.0),
    ]


def test_deleted_and_empty_replies_are_counted() -> None:
    found = oasst.parse(
        tree(reply("a", 0), reply("b", 1, deleted=True), reply(" ", 2), reply("c", 3, review_result=False))
    )
    assert Counter(found) == {Skip.DELETED: 2, Skip.EMPTY: 1}


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (
            {"prompt": "q"},
            f":prompt: no tree of messages; {EXPORT}",
        ),
        (
            tree(reply("a", "first"), reply("b", 1)),
            ":prompt.replies.0.rank: the rank is not a whole number; rank replies 0 (best), 1, 2 …",
        ),
        (
            tree({"text": None, "role": "assistant", "rank": 0}, reply("b", 1)),
            ":prompt.replies.0.text: null, not text; write text, or remove the row",
        ),
        ({"prompt": {"text": "q", "role": "boss"}}, ":prompt.role: unknown role 'boss'; use prompter or assistant"),
        (
            {"prompt": {"text": "q", "role": "prompter", "replies": "none"}},
            f":prompt.replies: the replies are not a list of messages; {EXPORT}",
        ),
    ],
)
def test_a_bad_tree_is_one_line(write_rows: Writer, row: dict[str, Any], line: str) -> None:
    path = write_rows([row])
    with pytest.raises(InputError) as caught:
        read_preferences(path, "oasst")
    assert str(caught.value) == f"{path}:1{line}"


# --- files


def test_the_format_is_told_by_the_columns(write_rows: Writer) -> None:
    dialogue = {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}
    text = {"prompt": "q", "chosen": "a", "rejected": "b"}
    for row in (dialogue, text, tree(reply("a", 0), reply("b", 1))):
        (found,) = read_preferences(write_rows([row])).pairs
        assert (found.prompt[0].content, found.chosen, found.rejected) == ("q", "a", "b")
    path = write_rows([{"question": "q", "good": "a", "bad": "b"}])
    with pytest.raises(InputError) as caught:
        read_preferences(path)
    assert str(caught.value) == (
        f"{path}:1: no preference format has the columns question, good and bad; "
        'name them prompt, chosen and rejected; or give HH-RLHF dialogues, or Open-Assistant trees ("prompt")'
    )


def test_duplicates_are_counted_and_rows_remembered(write_rows: Writer) -> None:
    rows = [{"prompt": "q", "chosen": f"a{n % 2}", "rejected": "b"} for n in range(3)]
    found = read_preferences(write_rows(rows))
    assert [one.chosen for one in found.pairs] == ["a0", "a1"]
    assert found.skipped == {Skip.DUPLICATE: 1}
    assert [found.rows[one.id] for one in found.pairs] == [1, 2]


def test_a_limit_takes_the_first_by_digest_whatever_the_order(write_rows: Writer) -> None:
    rows = [{"prompt": "q", "chosen": f"a{n}", "rejected": "b"} for n in range(20)]
    every = sorted(one.id for one in read_preferences(write_rows(rows)).pairs)
    assert [one.id for one in read_preferences(write_rows(rows), limit=5).pairs] == every[:5]
    assert [one.id for one in read_preferences(write_rows(rows[::-1]), limit=5).pairs] == every[:5]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
@given(
    said=st.lists(st.tuples(PROMPT, ANSWERS, st.none() | st.floats(0, 9)), min_size=1, max_size=4),
    form=st.sampled_from(["messages", "text"]),
)
def test_pairs_come_back_as_they_were(
    tmp_path_factory: pytest.TempPathFactory, name: str, said: list[tuple[Any, Any, Any]], form: Form
) -> None:
    folder = tmp_path_factory.mktemp("pairs")
    prompts = [prompt[:1] if form == "text" else prompt for prompt, _answers, _margin in said]
    pairs = [pair(prompt, *answers, margin) for prompt, (_p, answers, margin) in zip(prompts, said, strict=True)]
    unique = list({one.id: one for one in reversed(pairs)}.values())[::-1]
    write_preferences(folder / name, unique, form)
    assert read_preferences(folder / name, "trl").pairs == unique
    first = (folder / name).read_bytes()
    write_preferences(folder / name, unique, form)
    assert (folder / name).read_bytes() == first


def test_the_columns_written_are_trls(tmp_path: Path) -> None:
    pairs = [pair([user("q")], "a", "b", 2.0), pair([user("q")], "a", "c")]
    write_preferences(tmp_path / "a.jsonl", pairs, "text")
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == [
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2.0},
        {"prompt": "q", "chosen": "a", "rejected": "c", "margin": None},
    ]
    write_preferences(tmp_path / "a.parquet", pairs[1:], "messages")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [
        {"prompt": [user("q")], "chosen": [bot("a")], "rejected": [bot("c")]}
    ]


def test_plain_text_cannot_say_a_conversation(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with pytest.raises(InputError) as caught:
        write_preferences(path, [pair([user("q"), bot("a"), user("r")], "a", "b")], "text")
    assert (
        str(caught.value)
        == f"{path}:1:prompt: the prompt is a conversation, which plain text cannot say; write the file as messages"
    )
    assert not path.exists()


# --- the public data sets


@pytest.mark.parametrize(
    ("name", "pairs", "skipped"),
    [
        ("hh_rlhf_harmless", 1496, {Skip.EMPTY: 4}),
        ("hh_rlhf_helpful", 1596, {Skip.EMPTY: 3, Skip.IDENTICAL: 1}),
        ("oasst_trees_en", 532, {Skip.UNRANKED: 6}),
    ],
)
def test_public_preferences(real_data: Path, tmp_path: Path, name: str, pairs: int, skipped: dict[Skip, int]) -> None:
    path = real_data / f"{name}.jsonl.gz"
    found = read_preferences(path)
    named: Format = "oasst" if name.startswith("oasst") else "hh_rlhf"
    assert read_preferences(path, named) == found
    assert len(found.pairs) == pairs
    assert found.skipped == skipped
    assert sum(one.chosen.strip() == one.rejected.strip() for one in found.pairs) == 0
    assert {one.prompt[-1].role for one in found.pairs} == {"user"}
    write_preferences(tmp_path / "out.parquet", found.pairs)
    assert read_preferences(tmp_path / "out.parquet").pairs == found.pairs
