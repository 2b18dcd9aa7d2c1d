"""The suite itself: nothing is missing from it, and its comparison can fail."""

from typing import get_args

import pytest

from alignment.recipe.recipe import Stage
from alignment.recipe.stages.grpo import GrpoLoss
from alignment.recipe.stages.preference.dpo import DpoLoss
from tests.alignment.invariance.compare import BOUND, DRIFT, Deviation, deviation, deviations, same_steps
from tests.alignment.invariance.stages import LOSSES, TRAINERS, grouped, supervised
from tests.alignment.invariance.traces import Trace
from tests.alignment.invariance.transformations import TRANSFORMATIONS


def test_every_trainer_and_every_loss_has_a_row() -> None:
    kinds = {get_args(kind.model_fields["kind"].annotation)[0] for kind in get_args(get_args(Stage)[0])
             if kind.spec.sharing == "batches"}  # fmt: skip
    assert {row.kind for row in TRAINERS} == kinds
    for kind, losses, default in (("dpo", DpoLoss, "sigmoid"), ("grpo", GrpoLoss, "dapo")):
        rows = [row for row in (*TRAINERS, *LOSSES) if row.kind == kind]
        named = {row.settings.get("loss", default) for row in rows if not isinstance(row.settings.get("loss"), list)}
        assert named == set(get_args(losses))
    names = [row.name for row in (*TRAINERS, *LOSSES)]
    assert len(set(names)) == len(names)


def test_excuses_name_transformations() -> None:
    known = {change.name for change in TRANSFORMATIONS}
    assert {name for row in (*TRAINERS, *LOSSES) for name in row.excused} <= known


def test_a_deviation_and_a_drift() -> None:
    """One point up and one down by a tenth of 2 have no side; both up have."""
    assert deviation([2.2, 1.8], [2.0, 2.0], 2.0) == Deviation(pytest.approx(0.1), pytest.approx(0.0))
    assert deviation([2.2, 2.2], [2.0, 2.0], 2.0) == Deviation(pytest.approx(0.1), pytest.approx(0.1))


@pytest.mark.parametrize("dtype", BOUND)
def test_a_shift_to_one_side_is_seen_where_each_point_is_within_its_bound(dtype: str) -> None:
    shifted = deviation([1 + BOUND[dtype] / 2] * 6, [1.0] * 6, 1.0)
    assert shifted.largest < BOUND[dtype]
    assert shifted.drift > DRIFT[dtype]


def test_bounds_are_far_below_what_a_wrong_normaliser_does() -> None:
    """Of five rows the last, alone in its batch, counts four times: a mean that is off by tenths."""
    assert BOUND["float32"] == pytest.approx(4 * 12 * 64 / 2**24)  # 1.8e-4
    assert BOUND["bfloat16"] == pytest.approx(4 * 2**2.5 / 2**9)  # 4.4e-2


def test_what_follows_other_answers_is_not_compared() -> None:
    row = grouped("grpo", "grpo")
    reference = Trace({"loss": [1.0, 2.0], "grad_norm": [1.0, 4.0]}, [((1, 2),), ((3,),)], 0)
    other = Trace({"loss": [1.0, 9.0], "grad_norm": [1.0, 9.0]}, [((1, 2),), ((4,),)], 0)
    until = same_steps(other, reference)
    assert until == 1
    assert deviations(other, reference, row, until)["loss"] == Deviation(0.0, 0.0)
    assert same_steps(reference, reference) is None
    assert deviations(other, reference, row, None)["grad_norm"].largest == pytest.approx(5 / 4)


def test_a_trace_of_nothing_is_refused() -> None:
    nothing = Trace({"loss": [0.0], "grad_norm": [0.0]}, [], 0)
    with pytest.raises(AssertionError, match="nothing to compare"):
        deviations(nothing, nothing, supervised("sft", "sft", 4), None)
