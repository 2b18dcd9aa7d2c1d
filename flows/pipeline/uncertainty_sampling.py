"""Which comparisons are worth asking first: those that the reward model of the round before is least sure about.

What it knows of people is what they said last time; where it has no opinion, a vote teaches the most (uncertainty
sampling, Lewis and Gale 1994). The desk's policy ``most_informative`` goes by these numbers, and still draws its share
at random, so that figures stay unbiased.
"""

from collections.abc import Sequence
from itertools import combinations
from math import exp

from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.reward import RewardStage
from alignment.records import Artifact, Comparison
from alignment.workspace import Workspace


def doubts(name: str, recipe: Recipe, items: Sequence[Comparison], workspace: Workspace) -> dict[str, float]:
    """Comparison id → the largest doubt about two of its answers, 0 (sure) to 1 (could be either).

    Empty where no round before left a reward model that learned from the stage ``name``, and for answers that stand
    alone.
    """
    items = [item for item in items if len(item.responses) > 1]
    model = _newest(name, recipe, workspace)
    if model is None or not items:
        return {}
    scores = _scores(model, recipe, items)
    return {
        item.id: max(doubt(scores[one.id], scores[other.id]) for one, other in combinations(item.responses, 2))
        for item in items
    }


def doubt(one: float, other: float) -> float:
    """4 p (1 - p), where p is the chance under Bradley and Terry that the first of two rewards wins."""
    chance = 1 / (1 + exp(-max(-50.0, min(50.0, one - other))))
    return 4 * chance * (1 - chance)


def _newest(name: str, recipe: Recipe, workspace: Workspace) -> Artifact | None:
    stages = [stage for stage, reward in of_type(recipe.stages, RewardStage) if reward.preferences == name]
    found = [artifact for stage in stages for artifact in workspace.artifacts(stage)]
    return found[-1] if found else None


def _scores(model: Artifact, recipe: Recipe, items: Sequence[Comparison]) -> dict[str, float]:
    from alignment.chat import render_response
    from alignment.models.reward_model import load_reward_model, score

    reward, tokenizer = load_reward_model(model, recipe.run_settings())
    asked = {one.id: (item.prompt.messages, one) for item in items for one in item.responses}
    sequences = [
        render_response(tokenizer, messages, one.text, finished=one.finished) for messages, one in asked.values()
    ]
    return dict(zip(asked, score(reward, tokenizer, sequences), strict=True))
