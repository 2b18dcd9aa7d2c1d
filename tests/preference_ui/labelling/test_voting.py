from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from alignment.records import Comparison
from preference_ui.labelling.assignment import Lease, next_lease
from preference_ui.labelling.queue import Gold, queue_comparisons, queue_gold
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.vote_schema import judge, read_verdict
from preference_ui.labelling.voting import cast_vote, read_draft, save_draft, to_record
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now

Make = Callable[..., Comparison]
Add = Callable[..., str]


def _lease(store: Store, account: str) -> Lease:
    lease = next_lease(store, account)
    assert lease is not None
    return lease


@pytest.mark.parametrize("strength", [-3, -2, -1, 0, 1, 2, 3])
def test_the_stored_vote_is_what_was_clicked(store: Store, comparison: Make, add_rater: Add, strength: int) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    ada = add_rater(store, "ada")
    lease = _lease(store, ada)
    wire = {"outcome": "ranked", "strength": strength, "criteria": {"helpful": [5, None]}, "comment": " fine "}
    receipt = cast_vote(store, ada, lease.id, wire)
    with store.read() as connection:
        vote = to_record(connection.execute(select(schema.votes)).one(), "ada")
    left, right = lease.order
    ranking = {-1: ((left,), (right,)), 0: ((left, right),), 1: ((right,), (left,))}[(strength > 0) - (strength < 0)]
    assert (vote.id, vote.rater, vote.rater_kind, vote.outcome) == (receipt.vote_id, "ada", "human", "ranked")
    assert (vote.ranking, vote.strength, vote.comment) == (ranking, abs(strength), "fine")
    assert vote.criteria == {f"helpful:{left}": 5}
    line = store.audit_trail(subject=receipt.vote_id)[0]
    assert (line["actor"], line["action"]) == ("ada", "vote.cast")


def test_sending_a_vote_twice_stores_it_once(store: Store, comparison: Make, add_rater: Add) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=2)
    ada = add_rater(store, "ada")
    lease = _lease(store, ada)
    first = cast_vote(store, ada, lease.id, {"outcome": "both_bad"})
    second = cast_vote(store, ada, lease.id, {"outcome": "ranked", "strength": 3})
    assert (second.vote_id, first.repeated, second.repeated) == (first.vote_id, False, True)
    with store.read() as connection:
        assert connection.execute(select(schema.votes.c.outcome)).scalars().all() == ["both_bad"]


def test_anothers_lease_and_an_invented_one_get_the_same_sentence(
    store: Store, comparison: Make, add_rater: Add
) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=2)
    ada, eve = add_rater(store, "ada"), add_rater(store, "eve")
    lease = _lease(store, ada)
    for attempt in (lease.id, "invented", "x" * 500, None, 7, ["x"]):
        for act in (cast_vote, save_draft):
            with pytest.raises(Refusal, match="not yours"):
                act(store, eve, attempt, {"outcome": "both_bad"})  # type: ignore[arg-type]
    with store.read() as connection:
        assert connection.execute(select(schema.votes)).all() == []


def test_an_expired_lease_counts_while_its_place_is_free_and_else_says_so(
    store: Store, comparison: Make, add_rater: Add
) -> None:
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    ada, bob = add_rater(store, "ada"), add_rater(store, "bob")
    lease = _lease(store, ada)
    with store.write() as connection:
        connection.execute(update(schema.leases).values(expires=now() - timedelta(seconds=1)))
    taken_over = _lease(store, bob)
    with pytest.raises(Refusal, match="You were away for a while"):
        cast_vote(store, ada, lease.id, {"outcome": "both_bad"})
    cast_vote(store, bob, taken_over.id, {"outcome": "skipped", "reason": "unclear"})  # gives the place away again
    cast_vote(store, ada, lease.id, {"outcome": "both_bad"})
    with store.read() as connection:
        assert connection.execute(select(schema.comparisons.c.taken)).scalar_one() == 1


def test_an_undo_supersedes_and_both_votes_stay(store: Store, comparison: Make, add_rater: Add) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    ada = add_rater(store, "ada")
    lease = _lease(store, ada)
    wire = {"outcome": "ranked", "strength": 2, "criteria": {"helpful": [1, 4]}, "comment": "hm",
            "correction": {"position": 1, "text": "Paris, of course."}}  # fmt: skip
    first = cast_vote(store, ada, lease.id, wire)
    undone = reopen(store, ada)
    before = read_draft(store, undone.id, undone.revises)
    assert before == wire | {"reason": ""}  # the rater sees what was voted
    cast_vote(store, ada, undone.id, {"outcome": "skipped", "reason": "unclear"})
    with store.read() as connection:
        rows = connection.execute(select(schema.votes).order_by(schema.votes.c.created)).all()
        assert connection.execute(select(schema.comparisons.c.taken)).scalar_one() == 0
    assert [(row.outcome, row.supersedes) for row in rows] == [("ranked", None), ("skipped", first.vote_id)]
    assert rows[0].correction == {"response": lease.order[1], "text": "Paris, of course."}


