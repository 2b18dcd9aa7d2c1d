"""What is wrong with the losses of a stage that trains on preferences: combinations that make no sense."""

from collections.abc import Iterator

from alignment.data.columns import listed
from alignment.errors import Fault
from alignment.recipe.graph import trains_on_several, workers_of
from alignment.recipe.recipe import Recipe
from alignment.recipe.stages.preference.dpo import SMOOTHED, DpoStage
from alignment.recipe.stages.preference.kto import KtoStage


def dpo_faults(at: str, stage: DpoStage, recipe: Recipe) -> Iterator[Fault]:
    """Faults of DPO's losses, their weights and its reference."""
    losses = stage.losses()
    for loss in sorted({loss for loss in losses if losses.count(loss) > 1}):
        yield Fault(f"{loss} stands twice", "keep one of them, and give its weight in loss_weights", field=f"{at}.loss")
    if {"apo_zero", "apo_down"} <= set(losses):
        problem = "apo_zero makes the chosen answers likelier and apo_down less likely"
        yield Fault(problem, "keep one of them", field=f"{at}.loss")
    if stage.loss_weights is not None and len(losses) == 1:
        problem = f"loss_weights weighs several losses, and {losses[0]} is the only one"
        yield Fault(problem, "remove it, or give a list of losses", field=f"{at}.loss_weights")
    elif len(stage.weights()) != len(losses):
        problem = f"{len(stage.weights())} weights for {len(losses)} losses"
        yield Fault(problem, f"give one for each of {listed(losses)}", field=f"{at}.loss_weights")
    yield from _smoothing_faults(at, stage)
    if stage.refresh_reference is not None:
        yield from _refresh_faults(at, stage, recipe)


def _smoothing_faults(at: str, stage: DpoStage) -> Iterator[Fault]:
    losses = stage.losses()
    if "exo_pair" in losses and stage.label_smoothing == 0:
        problem = "the loss exo_pair takes the logarithm of label_smoothing, which is 0"
        yield Fault(problem, "set it above 0, such as 0.001", field=f"{at}.label_smoothing")
    if stage.label_smoothing and not set(SMOOTHED) & set(losses):
        problem = f"{listed(losses)} does not read label_smoothing"
        yield Fault(problem, f"leave it at 0, or take the loss {SMOOTHED[0]}", field=f"{at}.label_smoothing")


def _refresh_faults(at: str, stage: DpoStage, recipe: Recipe) -> Iterator[Fault]:
    field = f"{at}.refresh_reference"
    if stage.losses() == ("sft",):
        yield Fault("the loss sft has no reference to refresh", "remove it, or add a loss that has one", field=field)
    if recipe.resources.sharding != "none" and trains_on_several(recipe.resources, stage):
        problem = f"with {recipe.resources.sharding} each worker holds a part of policy and reference"
        yield Fault(problem, "set resources.sharding: none, or remove it", field=field)


def kto_faults(at: str, stage: KtoStage, recipe: Recipe) -> Iterator[Fault]:
    """Faults of KTO's batches."""
    workers = workers_of(recipe.resources, stage)
    if stage.estimates_kl() and stage.batch_size // workers < 2:
        each = f", and {workers} workers share one of {stage.batch_size}" if workers > 1 else ""
        problem = f"the KL of a batch needs two answers or more{each}"
        yield Fault(problem, f"set it to {2 * workers} or more", field=f"{at}.batch_size")
