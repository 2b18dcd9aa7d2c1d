# ruff: noqa: E501  (a table)
"""The table of bad inputs: every reader, every field, every kind of wrong value; each is answered by one line a fault.

Whatever raises InputError is what the command line answers by these lines and exit code 2
(tests/flows/commands/test_failures.py runs commands as processes).
"""

import gzip
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as pq
import pytest
import yaml

from alignment.data.demonstrations import read_demonstrations
from alignment.data.preferences import read_preferences
from alignment.data.prompts import read_prompts
from alignment.errors import InputError
from alignment.preferences.preference_files import read_comparisons
from alignment.preferences.principles import load_constitution
from alignment.preferences.rubric import load_rubric
from alignment.recipe.error_messages import STAGE_KINDS
from alignment.recipe.load import load_recipe

Reader = Callable[[Path], Any]
LONG = int("9" * 400)
NOT_TEXT: list[Any] = [3, LONG, 1.5, float("nan"), float("inf"), True, {}, {"a": 1}, "\ud800"]
NO_TEXT: list[Any] = [
    *NOT_TEXT,
    None,
    "",
    " \n",
    [],
    [3],
    [[]],
    [{}],
    [{"role": "user"}],
    [{"role": "x", "content": "y"}],
]
U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
NO_TURNS: list[Any] = [
    *NO_TEXT, [U | {"content": 3}], [U | {"content": None}], [U | {"content": "\ud800"}], [U | {"name": "x"}], [A, U, U],
    [{"role": "system", "content": "s"}], [U, {"role": "system", "content": "s"}], [U, U, A], [A], [U | {"content": " "}],
]  # fmt: skip
NO_MARGIN: list[Any] = ["1", -1, LONG, float("nan"), float("-inf"), True, [], {}]
NODE = {
    "role": "prompter",
    "text": "q",
    "replies": [{"role": "assistant", "text": t, "rank": r} for t, r in (("a", 0), ("b", 1))],
}
ROWS: dict[str, tuple[Reader, dict[str, Any], dict[str, list[Any]]]] = {
    "prompts": (
        read_prompts,
        {"prompt": "q"},
        {"prompt": NO_TURNS, "kind": NOT_TEXT, "source": NOT_TEXT, "reference": NOT_TEXT, "system": [*NOT_TEXT, "", []]},
    ),
    "demonstrations": (
        read_demonstrations,
        {"prompt": "q", "completion": "a"},
        {"prompt": NO_TURNS, "completion": [*NO_TEXT, [U], [U, U, A]], "kind": NOT_TEXT, "source": NOT_TEXT,
         "messages": [[U, U, A], [A], "text", 3]},
    ),
    "preferences": (
        lambda path: read_preferences(path, "trl"),
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": NO_TURNS, "chosen": [*NO_TEXT, [U], [U, U, A], "b"], "rejected": [*NO_TEXT, "a"],
         "margin": NO_MARGIN, "kind": NOT_TEXT, "system": NOT_TEXT},
    ),
    "dialogues": (
        lambda path: read_preferences(path, "hh_rlhf"),
        {"chosen": "Human: q\n\nAssistant: a", "rejected": "Human: q\n\nAssistant: b"},
        {"chosen": [*NOT_TEXT, None, "", [], "plain", "Human: q"], "rejected": [*NOT_TEXT, "Assistant: a"]},
    ),
    "trees": (
        lambda path: read_preferences(path, "oasst"),
        {"prompt": NODE},
        {"prompt": [*NO_TEXT, NODE | {"text": 3}, NODE | {"role": "x"}, NODE | {"role": "assistant"}, NODE | {"replies": 3},
                    NODE | {"replies": [NODE["replies"][0] | {"rank": rank} for rank in (LONG, 0)]},
                    NODE | {"replies": [NODE["replies"][0] | {"rank": rank} for rank in ("1", 0)]}]},
    ),
    "comparisons": (
        read_comparisons,
        {"prompt": "q", "responses": ["a", "b"]},
        {"prompt": NO_TURNS, "kind": NOT_TEXT,
         "responses": [*NO_TEXT, ["a"], ["a", "a"], ["a", 3], ["a", "\ud800"], ["a", {"text": "b", "model": 3}], ["a"] * 10]},
    ),
}  # fmt: skip


def rows() -> Iterator[tuple[str, Reader, str]]:
    """(what it is, its reader, the file's text): a good row, then one with a wrong value in a field."""
    for name, (read, good, fields) in ROWS.items():
        for field, values in fields.items():
            for value in values:
                bad = good | {field: value}
                yield f"{name}.{field}={str(value)[:20]!r}", read, f"{json.dumps(good)}\n{json.dumps(bad)}\n"
        for required in good:
            left = {key: value for key, value in good.items() if key != required}
            yield f"{name} without {required}", read, f"{json.dumps(good)}\n{json.dumps(left)}\n"


