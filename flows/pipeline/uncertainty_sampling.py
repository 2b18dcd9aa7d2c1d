"""Which comparisons are worth asking first: those that the reward models of the round before are least sure about.

What they know of people is what people said last time. Of one model, the doubt is about the vote itself (uncertainty
sampling, Lewis and Gale 1994). Of several, which differ by their seeds, it is about what a vote would settle: where all
of them expect a toss-up there is nothing to learn, and where they contradict each other there is (Houlsby et al. 2011).
The desk's policy ``most_informative`` goes by these numbers, and still draws its share at random, so that figures stay
unbiased.
"""

from collections.abc import Sequence
from itertools import combinations
from math import exp, log2

from alignment.recipe.graph import of_type
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.reward import RewardStage
from alignment.records import Artifact, Comparison
from alignment.workspace import Workspace


def doubts(name: str, recipe: Recipe, items: Sequence[Comparison], workspace: Workspace) -> dict[str, float]:
    """Comparison id → the largest doubt about two of its answers, 0 to 1.

    Of the newest reward model of each stage that learns from the stage ``name``; empty where no round before left one.
    """
    models = _newest(name, recipe, workspace)
    if not models or not items:
        return {}
    scores = [_scores(model, recipe, items) for model in models]
    return {
        item.id: max(
            doubt([by_answer[one.id] - by_answer[other.id] for by_answer in scores])
            for one, other in combinations(item.responses, 2)
        )
        for item in items
    }


def doubt(margins: Sequence[float]) -> float:
    """What a vote on two answers may teach, by each model's reward of the first less that of the second.

    Under Bradley and Terry each model has a chance p that the first wins. One model: 4 p (1 - p). Several: the
    information, in bits, that the vote has about which of them is right: the entropy of the mean chance less the mean
    of the entropies.
    """
    chances = [1 / (1 + exp(-max(-50.0, min(50.0, margin)))) for margin in margins]
    if len(chances) == 1:
        return 4 * chances[0] * (1 - chances[0])
    together = _entropy(sum(chances) / len(chances))
    return max(0.0, together - sum(map(_entropy, chances)) / len(chances))


def _entropy(chance: float) -> float:
    """Of a coin, in bits."""
    return -sum(p * log2(p) for p in (chance, 1 - chance) if p > 0)


def _newest(name: str, recipe: Recipe, workspace: Workspace) -> list[Artifact]:
    stages = [stage for stage, reward in of_type(recipe.stages, RewardStage) if reward.preferences == name]
    return [found[-1] for stage in stages if (found := list(workspace.artifacts(stage)))]


def _scores(model: Artifact, recipe: Recipe, items: Sequence[Comparison]) -> dict[str, float]:
    from alignment.chat import render_response
    from alignment.models.reward_model import load_reward_model, score

    reward, tokenizer = load_reward_model(model, recipe.run_settings())
    asked = {one.id: (item.prompt.messages, one) for item in items for one in item.responses}
    sequences = [
        render_response(tokenizer, messages, one.text, finished=one.finished) for messages, one in asked.values()
    ]
    return dict(zip(asked, score(reward, tokenizer, sequences), strict=True))
