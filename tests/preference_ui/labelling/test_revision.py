"""A rater's own votes: listed, opened again any number of steps back, and left as they were."""

from collections.abc import Callable

import pytest
from sqlalchemy import insert, select

from alignment.records import Comparison
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.revision import PAGE, leave, own_votes, reopen, reopen_earlier
from preference_ui.labelling.voting import cast_vote, save_draft
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now

Make = Callable[..., Comparison]
Add = Callable[..., str]
PLAIN = DeskSettings(gold_share=0, repeat_share=0, random_share=0, trial_required=False)
VERDICTS = (
    {"outcome": "ranked", "strength": -3},
    {"outcome": "skipped", "reason": "language"},
    {"outcome": "flagged", "reason": "unsafe", "comment": "knives"},
    {"outcome": "both_bad"},
)


def _voted(store: Store, comparison: Make, account: str, *verdicts: dict[str, object], wanted: int = 3) -> list[str]:
    """Votes in turn; returns the comparisons' ids in the order of the votes."""
    store.change_settings(PLAIN, author="root")
    queue_comparisons(store, [comparison(f"c{at}") for at in range(len(verdicts) + 1)], votes_wanted=wanted)
    seen = []
    for verdict in verdicts:
        lease = next_lease(store, account)
        assert lease is not None
        cast_vote(store, account, lease.id, verdict)
        seen.append(lease.comparison.id)
    return seen


def _taken(store: Store) -> dict[str, int]:
    with store.read() as connection:
        return {row.id: row.taken for row in connection.execute(select(schema.comparisons))}


def test_the_list_says_what_was_voted_also_of_what_was_skipped_or_flagged(
    store: Store, comparison: Make, add_rater: Add
) -> None:
    ada = add_rater(store, "ada")
    _voted(store, comparison, ada, *VERDICTS)
    found = own_votes(store, ada)
    assert [one["verdict"]["outcome"] for one in found] == ["both_bad", "flagged", "skipped", "ranked"]
    assert found[1]["verdict"]["reason"] == "unsafe"
    assert found[1]["verdict"]["comment"] == "knives"
    assert found[2]["verdict"]["reason"] == "language"
    assert found[3]["verdict"]["strength"] == -3
    assert {one["question"] for one in found} == {"What is the capital of France?"}
    assert own_votes(store, ada, found[1]["vote"]) == found[2:]
    assert own_votes(store, add_rater(store, "bob")) == []


def test_undo_goes_back_any_number_of_steps(store: Store, comparison: Make, add_rater: Add) -> None:
    ada = add_rater(store, "ada")
    seen = _voted(store, comparison, ada, *VERDICTS)
    lease = reopen(store, ada)
    opened = [lease.comparison.id]
    for _ in range(3):
        lease = reopen_earlier(store, ada, lease.id)
        opened.append(lease.comparison.id)
    assert opened == seen[::-1]
    with pytest.raises(Refusal, match="no vote to undo"):
        reopen_earlier(store, ada, lease.id)
    cast_vote(store, ada, lease.id, {"outcome": "ranked", "strength": 2})
    found = own_votes(store, ada)
    assert len(found) == 4
    assert found[0]["verdict"]["strength"] == 2  # changed last
    in_hand = next_lease(store, ada)
    assert in_hand is not None
    assert in_hand.revises is None  # and work goes on


def test_a_vote_that_was_opened_is_left_as_it_was(store: Store, comparison: Make, add_rater: Add) -> None:
    ada = add_rater(store, "ada")
    _voted(store, comparison, ada, *VERDICTS)
    before, places = own_votes(store, ada), _taken(store)
    skipped = reopen(store, ada, before[2]["vote"])  # takes a place again
    assert _taken(store)[skipped.comparison.id] == 1
    save_draft(store, ada, skipped.id, {"comment": "half"})
    leave(store, ada, skipped.id)
    leave(store, ada, skipped.id)
    assert own_votes(store, ada) == before
    assert _taken(store) == places
    lease = next_lease(store, ada)
    assert lease is not None
    assert lease.revises is None


def test_one_vote_is_open_at_a_time(store: Store, comparison: Make, add_rater: Add) -> None:
    ada = add_rater(store, "ada")
    _voted(store, comparison, ada, *VERDICTS)
    votes, places = own_votes(store, ada), _taken(store)
    first = reopen(store, ada, votes[2]["vote"])
    second = reopen(store, ada, votes[0]["vote"])
    assert reopen(store, ada, votes[0]["vote"]).id == second.id
    assert _taken(store) == places  # the first gave its place back
    lease = next_lease(store, ada)
    assert lease is not None
    assert lease.id == second.id != first.id


def test_anothers_vote_and_one_that_was_set_aside_stay_closed(store: Store, comparison: Make, add_rater: Add) -> None:
    ada, eve = add_rater(store, "ada"), add_rater(store, "eve")
    _voted(store, comparison, ada, *VERDICTS[:1])
    (mine,) = own_votes(store, ada)
    for vote in (mine["vote"], "f" * 32, "x" * 5000):
        with pytest.raises(Refusal, match="not yours"):
            reopen(store, eve, vote)
        with pytest.raises(Refusal, match="not yours"):
            own_votes(store, eve, vote)
    opened = reopen(store, ada, mine["vote"])
    with pytest.raises(Refusal, match="not yours"):
        leave(store, eve, opened.id)
    with pytest.raises(Refusal, match="not yours"):
        reopen_earlier(store, eve, opened.id)
    cast_vote(store, ada, opened.id, {"outcome": "both_bad"})
    with pytest.raises(Refusal, match="already changed"):
        reopen(store, ada, mine["vote"])
    (now_standing,) = own_votes(store, ada)
    with store.write() as connection:
        row = {"vote_id": now_standing["vote"], "by": "root", "reason": "", "created": now()}
        connection.execute(insert(schema.exclusions).values(row))
    with pytest.raises(Refusal, match="set aside"):
        reopen(store, ada)
    assert own_votes(store, ada)[0]["fixed"] is True


def test_a_page_of_votes_is_followed_by_the_next(sqlite_store: Store, comparison: Make, add_rater: Add) -> None:
    ada = add_rater(sqlite_store, "ada")
    _voted(sqlite_store, comparison, ada, *[{"outcome": "both_bad"}] * (PAGE + 2))
    first = own_votes(sqlite_store, ada)
    rest = own_votes(sqlite_store, ada, first[-1]["vote"])
    assert (len(first), len(rest)) == (PAGE, 2)
    assert len({one["vote"] for one in first + rest}) == PAGE + 2
