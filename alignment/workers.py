"""A training stage on several workers: they share each batch so that their steps are those of one alone.

Every worker goes through the same batches in the same order and takes its share of each, so gradients and logged
figures, averaged over the workers, are the whole batch's up to the order of sums. A batch that does not divide evenly
(an epoch's last one) is not padded and not cut short: with r rows and N workers it falls into gcd(r, N) shares, each of
which N / gcd(r, N) workers do. Every share is equally large and equally often done, so the mean stays the batch's own.
"""

import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from alignment.stage import StageContext

Row = TypeVar("Row")


def share(rows: Sequence[Row], rank: int, workers: int) -> Sequence[Row]:
    """A worker's rows of a batch: never none, as many as every other worker's."""
    shares = math.gcd(len(rows), workers)
    size = len(rows) // shares
    first = rank % shares * size
    return rows[first : first + size]


@dataclass(frozen=True, slots=True)
class SharedCollator:
    """A collator that is given a whole batch and collates a worker's share of it."""

    collate: Callable[[Any], Any]
    rank: int
    workers: int

    def __call__(self, rows: Sequence[Any]) -> Any:
        return self.collate(share(rows, self.rank, self.workers))


def share_batches(trainer: Any, batch_size: int, context: StageContext) -> None:
    """Has a transformers trainer deal whole batches of ``batch_size`` rows to every worker, and shares inside them.

    Accelerate's own sharding deals whole batches in turn and fills the last ones up with rows seen before, which makes
    other steps than one worker's.
    """
    trainer.data_collator = SharedCollator(trainer.data_collator, context.rank, context.workers)

    def get_train_dataloader(self: Any) -> Any:
        loader = self._get_dataloader(
            dataset=self.train_dataset,
            description="Training",
            batch_size=batch_size,
            sampler_fn=self._get_train_sampler,
            is_training=True,
        )
        sampler = loader.batch_sampler  # accelerate's shard of the batches: here it passes all of them on
        sampler.num_processes, sampler.process_index, sampler.even_batches = 1, 0, False
        return loader

    trainer.get_train_dataloader = types.MethodType(get_train_dataloader, trainer)


def wait_for_workers(context: StageContext) -> None:
    """Returns once every worker of the stage has come here."""
    if context.workers > 1:
        torch.distributed.barrier()
