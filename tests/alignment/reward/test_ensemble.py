"""An ensemble of reward models: the lower bound by hand, real models of two seeds, and what is wrong with one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.checks.graph import wiring_faults
from alignment.checks.rewards import reward_faults
from alignment.models.reward_model import load_reward_model
from alignment.recipe.graph import stage_inputs
from alignment.recipe.recipe import Recipe
from alignment.records import Message, Prompt
from alignment.reward.factory import build_rewards, lower_bound, scoring
from alignment.reward.protocol import RewardInput
from alignment.stages.reward import run
from tests.alignment.conftest import artifact_of

PROMPT = Prompt(id="1", messages=(Message(role="user", content="What colour is the cat?"),))
ANSWERS = [RewardInput(PROMPT, text, 3) for text in ("Red.", "The cat.", "Who saw it?")]


@pytest.mark.parametrize(
    ("deviations", "bounds"),
    [
        (0.0, [2.0, 5.0, -1.0]),
        # Deviations of (1, 2, 3), (5, 5, 5) and (-3, -1, 1), divided by n - 1: 1, 0 and 2.
        (1.0, [1.0, 5.0, -3.0]),
        (0.5, [1.5, 5.0, -2.0]),
    ],
)
def test_the_lower_bound_by_hand(deviations: float, bounds: list[float]) -> None:
    models = [lambda _answers, row=row: row for row in ([1.0, 5.0, -3.0], [2.0, 5.0, -1.0], [3.0, 5.0, 1.0])]
    assert lower_bound(models, deviations)(ANSWERS) == pytest.approx(bounds)


def test_models_of_two_seeds(base: Any, sft: Any, preferences: Any, make_context: Any, tmp_path: Path) -> None:
    """Two stages that differ in their seed alone make two models; the ensemble is what they say, by hand."""
    inputs = {"base": base, "sft": sft, "preferences": preferences}
    for name, seed in (("one", 1), ("two", 2)):
        settings = {"kind": "reward", "model": "sft", "preferences": "preferences", "seed": seed, "batch_size": 4,
                    "learning_rate": 1e-3, "max_length": 64, "lora": {"rank": 4, "alpha": 8}}  # fmt: skip
        context = make_context(tmp_path / name, name, inputs, settings=settings)
        context.run = context.recipe.run_settings(context.recipe.stages[name])
        assert context.run.seed == seed
        run(context.recipe.stages[name], context)
        inputs[name] = artifact_of(name, "reward_model", context.output, {"base": base})
    rewards = [{"kind": "ensemble", "models": ["one", "two"], "deviations": 2.0}]
    stage = {"kind": "grpo", "model": "sft", "rewards": rewards}
    context = make_context(tmp_path / "grpo", "policy", inputs, settings=stage)
    found = build_rewards(context.recipe.stages["policy"].rewards, context).score(ANSWERS)["ensemble"]
    one, two = (scoring(*load_reward_model(inputs[name], context.run))(ANSWERS) for name in ("one", "two"))
    assert one != pytest.approx(two)
    # Of two numbers the sample's deviation is their distance over the root of 2.
    expected = [(a + b) / 2 - 2 * abs(a - b) / 2**0.5 for a, b in zip(one, two, strict=True)]
    assert found == pytest.approx(expected, abs=1e-5)
    shutil.rmtree(tmp_path / "grpo")


def faults(rewards: list[dict[str, Any]], **stages: dict[str, Any]) -> list[str]:
    model = {"kind": "reward", "preferences": "pairs"}
    made = {"pairs": {"kind": "preference_file"}, "one": model | {"seed": 1}, "two": model | {"seed": 2}} | stages
    policy = {"kind": "grpo", "model": "base", "rewards": rewards}
    recipe = Recipe.model_validate({"name": "t", "model": {"base": "x"}, "stages": made | {"policy": policy}})
    assert stage_inputs(recipe.stages["policy"])["rewards"] == tuple(rewards[0]["models"])
    return [str(fault) for fault in [*wiring_faults(recipe), *reward_faults(recipe, {}, [])]]


def test_what_is_wrong_with_an_ensemble() -> None:
    ensemble: Callable[..., list[dict[str, Any]]] = lambda *names: [{"kind": "ensemble", "models": names}]  # noqa: E731
    assert faults(ensemble("one", "two")) == []
    (line,) = faults(ensemble("one", "two"), two={"kind": "reward", "preferences": "pairs", "seed": 1})
    assert line == ("stages.policy.rewards.0.models: one and two have the same settings and seed, so they are one "
                    "model; give stages.two a seed of its own")  # fmt: skip
    (line,) = faults(ensemble("one", "three"))
    assert line.startswith("stages.policy.rewards: no stage three")
    (line,) = faults(ensemble("one", "pairs"))
    assert line.startswith("stages.policy.rewards: pairs makes preferences and held-out prompts, not a reward model")
    for names in (("one",), ("one", "one")):
        with pytest.raises(ValueError, match=r"at least 2 items|stands twice"):
            faults(ensemble(*names))
