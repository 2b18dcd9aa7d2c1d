"""A training stage on several workers: they share each batch so that their steps are those of one alone.

Every worker goes through the same batches in the same order and takes its share of each, so gradients and logged
figures, averaged over the workers, are the whole batch's up to the order of sums. A batch that does not divide evenly
(an epoch's last one) is not padded and not cut short: with r rows and N workers it falls into gcd(r, N) shares, each of
which N / gcd(r, N) workers do. Every share is equally large and equally often done, so the mean stays the batch's own.
"""

import math
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
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


class LostWorkerError(RuntimeError):
    """Another worker has gone, and with it what was to be done together: nothing is wrong with the work itself."""


@dataclass(frozen=True, slots=True)
class Team:
    """The workers that do a stage together, as one of them sees it: its own part, and what they tell one another.

    Where nothing is said of batches being equal, a worker's part may be smaller than another's, or nothing at all.
    """

    rank: int = 0
    workers: int = 1

    def mine(self, rows: Sequence[Row]) -> Sequence[Row]:
        """This worker's part: the parts in the order of the ranks are ``rows``; they differ by one row at most."""
        size, rest = divmod(len(rows), self.workers)
        first = self.rank * size + min(self.rank, rest)
        return rows[first : first + size + (self.rank < rest)]

    def mine_of(self, rows: Sequence[Row], groups: int, per_group: int) -> Sequence[Row]:
        """The rows that belong to this worker's part of ``groups`` groups of ``per_group`` rows each."""
        places = self.mine(range(groups))
        return rows[places[0] * per_group : (places[-1] + 1) * per_group] if places else rows[:0]

    def dealt(self, rows: Sequence[Row]) -> Sequence[Row]:
        """This worker's rows where they are dealt in turn, as cards are: of sorted rows, each gets long and short."""
        return rows[self.rank :: self.workers]

    def gather(self, rows: Sequence[Row]) -> list[Row]:
        """All workers' rows in the order of their ranks. Every worker has to come here."""
        if self.workers == 1:
            return list(rows)
        found: list[Any] = [None] * self.workers
        with _together():
            torch.distributed.all_gather_object(found, list(rows))
        return [row for part in found for row in part]

    def add(self, tensors: Sequence[torch.Tensor]) -> None:
        """Puts into each tensor the sum of all workers'; their shapes and dtypes have to be equal everywhere."""
        if self.workers == 1 or not tensors:
            return
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            alike = [tensor for tensor in tensors if tensor.dtype == dtype]
            flat = torch.cat([tensor.reshape(-1) for tensor in alike])
            with _together():
                torch.distributed.all_reduce(flat)
            parts = torch.split(flat, [tensor.numel() for tensor in alike])
            for tensor, part in zip(alike, parts, strict=True):
                tensor.copy_(part.view_as(tensor))


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what a broken connection is to torch
        raise LostWorkerError(f"another worker of the stage has gone: {error}") from error


ALONE = Team()


@dataclass(frozen=True, slots=True)
class SharedCollator:
    """A collator that is given a whole batch and collates a worker's share of it."""

    collate: Callable[[Any], Any]
    rank: int
    workers: int

    def __call__(self, rows: Sequence[Any]) -> Any:
        return self.collate(share(rows, self.rank, self.workers))


def share_batches(trainer: Any, batch_size: int, context: StageContext, *, split: bool = True) -> None:
    """Has a transformers trainer deal whole batches of ``batch_size`` rows to every worker, and shares inside them.

    Without ``split`` each worker does the whole of each batch.

    Accelerate's own sharding deals whole batches in turn and fills the last ones up with rows seen before, which makes
    other steps than one worker's.
    """
    if split:
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
