"""What every training stage does first: seeds, and the kernels that it computes with."""

from pathlib import Path

import torch
import transformers

from alignment.models.device import pick_device
from alignment.recipe.resources import Resources
from alignment.recipe.run_settings import RunSettings
from alignment.stage import StageContext


def seed_everything(run: RunSettings) -> None:
    """Seeds every generator: also a fresh adapter's weights are drawn, long before training starts."""
    transformers.set_seed(run.seed)
    choose_kernels(run.resources)


def choose_kernels(resources: Resources) -> None:
    """On a GPU, kernels that sum in one order, or where the recipe wants them the faster others.

    With the first a run repeats as it does on a processor. Attention's gradient is left as it is: torch makes it so
    only where it refuses every operation that it cannot make so, which sampling needs.
    """
    if pick_device(resources).type == "cuda":
        torch.use_deterministic_algorithms(resources.deterministic, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time


def demonstrations_file(context: StageContext, made_by: str | None) -> Path:
    """The demonstrations of the stage ``made_by``; None: those of the recipe's data."""
    if made_by is None:
        return context.data["demonstrations"]
    return Path(context.inputs[made_by].path) / "demonstrations.jsonl"
