"""Reward functions as metrics, beside the others: the mean over prompts of what each gives an answer."""

from collections.abc import Mapping, Sequence

from alignment.evaluation.bootstrap import Sums, averaged
from alignment.evaluation.metric_names import evaluated_models
from alignment.recipe.metrics import metric_name
from alignment.recipe.stages.environment import ENVIRONMENT
from alignment.recipe.stages.evaluate import EvaluateStage
from alignment.records import EpisodeResponse, Prompt, Response
from alignment.reward.protocol import RewardInput, Rewards

RewardScores = Mapping[str, Mapping[str, Sequence[float]]]  # model → reward → one score for each prompt


def score_answers(
    rewards: Rewards, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Response]]
) -> dict[str, dict[str, list[float]]]:
    """Every model's scores by reward, in the prompts' order, the environment's last where answers are episodes' ends.

    Raises StageError where a reward fails at its task.
    """
    found = {}
    for model, responses in answers.items():
        inputs = [
            RewardInput(prompt, response.text, response.tokens, response.finished)
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        found[model] = rewards.score(inputs)
        episodes = [response.reward for response in responses if isinstance(response, EpisodeResponse)]
        if len(episodes) == len(responses):
            found[model][ENVIRONMENT] = episodes
    return found


def all_sums(
    settings: EvaluateStage, sums: Mapping[str, Mapping[str, Sums]], scores: RewardScores
) -> dict[str, dict[str, Sums]]:
    """Metrics and reward functions as one, by model and name, in the order of the settings."""
    binary = {
        name: all(set(of_model[name]) <= {0.0, 1.0} for of_model in scores.values()) for name in settings.reward_names()
    }
    found: dict[str, dict[str, Sums]] = {}
    for model in evaluated_models(settings):
        own = sums.get(model, {})
        found[model] = {name: own[name] for name in map(metric_name, settings.metrics) if name in own}
        rewarded = scores.get(model, {})
        found[model] |= {name: averaged(values, binary=binary[name]) for name, values in rewarded.items()}
    return found