def test_a_draft_survives_and_prolongs_the_lease(store: Store, comparison: Make, add_rater: Add) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    ada = add_rater(store, "ada")
    lease = _lease(store, ada)
    with store.write() as connection:
        connection.execute(update(schema.leases).values(expires=now() + timedelta(seconds=5)))
    for comment in ("half a", "half a thought"):
        save_draft(store, ada, lease.id, {"comment": comment})
    assert read_draft(store, lease.id, None) == {"comment": "half a thought"}
    assert _lease(store, ada).expires > now() + timedelta(minutes=20)
    with pytest.raises(Refusal, match="too long"):
        save_draft(store, ada, lease.id, {"comment": "x" * 200_000})
    cast_vote(store, ada, lease.id, {"outcome": "both_bad"})
    assert read_draft(store, lease.id, None) is None
    with pytest.raises(Refusal, match="no longer open"):
        save_draft(store, ada, lease.id, {"comment": "late"})


def test_the_trial_gives_feedback_and_comes_first(store: Store, comparison: Make, add_rater: Add) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=1)
    queue_gold(store, [Gold(comparison("t0"), (("t0-a",), ("t0-b",)), "Lyon is wrong.")], purpose="trial")
    ada = add_rater(store, "ada", trial_passed=False)
    lease = _lease(store, ada)
    assert lease.purpose == "trial"
    receipt = cast_vote(store, ada, lease.id, {"outcome": "ranked", "strength": 0})
    best = lease.order.index("t0-a")
    assert receipt.feedback == {"right": False, "ranking": [[best], [1 - best]], "why": "Lyon is wrong."}
    assert _lease(store, ada).purpose == "work"


ORDER = ("r0", "r1", "r2", "r3")
BAD = [
    None, [], "ranked", 7, {}, {"outcome": "won"}, {"outcome": "ranked", "extra": 1},
    {"outcome": "ranked", "strength": 4}, {"outcome": "ranked", "strength": -4}, {"outcome": "ranked", "strength": "1"},
    {"outcome": "ranked", "strength": 1.0}, {"outcome": "ranked", "strength": True}, {"outcome": "ranked"},
    {"outcome": "ranked", "strength": 10**40}, {"outcome": "ranked", "ranking": [[0], [1]]},
    {"outcome": "both_bad", "strength": 1}, {"outcome": "skipped"}, {"outcome": "skipped", "reason": "because"},
    {"outcome": "flagged", "reason": "language"}, {"outcome": "ranked", "strength": 1, "reason": "unsafe"},
    {"outcome": "ranked", "strength": 1, "comment": "x" * 2001}, {"outcome": "ranked", "strength": 1, "comment": "\0"},
    {"outcome": "ranked", "strength": 1, "comment": "\ud800"},
    {"outcome": "ranked", "strength": 1, "criteria": {"invented": [1, 2]}},
    {"outcome": "ranked", "strength": 1, "criteria": {"helpful": [1]}},
    {"outcome": "ranked", "strength": 1, "criteria": {"helpful": [0, 6]}},
    {"outcome": "ranked", "strength": 1, "correction": {"position": 2, "text": "x"}},
    {"outcome": "ranked", "strength": 1, "correction": {"position": 0, "text": "  "}},
]  # fmt: skip


@pytest.mark.parametrize("wire", BAD, ids=range(len(BAD)))
def test_what_is_not_a_verdict_is_refused(wire: object) -> None:
    with pytest.raises(Refusal):
        judge(read_verdict(wire), dict.fromkeys(("r0", "r1"), ""), DeskSettings())


@pytest.mark.parametrize(
    "ranking",
    [[[0], [1], [2]], [[0], [1], [2], [2]], [[0], [1], [2], [4]], [[0, 0], [1], [2]], [[-1], [1], [2], [3]], []],
)
def test_a_ranking_is_a_permutation(ranking: list[list[int]]) -> None:
    with pytest.raises(Refusal):
        judge(read_verdict({"outcome": "ranked", "ranking": ranking}), dict.fromkeys(ORDER, ""), DeskSettings())


def test_an_untouched_order_asks_first() -> None:
    wire = {"outcome": "ranked", "ranking": [[0], [1], [2], [3]]}
    with pytest.raises(Refusal, match="Is that your ranking") as refusal:
        judge(read_verdict(wire), dict.fromkeys(ORDER, ""), DeskSettings())
    assert refusal.value.code == "confirm"
    assert judge(read_verdict(wire | {"confirmed": True}), dict.fromkeys(ORDER, ""), DeskSettings()).ranking == [
        [one] for one in ORDER
    ]


@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=3, max_size=3))
def test_every_weak_order_comes_back_in_ids(order: list[int], ties: list[bool]) -> None:
    groups = [[order[0]]]
    for position, tied in zip(order[1:], ties, strict=True):
        groups[-1].append(position) if tied else groups.append([position])
    wire = {"outcome": "ranked", "ranking": groups, "confirmed": True}
    judgement = judge(read_verdict(wire), dict.fromkeys(ORDER, ""), DeskSettings())
    assert judgement.ranking == [[f"r{at}" for at in group] for group in groups]
    assert judgement.strength is None
