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


CUT_OFF = [
    pair(1, "Red.", "Who saw it?"),
    pair(1, "Red.", "Who saw it?"),  # again
    pair(2, "It is", "Who?").model_copy(update={"chosen_finished": False}),
    pair(3, "Red.", "Who saw").model_copy(update={"rejected_finished": False}),
    pair(4, "Blue.", "Who?"),
    pair(5, "Is it", "Who saw").model_copy(update={"chosen_finished": False, "rejected_finished": False}),
]


@pytest.mark.parametrize("stage", ["dpo", "reward", "classifier"])
@pytest.mark.parametrize(
    ("cut_chosen", "expected", "learned"),
    [
        ("drop", {"duplicates": 3, "cut_chosen": 2, "cut_chosen_kept": 0, "cut_rejected": 1}, 3),
        ("keep", {"duplicates": 3, "cut_chosen": 0, "cut_chosen_kept": 2, "cut_rejected": 2}, 5),
    ],
)
def test_pairs_that_were_cut_off(
    stage: str, cut_chosen: str, expected: dict[str, int], learned: int, base: Artifact, make_context: MakeContext,
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """One duplicate stands in the pairs, and two were left out when their file was read."""
    made = preferences(tmp_path / "pairs", CUT_OFF).model_copy(update={"metrics": {"skipped.duplicate": 2.0}})
    settings: dict[str, Any] = {"cut_chosen": cut_chosen, "max_length": 64, "model": "base", "epochs": 1,
                                "preferences": "preferences", "lora": {"rank": 4, "alpha": 8}}  # fmt: skip
    if stage == "classifier":
        settings |= {"kind": "pair_classifier", "max_length": 128}
    context = make_context(tmp_path / "run", stage, {"base": base, "preferences": made}, settings=settings)
    module = {"classifier": "pair_classifier"}.get(stage, stage)
    with caplog.at_level(logging.WARNING):
        result = import_module(f"alignment.stages.{module}").run(context.recipe.stages[stage], context)
    assert {name: result.metrics[name] for name in expected} == expected
    assert result.metrics.get("pairs", result.metrics.get("rows", 0) / 2) == learned
    said = "and are left out" if cut_chosen == "drop" else ""
    assert f"3 are duplicates and left out, 2 prefer an answer that was cut off {said}".strip() in caplog.text


def test_where_all_chosen_answers_were_cut_off_it_says_what_to_do(
    base: Artifact, make_context: MakeContext, tmp_path: Path
) -> None:
    from alignment.errors import StageError
    from alignment.stages.dpo import run

    made = preferences(tmp_path / "pairs", [CUT_OFF[2], CUT_OFF[5]])
    context = make_context(tmp_path / "run", "dpo", {"base": base, "preferences": made}, settings={"model": "base"})
    with pytest.raises(StageError, match=r"2 prefer an answer that was cut off: raise max_new_tokens .* to keep"):
        run(context.recipe.stages["dpo"], context)


@pytest.mark.parametrize("kind", ["sample", "grpo", "rloo", "ppo"])
def test_prompts(
    kind: str, base: Artifact, make_context: MakeContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A prompt that stands in the file again is counted wherever answers are drawn."""
    rewards = [{"kind": "length", "at_most": 3}]
    small = {"steps": 1, "episodes": 4, "per_prompt": 2, "batch_size": 2, "sampling": {"max_new_tokens": 3},
             "lora": {"rank": 4, "alpha": 8}, "rewards": rewards}  # fmt: skip
    settings = {"kind": kind, "model": "base"} | ({} if kind == "sample" else small)
    context = make_context(tmp_path, "stage", {"base": base}, settings=settings)
    path = context.data["prompts"]
    rows = path.read_text("utf-8").splitlines()
    path.write_text("\n".join([*rows, rows[0], rows[1], rows[0]]) + "\n", "utf-8")
    module = {"rloo": "grpo"}.get(kind, kind)
    with caplog.at_level(logging.WARNING):
        result = import_module(f"alignment.stages.{module}").run(context.recipe.stages["stage"], context)
    assert result.metrics["duplicates"] == 3
    assert "stage: of its rows 3 are duplicates and left out" in caplog.text


def test_the_check_counts_prompts_pairs_and_classifiers_as_their_stages_do(
    make_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """Also as JSON, of every stage, with the zeros."""
    import subprocess
    import sys

    rows = [
        {"prompt": p.prompt[0].content, "chosen": p.chosen, "rejected": p.rejected,
         "chosen_finished": p.chosen_finished, "rejected_finished": p.rejected_finished}
        for p in CUT_OFF
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    changes = {
        "data.preferences": "pairs.jsonl", "stages.preferences": {"kind": "preference_file"},
        "stages.classifier": {"kind": "pair_classifier", "preferences": "preferences", "max_length": 128,
                              "cut_chosen": "keep"},
    }  # fmt: skip
    path = make_recipe(tmp_path, stages=("sft", "responses", "preferences", "dpo"), changes=changes)
    prompts = (tmp_path / "prompts.jsonl").read_text("utf-8").splitlines()
    (tmp_path / "prompts.jsonl").write_text("\n".join([*prompts, prompts[0]]) + "\n", "utf-8")
    command = [sys.executable, "-m", "flows.cli", "check", str(path), "--workspace", str(tmp_path / "space"), "--json"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    counts = json.loads(ended.stdout)["rows"]
    assert counts["responses"] == {"duplicates": 1, "dropped": 0}
    assert counts["sft"] == {"duplicates": 0, "dropped": 0, "end_cut": 0}
    told = {name: (of["duplicates"], of["cut_chosen"], of["cut_chosen_kept"], of["cut_rejected"])
            for name, of in counts.items() if "cut_chosen" in of}  # fmt: skip
    assert told == {"dpo": (1, 2, 0, 1), "classifier": (1, 0, 2, 2)}


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
