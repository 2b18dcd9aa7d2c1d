"""How batches of unequal size make a step: the weights of their losses, by hand."""

import types
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from alignment.distributed.accumulation import CountingCollator, label_count, row_count, weigh_batches
from alignment.distributed.workers import SharedCollator


class Team:
    """Workers that each hold a step's batches; what one of them gathers is what all of them hold."""

    def __init__(self, workers: int, batches: list[list[float]], *, shared: bool = True) -> None:
        self.steps, self.totals = [], []
        for _pass in range(2):  # in the first each says what it has, in the second each learns what all have
            self.steps = [self._worker(rank, workers, batches, shared) for rank in range(workers)]

    def _worker(self, rank: int, workers: int, batches: list[list[float]], shared: bool) -> list[tuple[float, int]]:
        def collate(rows: Any) -> dict[str, Any]:
            return {"input_ids": list(rows)}

        def gather(total: torch.Tensor) -> torch.Tensor:
            self.totals.append(total)
            return torch.cat(self.totals[:workers])

        trainer = SimpleNamespace(
            data_collator=SharedCollator(collate, rank, workers) if shared else collate,
            accelerator=SimpleNamespace(gather=gather), args=SimpleNamespace(device="cpu"),
            compute_loss=lambda _model, inputs: sum(inputs["input_ids"]) / len(inputs["input_ids"]),
        )  # fmt: skip
        trainer.get_batch_samples = lambda: ([trainer.data_collator(rows) for rows in batches], None)
        weigh_batches(trainer, row_count, SimpleNamespace(workers=workers), shared=shared)  # type: ignore[arg-type]
        assert isinstance(trainer.get_batch_samples, types.MethodType)
        made, _items = trainer.get_batch_samples()
        return [trainer.compute_loss(None, batch) for batch in made]

    def loss(self) -> float:
        """As trainers take it: the mean over a worker's batches, and the mean over workers."""
        return sum(sum(losses) / len(losses) for losses in self.steps) / len(self.steps)


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "batches",
    [
        [[1.0, 2.0, 3.0, 4.0], [10.0]],
        [[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0]],
        [[2.0, 4.0, 6.0]],
        [[1.0] * 4, [0.0] * 4],
    ],
    ids=str,
)
def test_each_row_counts_once_however_many_do_it(workers: int, batches: list[list[float]]) -> None:
    rows = [row for batch in batches for row in batch]
    assert Team(workers, batches).loss() == pytest.approx(sum(rows) / len(rows))
    assert Team(workers, batches, shared=False).loss() == pytest.approx(sum(rows) / len(rows))


def test_four_rows_and_one_are_five() -> None:
    """The mean of 1, 2, 3, 4 and 10 is 4; that of the batches' means is 6.25."""
    assert Team(1, [[1.0, 2.0, 3.0, 4.0], [10.0]]).loss() == pytest.approx(4.0)


def test_the_collator_says_into_how_many_shares_a_batch_falls() -> None:
    collate = CountingCollator(lambda rows: {"input_ids": list(rows)}, workers=4)
    assert [collate(range(rows))["batch_shares"] for rows in (8, 6, 3)] == [4, 2, 1]


def test_labels_that_are_predicted() -> None:
    """Not those that are ignored, and not the first of a row."""
    labels = torch.tensor([[7, 8, -100, 9], [-100, -100, 5, 6]])
    assert label_count({"labels": labels}) == 4
