"""A trial with a pass mark lets those work who have enough of it right, and nobody else."""

from collections.abc import Callable
from typing import Any

import pytest

from alignment.records import Comparison
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.qualification import missed_mark
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold
from preference_ui.labelling.voting import cast_and_draw
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store

Make = Callable[..., Comparison]
Add = Callable[..., str]
QUIET = {"gold_share": 0, "repeat_share": 0, "random_share": 0}


def _desk(store: Store, comparison: Make, *, trials: int, mark: float | None) -> None:
    store.change_settings(DeskSettings.model_validate(QUIET | {"pass_mark": mark}), author="root")
    gold = [Gold(comparison(f"t{at}"), ((f"t{at}-a",), (f"t{at}-b",))) for at in range(trials)]
    queue_gold(store, gold, purpose="trial")
    queue_comparisons(store, [comparison("work")], votes_wanted=9)


def _take(store: Store, account: str, right: int, trials: int) -> Any:
    """Votes on all trials, the first ``right`` of them right; returns what is handed out after the last."""
    lease = next_lease(store, account)
    for at in range(trials):
        assert lease is not None
        assert lease.purpose == "trial"
        better = lease.order.index(f"{lease.comparison.id}-a")
        good = -1 if better == 0 else 1
        verdict = {"outcome": "ranked", "strength": good if at < right else -good}
        receipt, lease = cast_and_draw(store, account, lease.id, verdict)
        assert receipt.feedback is not None
        assert receipt.feedback["right"] is (at < right)
    return lease


@pytest.mark.parametrize(("right", "passes"), [(4, True), (3, True), (2, False), (0, False)])
def test_the_mark_decides(store: Store, comparison: Make, add_rater: Add, right: int, passes: bool) -> None:
    _desk(store, comparison, trials=4, mark=0.75)
    ada = add_rater(store, "ada", trial_passed=False)
    lease = _take(store, ada, right, 4)
    if passes:
        assert lease.comparison.id == "work"
        assert missed_mark(store, ada) is None
    else:
        assert lease is None
        assert next_lease(store, ada) is None
        assert missed_mark(store, ada) == {"right": right, "asked": 4, "mark": 0.75}


def test_without_a_mark_the_first_comparison_is_enough(sqlite_store: Store, comparison: Make, add_rater: Add) -> None:
    _desk(sqlite_store, comparison, trials=4, mark=None)
    ada = add_rater(sqlite_store, "ada", trial_passed=False)
    assert _take(sqlite_store, ada, 0, 1).comparison.id == "work"
    assert missed_mark(sqlite_store, ada) is None


def test_more_trials_are_another_chance(sqlite_store: Store, comparison: Make, add_rater: Add) -> None:
    _desk(sqlite_store, comparison, trials=1, mark=0.5)
    ada = add_rater(sqlite_store, "ada", trial_passed=False)
    assert _take(sqlite_store, ada, 0, 1) is None
    queue_gold(sqlite_store, [Gold(comparison("t9"), (("t9-a",), ("t9-b",)))], purpose="trial")
    assert missed_mark(sqlite_store, ada) is None
    assert _take(sqlite_store, ada, 1, 1).comparison.id == "work"
