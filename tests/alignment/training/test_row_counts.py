"""Rows that vanish or teach nothing are in a stage's metrics and its log."""

import json
import logging
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from alignment.data.jsonl import write_records
from alignment.digests import pair_id, prompt_id
from alignment.records import Artifact, Message, PreferencePair
from alignment.stage import StageContext

MakeContext = Callable[..., StageContext]
LONG = "the cat saw the dog and the owl today"


def pair(number: int, chosen: str, rejected: str) -> PreferencePair:
    prompt = (Message(role="user", content=f"What colour is the cat {number}?"),)
    return PreferencePair(
        id=pair_id(prompt, chosen, rejected), prompt_id=prompt_id(prompt), prompt=prompt, chosen=chosen,
        rejected=rejected,
    )  # fmt: skip


def preferences(folder: Path, pairs: Sequence[PreferencePair]) -> Artifact:
    folder.mkdir()
    write_records(folder / "pairs.jsonl", pairs)
    write_records(folder / "held_out.jsonl", [pair(100, "Red.", "Blue."), pair(101, "Red.", "Who?")])
    return Artifact(name="preferences", kind="preferences", version=1, digest="0", path=str(folder), key="k")


PAIRS = [
    *(pair(number, "Red.", "Who saw it?") for number in range(4)),
    pair(4, f"{LONG} red", f"{LONG} blue"),  # alike up to the last word
    pair(5, "It is red.", "It is red."),
    pair(6, "Red.", "Blue."),
    pair(6, "Blue.", "Red."),
]


@pytest.mark.parametrize(
    ("stage", "settings", "expected"),
    [
        # 18 tokens of prompt, and 3 of an answer: the long ones are cut where they are still alike
        ("dpo", {"max_length": 27}, {"pairs": 6, "identical": 2, "opposite": 2, "dropped": 0}),
        ("dpo", {"max_length": 64}, {"pairs": 7, "identical": 1, "opposite": 2, "end_cut": 0}),
        ("reward", {"max_length": 64}, {"pairs": 7, "identical": 1, "opposite": 2}),
        ("classifier", {"kind": "pair_classifier", "max_length": 128}, {"rows": 14, "identical": 1, "opposite": 2}),
    ],
    ids=str,
)
def test_pairs(
    stage: str, settings: dict[str, Any], expected: dict[str, int], base: Artifact, make_context: MakeContext,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    inputs = {"base": base, "preferences": preferences(tmp_path / "pairs", PAIRS)}
    settings = {"model": "base", "preferences": "preferences", "epochs": 1, "lora": {"rank": 4, "alpha": 8}} | settings
    context = make_context(tmp_path / "run", stage, inputs, settings=settings)
    module = {"classifier": "pair_classifier"}.get(stage, stage)
    with caplog.at_level(logging.WARNING):
        result = import_module(f"alignment.stages.{module}").run(context.recipe.stages[stage], context)
    assert {name: result.metrics[name] for name in expected} == expected
    assert f"{expected['identical']} have identical answers and are left out, 2 are contradicted" in caplog.text


def test_demonstrations(
    base: Artifact, make_context: MakeContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from alignment.stages.sft import run

    context = make_context(tmp_path, "sft", {"base": base}, settings={"max_length": 36, "epochs": 1})
    path = context.data["demonstrations"]
    rows = path.read_text("utf-8").splitlines()
    long = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": " ".join([LONG] * 5)}]
    path.write_text("\n".join([*rows, rows[0], rows[1], json.dumps({"messages": long})]) + "\n", "utf-8")
    with caplog.at_level(logging.WARNING):
        result = run(context.recipe.stages["sft"], context)
    figures = {name: result.metrics[name] for name in ("demonstrations", "duplicates", "dropped", "end_cut")}
    assert figures == {"demonstrations": 13, "duplicates": 2, "dropped": 0, "end_cut": 1}
    assert "2 are duplicates and left out, 1 are cut before an answer's end" in caplog.text


def test_the_check_counts_by_the_same_rule(make_recipe: Callable[..., Path], tmp_path: Path) -> None:
    from alignment.checks.row_counts import row_notices
    from alignment.recipe.resolved import resolve_recipe

    pairs = [
        {"prompt": p.prompt[0].content, "chosen": p.chosen, "rejected": p.rejected}
        for p in PAIRS
        if p.chosen != p.rejected
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs), "utf-8")
    changes = {
        "data.preferences": "pairs.jsonl", "stages.sft.max_length": 36,
        "stages.preferences": {"kind": "preference_file"}, "stages.dpo.max_length": 27,
    }  # fmt: skip
    path = make_recipe(tmp_path, stages=("sft", "dpo"), changes=changes)
    rows = (tmp_path / "demonstrations.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "demonstrations.jsonl").write_text("\n".join([*rows, rows[0]]) + "\n", "utf-8")
    sft, dpo = row_notices(resolve_recipe(path))
    assert sft == "sft: of its rows 1 are duplicates and left out"
    assert dpo.startswith("dpo: of its rows 1 have identical answers and are left out, 2 are contradicted by another")
