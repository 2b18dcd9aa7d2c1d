"""The learning rate over a run: one schedule for every trainer.

The first step of a warm-up already learns: step 0 of ``w`` has 1/w of the learning rate and not 0 of it, where
transformers' schedules waste a step (and their "constant" has no warm-up at all).
"""

import math
import types
from typing import Any

import torch


def learning_rate_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """What the learning rate is multiplied by at optimizer step ``step``, counted from 0.

    Args:
        total: optimizer steps of the run.
        warmup: steps over which it rises in a line from 1/warmup to 1.
        schedule: what follows: "linear" and "cosine" fall to 0 after the last step, "constant" stays at 1.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if schedule == "linear":
        return max(0.0, 1 - done)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done))) if schedule == "cosine" else 1.0


def warmup_steps(share: float, total: int) -> int:
    """Steps of a warm-up that takes a share of ``total`` steps, rounded up."""
    return math.ceil(share * total)


def use_schedule(trainer: Any, *, warmup: float, schedule: str) -> None:
    """Has a transformers trainer follow :func:`learning_rate_factor`; ``warmup`` is a share of its steps."""

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        if self.lr_scheduler is None:
            first = warmup_steps(warmup, num_training_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                self.optimizer if optimizer is None else optimizer,
                lambda step: learning_rate_factor(step, num_training_steps, first, schedule),
            )
        return self.lr_scheduler

    trainer.create_scheduler = types.MethodType(create_scheduler, trainer)
