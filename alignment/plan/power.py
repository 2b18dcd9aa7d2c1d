"""What a recipe's gate can see: how many held-out prompts it asks, and how many a true win rate needs to be shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from alignment.checks.data import RecipeData
from alignment.data.split import opening, part_of, split_by_digest
from alignment.evaluation.gate import wanted_of
from alignment.evaluation.looks import LEVEL, HeldOutSet, held_out_set, level_of
from alignment.evaluation.win_rate import EVEN
from alignment.evaluation.win_test import power, prompts_needed
from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import Prompt

RATES = (0.55, 0.6, 0.65)
POWER = 0.8


@dataclass(frozen=True, slots=True)
class Sight:
    """A true win rate: with what chance the gate's prompts show it, and how many do with a chance of 80 %; no ties."""

    rate: float
    power: float
    prompts_needed: int


@dataclass(frozen=True, slots=True)
class GatePlan:
    """A gate's next look: which one at its ``prompts``, by runs that spend the level (``deployed``) or not."""

    prompts: int
    look: int
    by: str  # "by hand", "deployed" or "every run"
    level: float
    sights: tuple[Sight, ...]


def plan_gate(recipe: Recipe, data: RecipeData, number: Callable[[HeldOutSet], int]) -> list[GatePlan]:
    """The next look of a recipe's gate, for each way in which runs start that is held to another level.

    ``number`` says which look at a set the next one is. Empty where no gate asks for a win rate above a half: what a
    mean of scores needs depends on how the scores scatter, which nobody knows before.
    """
    evaluation = None if recipe.gate is None else dict(of_type(recipe.stages, EvaluateStage)).get(
        recipe.gate.evaluation
    )  # fmt: skip
    if recipe.gate is None or evaluation is None:
        return []
    wanted = [one for condition in recipe.gate.conditions for one in wanted_of(condition, evaluation)]
    claims = [one for one in wanted if not isinstance(one, str) and one.claims and one.metric.startswith("win_rate.")]
    prompts = _asked(evaluation, data, recipe.data.held_out)
    if not prompts or not any(one.threshold >= EVEN for one in claims):
        return []
    look = number(held_out_set(map(opening, prompts)))
    spent = level_of(look)
    levels = {
        "deployed": {"by hand": LEVEL, "deployed": spent},
        "always": {"every run": spent},
        "never": {"every run": LEVEL},
    }[recipe.gate.looks]
    return [GatePlan(len(prompts), look, by, level, _sights(len(prompts), level)) for by, level in levels.items()]


def _sights(prompts: int, level: float) -> tuple[Sight, ...]:
    return tuple(Sight(rate, power(prompts, rate, level), prompts_needed(rate, level, POWER)) for rate in RATES)


def _asked(evaluation: EvaluateStage, data: RecipeData, share: float) -> Sequence[Prompt]:
    """The held-out prompts that an evaluation will ask."""
    if evaluation.prompts is None and data.held_out_prompts:
        held_out = [prompt for _row, prompt in data.held_out_prompts]
    else:
        held_out = _share(evaluation, data, share)
    chosen = part_of([prompt.id for prompt in held_out], evaluation.part, evaluation.limit)
    return [prompt for prompt in held_out if prompt.id in chosen]


def _share(evaluation: EvaluateStage, data: RecipeData, share: float) -> list[Prompt]:
    if evaluation.prompts is None:
        everything = [prompt for _row, prompt in data.prompts]
    else:
        pairs = {pair.prompt_id: pair for pair in data.preferences.pairs}
        everything = [Prompt(id=name, messages=pair.prompt, kind=pair.kind) for name, pair in pairs.items()]
    return split_by_digest(everything, share, key=opening)[1]
