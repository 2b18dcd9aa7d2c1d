"""The tournament and the over-optimisation experiment on real tiny policies: one answers as the raters like it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.durable_files import folder_digest
from alignment.evaluation.reward_kl_curve import best_of_kl
from alignment.models.load import load_policy
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.experiments.overoptimisation import OveroptimisationStage
from alignment.recipe.stages.experiments.tournament import TournamentStage
from alignment.records import Artifact, Prompt
from alignment.stage import Progress, StageContext
from alignment.stages.experiments import overoptimisation, tournament
from alignment.stages.experiments.overoptimisation import Overoptimisation
from alignment.stages.experiments.tournament import Tournament
from tests.contexts import stage_context

RUBRIC = """
name: brief
criteria:
  - {name: few_words, text: It is short., measure: words, weight: 1, full_at_most: 2, zero_at: 12}
"""
RATERS = {"rubric": "rubric.yaml", "noise": 0.0}
MakeContext = Callable[..., StageContext]


@pytest.fixture
def make(tmp_path: Path, policies: dict[str, Artifact], recipe: Recipe, prompts: list[Prompt]) -> MakeContext:
    data = {"prompts": tmp_path / "prompts.jsonl", "rubric": tmp_path / "rubric.yaml"}
    data["prompts"].write_text("".join(json.dumps({"prompt": p.messages[0].content}) + "\n" for p in prompts))
    data["rubric"].write_text(RUBRIC)

    def make(folder: str, inputs: dict[str, Artifact] | None = None, report: Any = lambda _: None) -> StageContext:
        for part in ("output", "checkpoints"):
            (tmp_path / folder / part).mkdir(parents=True, exist_ok=True)
        root = tmp_path / folder
        return stage_context("check", recipe, inputs or policies, data, root / "output", root / "checkpoints", report)

    return make


TOURNAMENT = {
    "kind": "tournament", "policies": ["other", "short"], "model": "base", "raters": RATERS, "reward": "reward",
    "best_of": 4, "sampling": {"temperature": 0.0, "max_new_tokens": 10}, "kl_prompts": 3,
}  # fmt: skip


def test_the_best_policy_goes_on(make: MakeContext, policies: dict[str, Artifact], recipe: Recipe) -> None:
    heard: list[Progress] = []
    context = make("played", report=heard.append)
    stage = TournamentStage.model_validate(TOURNAMENT)
    result = tournament.run(stage, context)
    found = Tournament.model_validate_json((context.output / "tournament.json").read_text())
    assert result.kind == "model"
    assert heard[-1].step == heard[-1].total
    assert found.winner == found.standings[0].player == "short"
    assert {one.player for one in found.standings} == {"base", "other", "short", "best_of_n"}
    for one in found.standings:
        if one.rate is not None:
            game = found.games[f"base/{one.player}"]
            assert one.rate.value == pytest.approx(1 - sum(game) / len(game))
            assert len(game) == found.prompts
    by_name = {one.player: one for one in found.standings}
    assert by_name["short"].rate is not None
    assert by_name["short"].rate.low > 0.5
    assert by_name["short"].rating > 1000 > by_name["base"].rating
    assert by_name["best_of_n"].kl == best_of_kl(4)
    assert by_name["best_of_n"].kl_bound
    assert by_name["short"].kl > 0.5
    # The output is the winner, and loads as one.
    winner = Artifact(name="t", kind="model", version=1, digest=folder_digest(context.output), path=str(context.output),
                      key="t")  # fmt: skip
    load_policy(winner, policies["base"], recipe.run_settings())
    weights = "adapter_model.safetensors"
    assert (context.output / weights).read_bytes() == (Path(policies["short"].path) / weights).read_bytes()


def test_a_tournament_goes_on_from_the_answers_it_has(make: MakeContext) -> None:
    stage = TournamentStage.model_validate(TOURNAMENT)
    first, again = make("first"), make("again")
    tournament.run(stage, first)
    shutil.copytree(first.checkpoints, again.checkpoints, dirs_exist_ok=True)
    next(again.checkpoints.glob("kl-*.json")).unlink()
    tournament.run(stage, again)
    assert folder_digest(first.output) == folder_digest(again.output)


def test_halves_share_no_prompt(make: MakeContext) -> None:
    from alignment.rollouts.held_out import held_out_prompts

    context = make("halves")
    parts = {
        part: {p.id for p in held_out_prompts(context, part=part)}  # type: ignore[arg-type]
        for part in ("all", "first half", "second half")
    }
    assert parts["first half"] | parts["second half"] == parts["all"]
    assert not parts["first half"] & parts["second half"]
    assert parts["second half"]


def test_halves_of_a_file_of_its_own(make: MakeContext, tmp_path: Path) -> None:
    """Seven prompts, none of them left out: four in the first half, three in the second."""
    from alignment.errors import StageError
    from alignment.rollouts.held_out import held_out_prompts

    context, file = make("own"), tmp_path / "final.jsonl"
    texts = {f"say gold {n}" for n in range(7)}
    file.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    context.data = {**context.data, "held_out_prompts": file}
    first, second = (held_out_prompts(context, part=part) for part in ("first half", "second half"))  # type: ignore[arg-type]
    assert (len(first), len(second)) == (4, 3)
    assert {prompt.messages[0].content for prompt in first + second} == texts
    file.write_text(json.dumps({"prompt": "say gold"}) + "\n")
    with pytest.raises(StageError, match=r"final.jsonl has too few held-out prompts; add prompts$"):
        held_out_prompts(context, part="second half")


def test_the_way_of_a_policy_is_measured(make: MakeContext, policies: dict[str, Artifact], tmp_path: Path) -> None:
    """A policy whose snapshots are another adapter and then itself: two points, the last of them far and liked."""
    trained = tmp_path / "trained"
    shutil.copytree(policies["short"].path, trained)
    for step, name in ((10, "other"), (20, "short")):
        shutil.copytree(policies[name].path, trained / "snapshots" / f"step-{step:06d}")
    policy = policies["short"].model_copy(update={"name": "ppo", "path": str(trained)})
    stage = OveroptimisationStage.model_validate(
        {"kind": "overoptimisation", "policies": ["ppo"], "model": "base", "reward": "reward", "raters": RATERS,
         "best_of": 8, "max_new_tokens": 10, "per_prompt": 2}
    )  # fmt: skip
    heard: list[Progress] = []
    context = make("measured", policies | {"ppo": policy}, heard.append)
    result = overoptimisation.run(stage, context)
    found = Overoptimisation.model_validate_json((context.output / "overoptimisation.json").read_text())
    # Eight answers of the start, two of each of two snapshots: the end is the second of them.
    assert heard[-1].step == heard[-1].total == found.prompts * (8 + 2 * 2)
    assert [one.step for one in heard] == sorted(one.step for one in heard)
    assert [point.step for point in found.ways["ppo"]] == [10, 20]
    assert [point.step for point in found.ways["best_of_n"]] == [1, 2, 4, 8]
    first, last = found.ways["ppo"]
    assert last.kl > first.kl > 0
    assert last.true.low > first.true.high
    assert found.ways["best_of_n"][0].kl == 0
    assert found.ways["best_of_n"][0].proxy.value == pytest.approx(0, abs=1e-9)
    proxies = [point.proxy.value for point in found.ways["best_of_n"]]
    assert proxies == sorted(proxies)
    assert found.shapes["ppo"].best_step == 20
    assert result.metrics["rise.ppo.low"] > 0
    assert result.metrics["kl.ppo"] == last.kl
    again = make("again", policies | {"ppo": policy})
    shutil.copytree(context.checkpoints, again.checkpoints, dirs_exist_ok=True)
    overoptimisation.run(stage, again)
    assert folder_digest(again.output) == folder_digest(context.output)
