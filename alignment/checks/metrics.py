"""What is wrong with an evaluation's metrics, known before anything runs: those that would count nothing."""

from collections.abc import Iterator

from alignment.checks.data import Rows, asked_prompts
from alignment.errors import Fault
from alignment.recipe.graph import of_type
from alignment.recipe.metrics import WITH_REFERENCE, metric_name
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.evaluate import EvaluateStage


def metric_faults(recipe: Recipe, prompts: Rows, own: Rows = ()) -> Iterator[Fault]:
    """The faults of every evaluation's metrics. ``prompts`` are those of ``data.prompts``, ``own`` those of
    ``data.held_out_prompts``, with their rows."""
    held_out = asked_prompts(recipe, prompts, own)
    for name, stage in of_type(recipe.stages, EvaluateStage):
        if not stage.metrics:
            continue
        from alignment.metrics.measure import asked  # the metrics' libraries take their time

        for index, metric in enumerate(stage.metrics):
            at, called = f"stages.{name}.metrics.{index}", metric_name(metric)
            if stage.prompts is not None:
                if isinstance(metric, WITH_REFERENCE):
                    problem = f"{called} compares with a reference, and the prompts of {stage.prompts} have none"
                    yield Fault(problem, "remove it, or ask data.prompts", field=at)
            elif held_out and not any(asked(metric, [prompt for _row, prompt in held_out])):
                wanted = "a reference that it can use" if isinstance(metric, WITH_REFERENCE) else "one of its kinds"
                problem = f"none of the {len(held_out)} held-out prompts has {wanted}, so {called} counts nothing"
                yield Fault(problem, "remove it, or give such prompts", field=at)
