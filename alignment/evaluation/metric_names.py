"""The names of an evaluation's metrics: what a gate may ask for, known before anything runs."""

from collections.abc import Iterator

from alignment.recipe.metrics import Better, better, metric_name
from alignment.recipe.stages.evaluate import EvaluateStage

WIN_RATE_PARTS = (
    "value", "low", "high", "length_controlled", "length_controlled.low", "length_controlled.high"
)  # fmt: skip
INTERVAL_PARTS = ("value", "low", "high")
MODEL_PARTS = ("length", "repetition", "distinct_2", "finished")


def evaluation_judges(stage: EvaluateStage) -> tuple[str, ...]:
    """Who judges the pairs: ``rubric`` where raters are set, ``judge`` where an AI judge is, ``reward`` where a reward
    model is."""
    named = {"rubric": stage.raters, "judge": stage.judge, "reward": stage.reward}
    return tuple(name for name, given in named.items() if given is not None)


def evaluated_models(stage: EvaluateStage) -> tuple[str, ...]:
    """The candidate and its opponents, each once, candidate first."""
    return tuple(dict.fromkeys((stage.model, *stage.against)))


def evaluation_metric_names(stage: EvaluateStage) -> list[str]:
    """Every metric that this evaluation writes, in the order it writes them."""
    return list(_names(stage))


def directions(settings: EvaluateStage) -> dict[str, Better | None]:
    """Which way each metric is better; rewards are all the better the higher."""
    found: dict[str, Better | None] = {metric_name(metric): better(metric) for metric in settings.metrics}
    return found | dict.fromkeys(settings.reward_names(), "higher")


def _names(stage: EvaluateStage) -> Iterator[str]:
    for opponent in dict.fromkeys(stage.against):
        for judge in evaluation_judges(stage):
            yield from (f"win_rate.{opponent}.{judge}.{part}" for part in WIN_RATE_PARTS)
    for reward in stage.reward_names():
        for model in evaluated_models(stage):
            yield from (f"reward.{model}.{reward}.{part}" for part in INTERVAL_PARTS)
        for opponent in evaluated_models(stage)[1:]:
            yield from (f"reward_lead.{opponent}.{reward}.{part}" for part in INTERVAL_PARTS)
    for metric in map(metric_name, stage.metrics):
        for model in evaluated_models(stage):
            yield from (f"metric.{model}.{metric}.{part}" for part in INTERVAL_PARTS)
        for opponent in evaluated_models(stage)[1:]:
            yield from (f"metric_lead.{opponent}.{metric}.{part}" for part in INTERVAL_PARTS)
    if stage.judge is not None:
        yield from ("judge.calibrated", "judge.unread")
    yield "kl"
    for part in MODEL_PARTS:
        yield from (f"{part}.{model}" for model in evaluated_models(stage))