def damages(folder: Path, good: dict[str, Any]) -> Iterator[Path]:
    """Files that are damaged as a whole."""
    line = json.dumps(good).encode() + b"\n"
    texts = {
        "empty.jsonl": b"", "blank.jsonl": b"\n \n", "half.jsonl": line[:-5], "list.jsonl": b"[1]\n", "number.jsonl": b"3\n",
        "latin.jsonl": line + b'{"prompt": "caf\xe9"}\n', "wide.jsonl": line.decode().encode("utf-16"),
        "twice.jsonl": b'{"prompt": "a", "prompt": "b"}\n', "deep.jsonl": b"[" * 100_000 + b"\n", "nul.jsonl": b"\0\0\n",
        "digits.jsonl": b'{"prompt": ' + b"9" * 5000 + b"}\n", "object.json": b"{}", "half.json": b"[" + line,
        "rows.txt": line, "rows.csv": b"prompt\nq\n", "broken.jsonl.gz": b"\x1f\x8b\x08broken", "cut.jsonl.gz": gzip.compress(line)[:-9],
        "no.parquet": b"PAR1 no", "empty.parquet": b"", "lfs.jsonl": b"version https://git-lfs.github.com/spec/v1\n",
        "lfs.parquet": b"version https://git-lfs.github.com/spec/v1\n", "annex.json": b"/annex/objects/MD5-s1--0\n",
    }  # fmt: skip
    for name, data in texts.items():
        (folder / name).write_bytes(data)
        yield folder / name
    columns = {name: pyarrow.array([b"caf\xe9"]).view(pyarrow.string()) for name in good}
    pq.write_table(pyarrow.table(columns), folder / "latin.parquet")
    pq.write_table(pyarrow.table({name: pyarrow.array([b"x"]) for name in good}), folder / "bytes.parquet")
    yield from (folder / name for name in ("latin.parquet", "bytes.parquet", "not-there.jsonl", "."))


RECIPE: dict[str, Any] = {"name": "t", "model": {"base": "x"}, "stages": {"s": {"kind": "sft"}}}
WRONG: list[Any] = [{"no": {"such": 1}}, [[None]], LONG * 10**9, float("nan")]


def recipes() -> Iterator[tuple[str, str]]:
    """(what it is, a recipe's text) with one wrong value in every field of every kind of stage and section."""
    for kind, settings in STAGE_KINDS.items():
        for field, value in itertools.product(settings.model_fields, WRONG[:2]):
            yield f"{kind}.{field}", yaml.safe_dump(RECIPE | {"stages": {"s": {"kind": kind, field: value}}})
        yield f"{kind}.unknown", yaml.safe_dump(RECIPE | {"stages": {"s": {"kind": kind, "unknown": 1}}})
    for field, value in itertools.product(
        ("name", "seed", "model", "data", "stages", "gate", "resources", "deployment"), WRONG
    ):
        yield f"{field}={str(value)[:9]}", yaml.safe_dump(RECIPE | {field: value})
    for text in (
        "",
        "- 1",
        "a: b: c",
        "{",
        "\tname: x",
        "name: &a [*a]",
        "? [1]\n: 2",
        "name: x\nname: y",
        "name: !!python/x y",
    ):
        yield text, text


def tables(folder: Path) -> Iterator[tuple[str, str]]:
    """(what it is, a YAML text) for rubrics and constitutions, which have a schema of their own."""
    for text in (
        "",
        "3",
        "[]",
        "{",
        "name: 3",
        "criteria: 3",
        "criteria: []",
        "criteria: [{}]",
        "principles: 3",
        "principles: []",
        "principles: [{}]",
        "principles: [{name: 3}]",
        "name: x\nname: y",
        "a: [" * 2000,
        "name: " + "9" * 5000,
    ):
        yield text[:30], text


def answer(read: Reader, path: Path) -> list[str]:
    """The lines by which a file is answered; none where it was not."""
    try:
        read(path)
    except InputError as error:
        return [str(fault) for fault in error.faults]
    except Exception as error:
        return [f"{type(error).__name__}\n"]
    return []


def test_every_bad_input_is_answered_by_one_line(tmp_path: Path) -> None:
    cases: list[tuple[str, Reader, Path]] = []
    for number, (name, read, text) in enumerate(rows()):
        path = tmp_path / f"row-{number}.jsonl"
        path.write_text(text, "utf-8")
        cases.append((name, read, path))
    for name, (read, good, _fields) in ROWS.items():
        (tmp_path / name).mkdir()
        cases += [(f"{name}: {path.name}", read, path) for path in damages(tmp_path / name, good)]
    for number, (name, text) in enumerate(recipes()):
        path = tmp_path / f"recipe-{number}.yaml"
        path.write_text(text, "utf-8")
        cases.append((f"recipe {name}", load_recipe, path))
    for number, (name, text) in enumerate(tables(tmp_path)):
        path = tmp_path / f"table-{number}.yaml"
        path.write_text(text, "utf-8")
        cases += [(f"rubric {name}", load_rubric, path), (f"constitution {name}", load_constitution, path)]
    answers = {(name, str(path)): answer(read, path) for name, read, path in cases}
    wrong = {
        name: lines
        for (name, _path), lines in answers.items()
        if not lines or len(lines) > 21 or not all(line and "\n" not in line and "; " in line for line in lines)
    }
    share = 1 - len(wrong) / len(answers)
    assert len(answers) >= 200
    assert wrong == {}, f"{share:.1%} of {len(answers)}"


@pytest.mark.parametrize("name", ROWS)
def test_the_good_rows_of_the_table_are_good(name: str, tmp_path: Path) -> None:
    read, good, _fields = ROWS[name]
    path = tmp_path / "good.jsonl"
    path.write_text(json.dumps(good) + "\n", "utf-8")
    assert answer(read, path) == []
