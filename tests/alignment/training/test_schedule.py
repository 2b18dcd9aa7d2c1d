"""The learning rate of TRL's trainers, read from their logs, against the schedule by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest

from alignment.records import Artifact
from alignment.stage import StageContext
from alignment.stages.sft import run
from alignment.training.schedule import learning_rate_factor


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [1 / 3, 2 / 3, 1, 1, 6 / 7, 5 / 7]),  # 3 steps up, then 7 down to 0
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("cosine", [1 / 3, 2 / 3, 1, 1, 0.9505, 0.8117]),  # (1 + cos(π k/7)) / 2
    ],
)
def test_the_first_step_learns_and_every_schedule_warms_up(
    schedule: str, expected: list[float], base: Artifact, make_context: Callable[..., StageContext], tmp_path: Path
) -> None:
    settings = {"epochs": 10, "batch_size": 12, "learning_rate": 0.5e-3, "warmup": 0.25, "schedule": schedule}
    context = make_context(tmp_path, "sft", {"base": base}, settings=settings)
    result = run(context.recipe.stages["sft"], context)
    rates = [value / 0.5e-3 for _step, value in result.curves["learning_rate"]]
    assert rates[:6] == pytest.approx(expected, abs=1e-4)
    assert all(rate > 0 for rate in rates)


def test_a_warm_up_of_nothing_starts_at_the_top() -> None:
    assert learning_rate_factor(0, 10, 0, "linear") == 1
    assert learning_rate_factor(9, 10, 0, "linear") == pytest.approx(0.1)
