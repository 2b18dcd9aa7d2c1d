"""The recipe from nothing, whole, with a model of a few thousand parameters: made, promoted, spoken with, kept."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rlhf = Callable[..., Any]
TINY = (
    "stages.tokenizer.vocabulary=320", "stages.pretrain.architecture={layers: 1, width: 32, heads: 2}",
    "stages.pretrain.epochs=0.05", "stages.pretrain.evaluate_every=2", "stages.sft.epochs=0.3",
    "stages.responses.limit=6", "stages.responses.sampling.max_new_tokens=8", "stages.dpo.cut_chosen=keep",
    "stages.evaluation.limit=4", "stages.evaluation.kl_prompts=2", "stages.evaluation.sampling.max_new_tokens=8",
    "gate.conditions=[{metric: kl, below: 1000}]", "model.dtype=float32",
)  # fmt: skip
ADAPTERS = ("stages.sft.lora={rank: 4}", "stages.dpo.lora={rank: 4}")


def run(rlhf: Rlhf, root: Path, *more: str) -> dict[str, Any]:
    options = [word for override in (*TINY, *more) for word in ("--set", override)]
    ended = rlhf("run", "from_scratch", "-w", root, *options)
    assert (ended.code, ended.err) == (0, "")
    newest = max(root.glob("runs/from_scratch-*/report.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    report = json.loads(newest.read_text("utf-8"))
    return {stage["name"]: stage for stage in report["stages"]}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_from_nothing_is_trained_promoted_and_used(rlhf: Rlhf, tmp_path: Path) -> None:
    made = run(rlhf, tmp_path)
    assert "base" not in made
    assert {stage["status"] for stage in made.values()} == {"completed"}
    assert made["pretrain"]["metrics"]["perplexity.low"] < made["pretrain"]["metrics"]["perplexity"]
    said = rlhf("generate", "policy@champion", "-p", "What colour is the cat?", "--max-new-tokens", 4, "-w", tmp_path)
    assert said.code == 0
    again = run(rlhf, tmp_path)
    assert {stage["cached"] for name, stage in again.items() if name != "register"} == {True}

    # Adapters on the model that a stage made: kept with their version, and found again from there.
    adapted = run(rlhf, tmp_path, *ADAPTERS)
    assert [name for name, stage in adapted.items() if stage["cached"]] == ["tokenizer", "pretrain"]
    newest = max((tmp_path / "registry" / "policy").glob("v*"), key=lambda path: int(path.name.removeprefix("v")))
    config = json.loads((newest / "adapter_config.json").read_text("utf-8"))
    assert Path(config["base_model_name_or_path"]).parent.name == "pretrain"
    assert json.loads((newest / "base.json").read_text("utf-8"))["base"] == "stage:pretrain"
    said = rlhf("generate", str(newest), "-p", "What colour is the cat?", "--max-new-tokens", 4, "-w", tmp_path)
    assert said.code == 0
    card = (newest / "README.md").read_text("utf-8")
    assert "the stage pretrain of this recipe" in card
    assert "base_model:" not in card


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_an_adapter_on_the_next_model_is_not_one_on_the_first(rlhf: Rlhf, tmp_path: Path) -> None:
    """A stage in between trains all weights: refused before anything is made."""
    options = [word for override in (*TINY, ADAPTERS[1]) for word in ("--set", override)]
    ended = rlhf("check", "from_scratch", "-w", tmp_path, *options)
    assert ended.code == 2
    assert "sft makes whole weights, and dpo would train an adapter, which is kept on base alone" in ended.err


@pytest.mark.slow
def test_a_model_that_reads_on_has_its_lineage_and_is_counted_once(
    make_recipe: Callable[..., Path], rlhf: Rlhf, tmp_path: Path
) -> None:
    """The base of a recipe, read on by a stage of its own: what follows stands on what that stage made."""
    path = make_recipe(tmp_path / "recipe", stages=("sft", "evaluation"), changes={
        "stages.evaluation.model": "sft", "stages.evaluation.against": ["base"], "stages.evaluation.reward": None,
        "stages.evaluation.limit": 4, "stages.evaluation.kl_prompts": 1, "data.corpus": "corpus.txt",
        "gate.conditions": [{"metric": "kl", "below": 1000}],
    })  # fmt: skip
    (path.parent / "corpus.txt").write_text("\n\n".join(f"The {n} cats saw {n + 1} dogs." for n in range(60)), "utf-8")
    recipe = json.loads(path.read_text("utf-8"))
    reads_on = {"kind": "pretrain", "model": "base", "max_length": 32, "batch_size": 4, "held_out": 0.2}
    recipe["stages"] = {"pretrain": reads_on, **recipe["stages"]}
    path.write_text(json.dumps(recipe), "utf-8")

    space = tmp_path / "workspace"
    for again in (False, True):
        ended = rlhf("run", path, "-w", space)
        assert (ended.code, ended.err) == (0, ""), ended.out
        lineage = json.loads((space / "registry" / "policy" / "v1" / "lineage.json").read_text("utf-8"))["lineage"][
            "nodes"
        ]
        inputs = {node["name"]: {ref["name"] for ref in node["inputs"].values()} for node in lineage}
        assert set(inputs) == {"base", "pretrain", "sft", "evaluation"}
        assert (inputs["pretrain"], inputs["sft"]) == ({"base"}, {"pretrain"})
        runs = sorted(space.glob("runs/tiny-*/report.json"))
        report = json.loads(runs[-1].read_text("utf-8"))
        records = [json.loads(one.read_text("utf-8")) for one in space.glob("artifacts/*/v1/artifact.json")]
        assert report["cost_with_cached"]["tokens_trained"] == sum(record["tokens_trained"] for record in records)
        assert set(report["curves"]) <= {"pretrain", "sft"}
        assert all(stage["cached"] for stage in report["stages"] if stage["name"] in recipe["stages"]) is again
