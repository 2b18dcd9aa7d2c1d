"""Batches of unequal size make a step in which each of their rows, or tokens, counts the same.

A trainer averages the losses of the batches that it accumulates, and those of its workers. Where an epoch's last batch
is smaller, or a loss is a mean over tokens, a mean of means weighs some more than others: of 21 pairs in steps of two
batches of four, the last one's four would count a quarter of what its one does. So each batch's loss is weighed by what
it is a mean of.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import Any, TypeAlias

import torch

from alignment.stage import StageContext

Units: TypeAlias = Callable[[Mapping[str, Any]], int]
"""What a collated batch's loss is a mean over, as a number: of its rows, or of the tokens that are learned."""
SHARES, WEIGHT = "batch_shares", "batch_weight"  # what stands beside a batch's tensors
TOKEN_WEIGHT = "token_weight"  # by what to multiply a term that is a mean over tokens, beside others over rows


def row_count(batch: Mapping[str, Any]) -> int:
    """The rows of a batch; of pairs both answers."""
    return len(batch["input_ids"])


def label_count(batch: Mapping[str, Any]) -> int:
    """The labels of a batch that a causal model predicts: not the first of a row."""
    return int((batch["labels"][..., 1:] != -100).sum())


@dataclass(frozen=True, slots=True)
class CountingCollator:
    """Says with each batch into how many shares it falls among the workers; it is given the whole one."""

    collate: Callable[[Any], Any]
    workers: int

    def __call__(self, rows: Sequence[Any]) -> Any:
        batch = self.collate(rows)
        batch[SHARES] = gcd(len(rows), self.workers)
        return batch


def weigh_batches(
    trainer: Any, units: Units, context: StageContext, *, shared: bool = True, token_units: Units | None = None
) -> None:
    """Has a transformers trainer weigh the loss of each batch by its part of the step's units.

    Where batches are ``shared``, one that does not divide evenly is done by several workers in part or in whole
    (:mod:`alignment.distributed.workers`), and each time counts as much less.

    A loss may have terms that are means over other units, ``token_units``: the trainer finds in its inputs, under
    ``TOKEN_WEIGHT``, what to multiply them by.
    """
    trainer.data_collator = CountingCollator(trainer.data_collator, context.workers if shared else 1)
    trainer.model_accepts_loss_kwargs = False  # no sum over all labels of a step, which counts a share twice
    get_batches, compute_loss = trainer.get_batch_samples, trainer.compute_loss

    def get_batch_samples(self: Any, *arguments: Any, **options: Any) -> Any:
        batches, items = get_batches(*arguments, **options)
        shares = [batch.pop(SHARES) for batch in batches]
        weights = weights_of(self, units, batches, shares)
        more: Sequence[float | None] = [None] * len(batches)
        if token_units is not None:
            more = weights_of(self, token_units, batches, shares)
        for batch, weight, token_weight in zip(batches, weights, more, strict=True):
            batch[WEIGHT] = weight
            if token_weight is not None:
                batch[TOKEN_WEIGHT] = token_weight / weight  # the whole loss is weighed once more
        return batches, items

    def weights_of(self: Any, counted: Units, batches: Sequence[Any], shares: Sequence[int]) -> list[float]:
        counts = [float(counted(batch) * share) for batch, share in zip(batches, shares, strict=True)]
        total = self.accelerator.gather(torch.tensor([sum(counts)], device=self.args.device)).mean().item()
        return [count * len(batches) / max(total, 1.0) for count in counts]

    def weighed_loss(self: Any, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        weight = inputs.pop(WEIGHT)
        return compute_loss(model, inputs, *arguments, **options) * weight

    trainer.get_batch_samples = types.MethodType(get_batch_samples, trainer)
    trainer.compute_loss = types.MethodType(weighed_loss, trainer)
