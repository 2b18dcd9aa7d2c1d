"""Records under review: found by what was said of them, opened whole, held, put back, and decided."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.exc import DatabaseError

from alignment.records import Comparison
from preference_ui.import_export import read_votes
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.exclusion import exclude_rater
from preference_ui.labelling.queue import put_back, queue_comparisons, withdraw
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.ruling import adjudicate
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality.rater_quality import quality_report
from preference_ui.quality.records import RecordFilter, find_records, open_record
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, now

Make = Callable[..., Comparison]
Add = Callable[..., str]
PEOPLE = ("ada", "bob", "eve")


def _vote(store: Store, name: str, **wire: Any) -> str:
    """The next comparison of a rater; ``best`` is the answer that is preferred. Returns the comparison's id."""
    lease = next_lease(store, f"id-{name}")
    assert lease is not None
    if best := wire.pop("best", None):
        wire |= {"outcome": "ranked", "strength": -2 if lease.order[0].endswith(f"-{best}") else 2}
    cast_vote(store, f"id-{name}", lease.id, wire)
    return lease.comparison.id


@pytest.fixture
def desk(store: Store, comparison: Make, add_rater: Add) -> Store:
    """Three records of three votes: c0 agreed, c1 disputed (two for a, one for b), c2 without votes."""
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0, random_share=0), author="root")
    for name in PEOPLE:
        add_rater(store, name)
    add_rater(store, "root", role="administrator")
    for at, question in enumerate(("Übung?", "Second 100% sure?", "Third?")):
        if at < 2:
            queue_comparisons(store, [comparison(f"c{at}", question=question)], votes_wanted=3, queue=f"q{at}")
            for name in PEOPLE:
                _vote(store, name, best="b" if (at, name) == (1, "eve") else "a", comment="hm" if at else "")
    queue_comparisons(store, [comparison("c2", question="Third?")], votes_wanted=3, queue="q1")
    return store


def _ids(store: Store, **chosen: Any) -> list[str]:
    return [line.id for line in find_records(store, RecordFilter(**chosen)).lines]


def test_records_are_found_by_queue_rater_dispute_words_and_date(desk: Store) -> None:
    assert _ids(desk) == ["c1", "c0"]  # the newest vote first
    assert _ids(desk, queue="q0") == ["c0"]
    assert _ids(desk, state="disputed") == ["c1"]
    assert _ids(desk, state="commented") == ["c1"]
    assert _ids(desk, rater="ada") == ["c1", "c0"]
    assert _ids(desk, rater="nobody") == []
    assert _ids(desk, text="Übung") == ["c0"]
    assert _ids(desk, text="100%") == ["c1"]
    assert _ids(desk, text="100_") == []  # no pattern
    assert _ids(desk, text="c0") == ["c0"]
    assert _ids(desk, since=now() - timedelta(hours=1)) == ["c1", "c0"]
    assert _ids(desk, until=now() - timedelta(hours=1)) == []
    line = find_records(desk, RecordFilter(state="disputed")).lines[0]
    assert (line.votes, line.question, line.comments) == (3, "Second 100% sure?", 3)
    assert line.disagreement == pytest.approx(1 / 3)
    page = find_records(desk, RecordFilter(), page=1)
    assert (page.lines, page.found) == ((), 2)


def test_a_record_opens_with_every_vote_whatever_became_of_it(desk: Store) -> None:
    undone = reopen(desk, "id-ada")
    correction = {"position": undone.order.index("c1-b"), "text": "Better."}
    wire = {"outcome": "both_bad", "criteria": {"helpful": [1, 1]}, "correction": correction}
    cast_vote(desk, "id-ada", undone.id, wire)
    exclude_rater(desk, "id-eve", actor="root", reason="fast")
    found = open_record(desk, "c1")
    assert [answer["text"] for answer in found["answers"]] == ["Paris.", "I think it is Lyon."]
    assert [answer["model"] for answer in found["answers"]] == ["secret-model-0", "secret-model-1"]
    told = [(vote["rater"], vote["said"], vote["superseded"], vote["excluded"]) for vote in found["votes"]]
    assert told == [("ada", "A > B (2)", True, False), ("bob", "A > B (2)", False, False),
                    ("eve", "B > A (2)", False, True), ("ada", "both bad", False, False)]  # fmt: skip
    newest = found["votes"][-1]
    assert (newest["corrects"], newest["correction"]) == ("B", "Better.")
    assert newest["scores"] == {"helpful A": 1, "helpful B": 1}
    with pytest.raises(Refusal, match="no such record"):
        open_record(desk, "c9")


