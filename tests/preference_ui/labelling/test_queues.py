"""Several queues at once: each for its own raters, by priority, until its deadline, with its own questions."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DatabaseError

from alignment.errors import InputError
from alignment.records import Comparison
from preference_ui.labelling.assignment import Lease, next_lease
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold, set_informativeness
from preference_ui.labelling.revision import own_votes, reopen
from preference_ui.labelling.voting import cast_and_draw, cast_vote, save_draft
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import GENERAL, QueueSettings, change_queue, current_queue
from preference_ui.store.settings import Criterion, DeskSettings
from preference_ui.store.store import Store, now

Make = Callable[..., Comparison]
Add = Callable[..., str]
PLAIN = DeskSettings(gold_share=0, repeat_share=0, random_share=0, policy="least_voted")
A_BETTER = {"outcome": "ranked", "strength": -2}


@pytest.fixture
def two(store: Store, comparison: Make, add_rater: Add) -> tuple[Store, str, str]:
    """A store with the queues "code" (c0 to c2) and "prose" (p0 to p2), and the raters ada and bob."""
    store.change_settings(PLAIN, author="root")
    for queue in ("code", "prose"):
        items = [comparison(f"{queue[0]}{at}") for at in range(3)]
        queue_comparisons(store, items, votes_wanted=2, queue=queue)
    return store, add_rater(store, "ada"), add_rater(store, "bob")


def _work_off(store: Store, account: str) -> list[str]:
    """The queues of all that a rater gets, in order; each is voted on."""
    shown = []
    while (lease := next_lease(store, account)) is not None:
        assert lease.queue.startswith({"c": "code", "p": "prose"}[lease.comparison.id[0]])
        shown.append(lease.queue)
        cast_vote(store, account, lease.id, A_BETTER)
    return shown


def _lease(store: Store, account: str) -> Lease:
    lease = next_lease(store, account)
    assert lease is not None
    return lease


def test_without_settings_of_its_own_a_queue_is_as_the_general_ones_say(two: tuple[Store, str, str]) -> None:
    store, ada, _bob = two
    with store.read() as connection:
        assert current_queue(connection, "code") == (0, GENERAL)
    assert sorted(_work_off(store, ada)) == ["code"] * 3 + ["prose"] * 3


def test_a_higher_priority_comes_first_and_then_the_rest(two: tuple[Store, str, str]) -> None:
    store, ada, bob = two
    change_queue(store, "prose", QueueSettings(priority=2), author="root")
    assert _work_off(store, ada) == ["prose"] * 3 + ["code"] * 3
    change_queue(store, "prose", QueueSettings(priority=-1), author="root")
    assert _work_off(store, bob) == ["code"] * 3 + ["prose"] * 3


@pytest.mark.parametrize("policy", ["least_voted", "most_informative", "random"])
def test_queues_of_one_priority_are_as_one_to_the_policy(
    two: tuple[Store, str, str], add_rater: Add, policy: str
) -> None:
    store, *_ = two
    store.change_settings(PLAIN.model_copy(update={"policy": policy}), author="root")
    set_informativeness(store, {"p1": 0.9, "c2": 0.5})
    with store.write() as connection:
        connection.execute(update(schema.comparisons).where(schema.comparisons.c.id != "c1").values(taken=1))
    firsts = {_lease(store, add_rater(store, f"r{at}")).comparison.id for at in range(1 if policy != "random" else 6)}
    expected = {"least_voted": {"c1"}, "most_informative": {"p1"}}
    assert firsts == expected[policy] if policy in expected else {one[0] for one in firsts} == {"c", "p"}


def test_who_is_not_in_the_list_gets_nothing_of_the_queue(two: tuple[Store, str, str]) -> None:
    store, ada, bob = two
    change_queue(store, "code", QueueSettings(raters=("Ada",)), author="root")
    assert _work_off(store, bob) == ["prose"] * 3
    assert sorted(_work_off(store, ada)) == ["code"] * 3 + ["prose"] * 3


def test_who_is_taken_off_the_list_neither_keeps_opens_votes_nor_changes(two: tuple[Store, str, str]) -> None:
    store, ada, bob = two
    change_queue(store, "prose", QueueSettings(open=False), author="root")
    first = _lease(store, bob)
    cast_vote(store, bob, first.id, A_BETTER)
    [vote] = own_votes(store, bob)
    reopened = reopen(store, bob)
    other = _lease(store, bob)
    assert other.id == reopened.id
    change_queue(store, "code", QueueSettings(raters=("ada",)), author="root")

    for lease in (reopened.id,):
        with pytest.raises(Refusal, match="not yours"):
            cast_vote(store, bob, lease, A_BETTER)
        with pytest.raises(Refusal, match="not yours"):
            cast_and_draw(store, bob, lease, A_BETTER)
        with pytest.raises(Refusal, match="not yours"):
            save_draft(store, bob, lease, {"comment": "x"})
    with pytest.raises(Refusal, match="not yours"):
        reopen(store, bob, vote["vote"])
    with pytest.raises(Refusal, match="no vote to undo"):
        reopen(store, bob)
    assert own_votes(store, bob) == []
    assert next_lease(store, bob) is None
    assert cast_vote(store, bob, first.id, A_BETTER).repeated  # what was said before is acknowledged once more
    assert _work_off(store, ada) == ["code"] * 3


def test_what_is_taken_out_of_wrong_hands_returns_to_its_queue(two: tuple[Store, str, str]) -> None:
    store, ada, bob = two
    change_queue(store, "prose", QueueSettings(open=False), author="root")
    held = _lease(store, bob)
    change_queue(store, "code", QueueSettings(raters=("ada",), votes_wanted=1), author="root")
    with pytest.raises(Refusal, match="not yours"):
        cast_vote(store, bob, held.id, A_BETTER)
    assert next_lease(store, bob) is None
    assert _work_off(store, ada) == ["code"] * 3
    with store.read() as connection:
        taken = connection.execute(select(schema.comparisons.c.taken).where(schema.comparisons.c.queue == "code"))
        assert taken.scalars().all() == [1, 1, 1]


@pytest.mark.parametrize("end", ["closed", "deadline"])
def test_what_is_over_hands_nothing_out_and_lets_nobody_change(two: tuple[Store, str, str], end: str) -> None:
    store, ada, bob = two
    change_queue(store, "prose", QueueSettings(open=False), author="root")
    cast_vote(store, ada, _lease(store, ada).id, A_BETTER)
    in_hand = _lease(store, ada)
    over = {"closed": QueueSettings(open=False), "deadline": QueueSettings(deadline=now() - timedelta(seconds=1))}[end]
    change_queue(store, "code", over, author="root")
    assert next_lease(store, bob) is None
    assert _lease(store, ada).id == in_hand.id  # it was handed out before
    cast_vote(store, ada, in_hand.id, A_BETTER)
    assert next_lease(store, ada) is None
    assert len(own_votes(store, ada)) == 2
    with pytest.raises(Refusal, match="queue is closed"):
        reopen(store, ada)
    ahead = QueueSettings(deadline=now() + timedelta(hours=1))
    change_queue(store, "code", ahead, author="root")
    assert reopen(store, ada).queue == "code"


def test_what_was_left_lying_in_a_closed_queue_is_not_shown_again(two: tuple[Store, str, str]) -> None:
    store, ada, _bob = two
    change_queue(store, "prose", QueueSettings(open=False), author="root")
    _lease(store, ada)
    with store.write() as connection:
        connection.execute(update(schema.leases).values(expires=now() - timedelta(seconds=1)))
    change_queue(store, "code", QueueSettings(open=False), author="root")
    assert next_lease(store, ada) is None


def test_gold_is_shown_as_of_the_queue_it_is_mixed_into(two: tuple[Store, str, str], comparison: Make) -> None:
    store, ada, bob = two
    gold = [Gold(comparison(f"{name}gold"), ((f"{name}gold-a",), (f"{name}gold-b",))) for name in ("c", "p", "any")]
    queue_gold(store, gold[:1], queue="code")
    queue_gold(store, gold[1:2], queue="prose")
    queue_gold(store, gold[2:])
    store.change_settings(PLAIN.model_copy(update={"gold_share": 1.0}), author="root")
    change_queue(store, "code", QueueSettings(raters=("ada",), priority=1), author="root")

    def gold_of(account: str) -> dict[str, str]:
        shown = {}
        while (lease := next_lease(store, account)) is not None:
            if lease.purpose == "gold":
                shown[lease.comparison.id] = lease.queue
            cast_vote(store, account, lease.id, A_BETTER)
        return shown

    assert gold_of(ada) == {"cgold": "code", "anygold": "code", "pgold": "prose"}
    assert gold_of(bob) == {"pgold": "prose", "anygold": "prose"}


def test_a_queue_asks_for_its_own_scores(two: tuple[Store, str, str]) -> None:
    store, ada, _bob = two
    change_queue(store, "prose", QueueSettings(open=False), author="root")
    style = Criterion(name="style", rubric="1: clumsy; 5: a joy.")
    change_queue(store, "code", QueueSettings(criteria=(style,)), author="root")
    lease = _lease(store, ada)
    with pytest.raises(Refusal, match="do not fit"):
        cast_vote(store, ada, lease.id, A_BETTER | {"criteria": {"helpful": [1, 5]}})
    receipt = cast_vote(store, ada, lease.id, A_BETTER | {"criteria": {"style": [1, 5]}})
    with store.read() as connection:
        scores = connection.execute(select(schema.votes.c.criteria).where(schema.votes.c.id == receipt.vote_id))
        assert scores.scalar_one() == {f"style:{lease.order[0]}": 1, f"style:{lease.order[1]}": 5}


def test_settings_of_a_queue_are_versions_that_nobody_rewrites(two: tuple[Store, str, str]) -> None:
    store, *_ = two
    assert change_queue(store, "code", QueueSettings(priority=1), author="root") == 1
    assert change_queue(store, "code", QueueSettings(priority=2, guidelines="Run it."), author="eve", seen=1) == 2
    with pytest.raises(InputError, match="changed code meanwhile"):
        change_queue(store, "code", QueueSettings(), author="root", seen=1)
    with store.read() as connection:
        assert current_queue(connection, "code")[0] == 2
        assert current_queue(connection, "prose") == (0, GENERAL)
    for change in (update(schema.queue_settings).values(author="x"), delete(schema.queue_settings)):
        with pytest.raises(DatabaseError, match="append-only"), store.write() as connection:
            connection.execute(change)
    trail = [line for line in store.audit_trail() if line["action"] == "queue.change"]
    assert [(line["actor"], line["detail"]["changed"]) for line in trail] == [
        ("eve", ["guidelines", "priority"]), ("root", ["priority"]),
    ]  # fmt: skip


def test_wanted_votes_are_changed_for_what_is_queued_too(two: tuple[Store, str, str]) -> None:
    store, ada, bob = two
    for account in (ada, bob):
        _work_off(store, account)
    change_queue(store, "code", QueueSettings(votes_wanted=1), author="root")
    change_queue(store, "prose", QueueSettings(votes_wanted=5), author="root")

    def wanted() -> dict[str, set[int]]:
        query = select(schema.comparisons.c.queue, schema.comparisons.c.votes_wanted)
        with store.read() as connection:
            rows = connection.execute(query).all()
        return {queue: {row.votes_wanted for row in rows if row.queue == queue} for queue in ("code", "prose")}

    assert wanted() == {"code": {2}, "prose": {5}}  # no fewer than have been given


@pytest.mark.parametrize(
    ("queue", "body", "said"),
    [("Bad Name", {}, "no name of a queue"), ("code", {"raters": ("nobody",)}, "no account nobody")],
)
def test_a_queue_that_cannot_be_is_refused(
    two: tuple[Store, str, str], queue: str, body: dict[str, Any], said: str
) -> None:
    store, *_ = two
    with pytest.raises(InputError, match=said):
        change_queue(store, queue, QueueSettings(**body), author="root")
    assert [line for line in store.audit_trail() if line["action"] == "queue.change"] == []
