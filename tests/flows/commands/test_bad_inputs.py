"""The table of bad inputs (tests/alignment/data/test_bad_inputs.py) before the real command, a process each:
exit code 2, one line a fault that names the file, nothing on standard output, no traceback."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.alignment.data.test_bad_inputs import ROWS, damages, recipes, tables
from tests.warm_cli import Ended, run_all


@dataclass(frozen=True)
class Case:
    """A command line in a folder, and the file that its answer has to name."""

    name: str
    arguments: list[str]
    folder: Path
    file: str


def base(model: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "t", "model": {"base": str(model)}, "resources": {"device": "cpu", "threads": 1},
        "data": {"prompts": "good.jsonl"}, "stages": {"s": {"kind": "sample", "model": "base"}}, **changes,
    }  # fmt: skip


READ_BY: dict[str, Callable[[Path, str], dict[str, Any]]] = {  # the recipe that reads a file of each kind
    "prompts": lambda model, file: base(model, data={"prompts": file}),
    "demonstrations": lambda model, file: base(model, data={"demonstrations": file}, stages={"s": {"kind": "sft"}}),
    **{
        name: lambda model, file, form=form: base(
            model, data={"preferences": file}, stages={"s": {"kind": "preference_file", "format": form}}
        )
        for name, form in (("preferences", "trl"), ("dialogues", "hh_rlhf"), ("trees", "oasst"))
    },
}


def case(folder: Path, model: Path, reader: str, name: str, file: str) -> Case:
    """A command that reads a file of this kind."""
    if reader == "comparisons":
        return Case(name, ["votes", "import", file, "--workspace", "w"], folder, file)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(READ_BY[reader](model, file)), "utf-8")
    return Case(name, ["check", "recipe.yaml", "--workspace", "w"], folder, file)


def cases(root: Path, model: Path, *, most: int) -> Iterator[Case]:
    """``most`` wrong values of each field of each reader, some damaged files, recipes and rubrics."""
    number = 0

    def new() -> Path:
        nonlocal number
        number += 1
        folder = root / str(number)
        folder.mkdir(parents=True)
        (folder / "good.jsonl").write_text(json.dumps({"prompt": "q"}) + "\n")
        return folder

    for reader, (_read, good, fields) in ROWS.items():
        for field, values in fields.items():
            for value in values[:: max(1, len(values) // most)][:most]:
                folder = new()
                rows = [good, good | {field: value}]
                (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
                yield case(folder, model, reader, f"{reader}.{field}={str(value)[:20]!r}", "rows.jsonl")
        folder = new()
        kept = list(damages(folder, good))
        for path in kept[:: max(1, len(kept) // (3 * most))]:
            name = path.name if path != folder else "."
            yield case(folder, model, reader, f"{reader}: {name}", name)
            folder_of_next = new()
            list(damages(folder_of_next, good))
            folder = folder_of_next
    found = list(recipes())
    for name, text in found[:: max(1, len(found) // (8 * most))]:
        folder = new()
        (folder / "bad.yaml").write_text(text, "utf-8")
        yield Case(f"recipe {name}", ["check", "bad.yaml", "--workspace", "w"], folder, "bad.yaml")
    texts = list(tables(root))
    for name, text in texts[:: max(1, len(texts) // (3 * most))]:
        folder = new()
        (folder / "rubric.yaml").write_text(text, "utf-8")
        stages = {
            "s": {"kind": "sample", "model": "base"},
            "p": {"kind": "preferences", "responses": "s", "raters": {"rubric": "rubric.yaml"}},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(base(model, stages=stages)), "utf-8")
        yield Case(f"rubric {name}", ["check", "recipe.yaml", "--workspace", "w"], folder, "rubric.yaml")


def is_answered(one: Case, ended: Ended) -> bool:
    lines = ended.err.splitlines()
    return (
        ended.code == 2
        and ended.out == ""
        and 0 < len(lines) <= 41
        and all("; " in line and "Traceback" not in line for line in lines)
        and any(one.file == "." or one.file in line for line in lines)
    )


def unanswered(given: list[Case]) -> dict[str, Ended]:
    ended = run_all([(one.arguments, one.folder) for one in given])
    return {one.name: how for one, how in zip(given, ended, strict=True) if not is_answered(one, how)}


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_answers_a_sample_of_the_table(tmp_path: Path, tiny_model: Path) -> None:
    given = list(cases(tmp_path, tiny_model, most=2))
    assert len(given) >= 40
    assert len({one.name.split(".")[0].split(":")[0].split(" ")[0] for one in given}) == len(ROWS) + 2
    wrong = unanswered(given)
    assert wrong == {}, f"{1 - len(wrong) / len(given):.1%} of {len(given)}"


@pytest.mark.timeout(900)  # a second a command, and what a busy machine makes of it
def test_the_command_answers_one_of_each_kind(tmp_path: Path, tiny_model: Path) -> None:
    given = list(cases(tmp_path, tiny_model, most=1))
    chosen = {one.name.split(".")[0].split(":")[0].split(" ")[0]: one for one in given}
    wrong = unanswered(list(chosen.values()))
    assert wrong == {}
    assert len(chosen) == len(ROWS) + 2