def test_what_names_a_private_person_is_handed_out_no_more_until_somebody_looked(desk: Store) -> None:
    reader = next_lease(desk, "id-bob")  # has it in hand, and comes back to it
    assert reader is not None
    assert reader.comparison.id == "c2"
    assert _vote(desk, "ada", outcome="flagged", reason="personal_data") == "c2"
    assert next_lease(desk, "id-bob") is None
    assert next_lease(desk, "id-eve") is None
    assert _ids(desk, state="held") == _ids(desk, reason="personal_data") == ["c2"]
    assert put_back(desk, ["c2"], actor="root") == 1
    assert _ids(desk, state="held") == []
    again = next_lease(desk, "id-bob")
    assert again is not None
    assert again.comparison.id == "c2"
    assert [line["action"] for line in open_record(desk, "c2")["trail"]] == ["comparison.hold", "comparison.put_back"]


def test_withdrawn_records_come_back(desk: Store) -> None:
    assert withdraw(desk, ["c2"], actor="root") == 1
    assert next_lease(desk, "id-ada") is None
    assert _ids(desk, state="withdrawn") == ["c2"]
    assert put_back(desk, ["c2", "c0"], actor="root") == 1
    assert next_lease(desk, "id-ada") is not None


def test_a_ruling_decides_a_disputed_record(desk: Store) -> None:
    """Two of three preferred a; the administrator says b, and so do the pairs. Nobody's vote is touched."""
    before = {pair.prompt[0].content: pair.chosen for pair in read_votes(desk).pairs(0.5)}
    assert before == {"Übung?": "Paris.", "Second 100% sure?": "Paris."}
    adjudicate(desk, "id-root", "c1", {"outcome": "ranked", "strength": 3})
    cast = read_votes(desk)
    pairs = {pair.prompt[0].content: pair for pair in cast.pairs(0.5)}
    assert {question: pair.chosen for question, pair in pairs.items()} == before | {
        "Second 100% sure?": "I think it is Lyon."
    }
    # 100 for b at 3, one for b at 2, two for a at 2: (300 + 2 - 4) / 103
    assert pairs["Second 100% sure?"].margin == pytest.approx(298 / 103)
    assert len(cast.votes) == 6  # what raters said, and what they are measured on
    assert _ids(desk, state="disputed") == []
    assert _ids(desk, state="ruled") == ["c1"]
    assert "root" not in {rater.name for rater in quality_report(desk).raters}
    with pytest.raises(Refusal, match="no vote to undo"):  # on the raters' page
        reopen(desk, "id-root")


def test_a_ruling_that_prefers_neither_leaves_no_pair_and_a_later_one_holds(desk: Store) -> None:
    first = adjudicate(desk, "id-root", "c1", {"outcome": "ranked", "strength": -1})
    second = adjudicate(desk, "id-root", "c1", {"outcome": "both_bad"})
    assert [pair.prompt[0].content for pair in read_votes(desk).pairs(0.0)] == ["Übung?"]
    rulings = [vote for vote in open_record(desk, "c1")["votes"] if vote["purpose"] == "ruling"]
    assert [(vote["vote"], vote["superseded"]) for vote in rulings] == [(first, True), (second, False)]
    assert [line["action"] for line in open_record(desk, "c1")["trail"]] == ["comparison.adjudicate"] * 2
    with pytest.raises(DatabaseError, match="append-only"), desk.write() as connection:
        connection.execute(update(schema.votes).where(schema.votes.c.id == second).values(outcome="ranked"))


def test_only_administrators_rule_and_only_on_what_is_there(desk: Store) -> None:
    for account, record, wire, sentence in (
        ("id-ada", "c1", {"outcome": "both_bad"}, "administrators"),
        ("id-root", "c9", {"outcome": "both_bad"}, "no such comparison"),
        ("id-root", "c1", {"outcome": "skipped", "reason": "unclear"}, "ruling"),
        ("id-root", "c1", {"outcome": "ranked", "strength": 7}, "could not be read"),
    ):
        with pytest.raises(Refusal, match=sentence):
            adjudicate(desk, account, record, wire)
    with desk.read() as connection:
        ruled = select(schema.votes.c.id).where(schema.votes.c.purpose == "ruling")
        assert connection.execute(ruled).all() == []
