"""Reward functions as metrics: each model's mean with its interval, and the candidate's lead over each opponent."""

from collections.abc import Mapping, Sequence

from alignment.evaluation.win_rate import Difference, paired_bootstrap, win_rate
from alignment.records import Prompt, Record, Response
from alignment.reward.protocol import Answer, Rewards

RewardScores = Mapping[str, Mapping[str, Sequence[float]]]  # model → reward → one score for each prompt


class Mean(Record):
    """A mean over ``n`` prompts with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int


def score_answers(
    rewards: Rewards, prompts: Sequence[Prompt], answers: Mapping[str, Sequence[Response]]
) -> dict[str, dict[str, list[float]]]:
    """Every model's scores by reward, in the prompts' order. Raises StageError where a reward fails at its task."""
    return {
        model: rewards.score(
            [
                Answer(prompt, response.text, response.tokens, response.finished)
                for prompt, response in zip(prompts, responses, strict=True)
            ]
        )
        for model, responses in answers.items()
    }


def mean(values: Sequence[float]) -> Mean:
    """The mean. Where all values are 0 or 1 the interval is Wilson's, else the bootstrap's (BCa).

    The score interval keeps an honest width where all are right, or all wrong; a bootstrap would claim certainty.
    """
    if set(values) <= {0.0, 1.0}:
        rate = win_rate(values)
        return Mean(value=rate.value, low=rate.low, high=rate.high, n=rate.n)
    lead = difference(values, [0.0] * len(values))
    return Mean(value=lead.value, low=lead.low, high=lead.high, n=lead.n)


def difference(mine: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The mean of ``mine`` minus that of ``theirs``, prompt by prompt.

    Where all values are 0 or 1 the interval is Tango's for paired shares, else the paired bootstrap's; a single prompt
    has no interval but itself.
    """
    if set(mine) | set(theirs) <= {0.0, 1.0}:
        rate = win_rate([(1 + a - b) / 2 for a, b in zip(mine, theirs, strict=True)])
        return Difference(value=2 * rate.value - 1, low=2 * rate.low - 1, high=2 * rate.high - 1, n=rate.n)
    if len(mine) == len(theirs) == 1:
        return Difference(value=mine[0] - theirs[0], low=mine[0] - theirs[0], high=mine[0] - theirs[0], n=1)
    return paired_bootstrap(mine, theirs)


def means(scores: RewardScores) -> dict[str, dict[str, Mean]]:
    """By model and reward."""
    return {model: {name: mean(values) for name, values in found.items()} for model, found in scores.items()}


def leads(scores: RewardScores, candidate: str) -> dict[str, dict[str, Difference]]:
    """The candidate's lead by opponent and reward."""
    return {
        model: {name: difference(scores[candidate][name], values) for name, values in found.items()}
        for model, found in scores.items()
        if model != candidate
    }
