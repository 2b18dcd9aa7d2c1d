"""What is asked of an answer that stands alone: rewritten, scored, marked. What raters write stays a text."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from alignment.records import Comparison
from preference_ui.import_export import Filter, agreement, export_votes, read_votes
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.voting import cast_vote, read_wire
from preference_ui.quality.record_export import export_records
from preference_ui.quality.records import RecordFilter, find_records, open_record
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import QueueSettings, change_queue
from preference_ui.store.settings import Criterion, DeskSettings, SpanLabel
from preference_ui.store.store import Store

Make = Callable[..., Comparison]
Cast = Callable[..., str]
LABELS = (SpanLabel(name="wrong", rubric="Not so."), SpanLabel(name="rude", rubric="Unkind."))
CRITERIA = (Criterion(name="clear", rubric="1: no; 5: yes."), Criterion(name="kind", rubric="1: no; 5: yes."))
ASKED = {
    "rewrites": QueueSettings(single="rewrites"),
    "scores": QueueSettings(single="scores", criteria=CRITERIA),
    "spans": QueueSettings(single="spans", labels=LABELS),
}
ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)>\u202e{{7*7}}"


@pytest.fixture
def cast(sqlite_store: Store, comparison: Make, add_rater: Callable[..., str]) -> Cast:
    """Has a rater vote on one answer in a queue of this kind; returns the vote's id. Each text is queued once."""
    store = sqlite_store
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0, random_share=0), author="root")
    for queue, asked in ASKED.items():
        change_queue(store, queue, asked, author="root")
    known: set[str] = set()

    def vote(kind: str, text: str, rater: str = "ada", **wire: Any) -> str:
        if rater not in known:
            add_rater(store, rater)
            known.add(rater)
        item = comparison(f"{kind}-{abs(hash(text))}", text)
        queue_comparisons(store, [item], votes_wanted=9, queue=kind)
        lease = next_lease(store, f"id-{rater}")
        assert lease is not None
        assert lease.comparison.id == item.id
        return cast_vote(store, f"id-{rater}", lease.id, wire).vote_id

    return vote


def _rows(store: Store, path: Path, what: Any) -> list[dict[str, Any]]:
    export_votes(store, path, what=what)
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_rewritten_answer_is_a_demonstration_and_a_pair(cast: Cast, sqlite_store: Store, tmp_path: Path) -> None:
    identifier = cast("rewrites", "It is Lyon.", outcome="edited", correction={"position": 0, "text": "It is Paris."})
    cast("rewrites", "It is Nice.", outcome="up")
    (pair,) = _rows(sqlite_store, tmp_path / "rewrites.jsonl", "rewrites")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    assert pair["prompt"] == question
    assert pair["chosen"] == [{"role": "assistant", "content": "It is Paris."}]
    assert pair["rejected"] == [{"role": "assistant", "content": "It is Lyon."}]
    assert [one["chosen"] for one in _rows(sqlite_store, tmp_path / "pairs.jsonl", "pairs")] == [pair["chosen"]]
    (example,) = _rows(sqlite_store, tmp_path / "demonstrations.jsonl", "demonstrations")
    assert example["messages"] == [*question, *pair["chosen"]]
    wire = read_wire(sqlite_store, identifier)
    assert (wire["outcome"], wire["correction"]) == ("edited", {"position": 0, "text": "It is Paris."})


def test_a_rewrite_may_be_changed_and_the_first_one_stays_in_the_store(cast: Cast, sqlite_store: Store) -> None:
    first = cast("rewrites", "It is Lyon.", outcome="edited", correction={"position": 0, "text": "Paris."})
    lease = reopen(sqlite_store, "id-ada", first)
    changed = {"outcome": "edited", "correction": {"position": 0, "text": "It is Paris."}}
    cast_vote(sqlite_store, "id-ada", lease.id, changed)
    assert [pair.chosen for pair in read_votes(sqlite_store).rewrites()] == ["It is Paris."]
    with sqlite_store.read() as connection:
        written = connection.execute(select(schema.votes.c.correction).order_by(schema.votes.c.created)).scalars()
        assert [one["text"] for one in written if one] == ["Paris.", "It is Paris."]


@pytest.mark.parametrize(
    ("kind", "wire", "code"),
    [
        ("rewrites", {"outcome": "edited"}, "unchanged"),
        ("rewrites", {"outcome": "edited", "correction": {"position": 0, "text": "one\ntwo"}}, "unchanged"),
        ("rewrites", {"outcome": "edited", "correction": {"position": 0, "text": "one\x07\r\ntwo"}}, "unchanged"),
        ("rewrites", {"outcome": "edited", "correction": {"position": 1, "text": "other"}}, "malformed"),
        ("rewrites", {"outcome": "edited", "correction": {"position": 0, "text": "\x07 \x00"}}, "malformed"),
        ("rewrites", {"outcome": "edited", "correction": {"position": 0, "text": "\x1b\x07"}}, "malformed"),
        ("rewrites", {"outcome": "edited", "correction": {"position": 0, "text": "x" * 50_001}}, "malformed"),
        ("rewrites", {"outcome": "up", "correction": {"position": 0, "text": "other"}}, "malformed"),
        ("rewrites", {"outcome": "down"}, "malformed"),
        ("rewrites", {"outcome": "marked", "confirmed": True}, "malformed"),
        ("scores", {"outcome": "up"}, "malformed"),
        ("scores", {"outcome": "scored"}, "incomplete"),
        ("scores", {"outcome": "scored", "criteria": {"clear": [3]}}, "incomplete"),
        ("scores", {"outcome": "scored", "criteria": {"clear": [3], "kind": [None]}}, "incomplete"),
        ("scores", {"outcome": "scored", "criteria": {"clear": [3], "kind": [6]}}, "malformed"),
        ("scores", {"outcome": "scored", "criteria": {"clear": [3], "loud": [3]}}, "criteria"),
        ("scores", {"outcome": "edited", "correction": {"position": 0, "text": "other"}}, "malformed"),
        ("spans", {"outcome": "marked"}, "confirm"),
        ("spans", {"outcome": "marked", "spans": [{"start": 0, "end": 9, "label": "wrong"}]}, "spans"),
        ("spans", {"outcome": "marked", "spans": [{"start": 2, "end": 2, "label": "wrong"}]}, "spans"),
        ("spans", {"outcome": "marked", "spans": [{"start": 0, "end": 2, "label": "silly"}]}, "spans"),
        ("spans", {"outcome": "marked", "spans": [{"start": -1, "end": 2, "label": "wrong"}]}, "malformed"),
        ("spans", {"outcome": "marked", "spans": [{"start": 0, "end": 2, "label": "wrong", "x": 1}]}, "malformed"),
        ("spans", {"outcome": "marked", "spans": [{"start": 0, "end": 1, "label": "rude", "comment": "c" * 501}]},
         "malformed"),
        ("spans", {"outcome": "marked", "spans": [{"start": 0, "end": 1, "label": "rude"}] * 101}, "malformed"),
        ("spans", {"outcome": "flagged", "reason": "unsafe", "spans": [{"start": 0, "end": 1, "label": "rude"}]},
         "malformed"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_and_nothing_is_stored(
    cast: Cast, sqlite_store: Store, kind: str, wire: dict[str, Any], code: str
) -> None:
    with pytest.raises(Refusal) as refused:
        cast(kind, "one\r\ntwo", **wire)
    assert refused.value.code == code
    assert read_votes(sqlite_store).votes == []


def test_marks_are_counted_in_whole_characters_and_exported_with_their_words(
    cast: Cast, sqlite_store: Store, tmp_path: Path
) -> None:
    text = "😀 Lyon, أو باريس?"
    wrong = {"start": 2, "end": 6, "label": "wrong", "comment": "it is Paris"}
    rude = {"start": 11, "end": 16, "label": "rude", "comment": ""}
    identifier = cast("spans", text, outcome="marked", spans=[rude, wrong, wrong])
    cast("spans", text, "bob", outcome="marked", spans=[wrong | {"comment": ""}])
    cast("spans", "Paris.", outcome="marked", confirmed=True)
    assert read_wire(sqlite_store, identifier)["spans"] == [wrong, rude]
    marked, clean = sorted(_rows(sqlite_store, tmp_path / "s.jsonl", "spans"), key=lambda one: -len(one["spans"]))
    assert marked["completion"] == text
    said = [(one["label"], one["text"], one["comment"]) for one in marked["spans"]]
    assert sorted(said) == [("rude", "باريس", ""), ("wrong", "Lyon", ""), ("wrong", "Lyon", "it is Paris")]
    assert all(text[one["start"] : one["end"]] == one["text"] for one in marked["spans"])
    assert len({one["rater"] for one in marked["spans"]}) == marked["raters"] == 2
    assert (clean["completion"], clean["spans"], clean["raters"]) == ("Paris.", [], 1)
    (line,) = find_records(sqlite_store, RecordFilter(state="marked", text=open_record_id(sqlite_store, text))).lines
    found = open_record(sqlite_store, line.id)
    assert sorted(one["marks"] for one in found["votes"]) == [
        ['wrong: "Lyon"'], ['wrong: "Lyon" (it is Paris)', 'rude: "باريس"'],
    ]  # fmt: skip


def open_record_id(store: Store, text: str) -> str:
    """The id of the record of one answer."""
    with store.read() as connection:
        rows = connection.execute(select(schema.comparisons.c.id, schema.comparisons.c.responses)).all()
    return next(str(row.id) for row in rows if row.responses and row.responses[0]["text"] == text)


def test_how_far_marks_and_scores_agree_by_hand(cast: Cast, sqlite_store: Store) -> None:
    """Label `wrong` on three answers by two raters: yes yes, no no, yes no. Of 6 ratings 3 are yes: seen 2 / 6, by
    chance 2·3·3 / (6·5) = 18/30, α = 1 − (1/3) / (3/5) = 4/9. Scores of `clear`, the same by both on each: α = 1."""
    mark = {"start": 0, "end": 1, "label": "wrong"}
    for text, said in (("one", (1, 1)), ("two", (0, 0)), ("three", (1, 0))):
        for rater, marks in zip(("ada", "bob"), said, strict=True):
            cast("spans", text, rater, outcome="marked", spans=[mark] * marks, confirmed=True)
    for text, score, other in (("one", 1, 3), ("two", 3, 3), ("three", 5, 1)):
        for rater in ("ada", "bob"):
            kind = other if rater == "ada" else 5
            cast("scores", text, rater, outcome="scored", criteria={"clear": [score], "kind": [kind]})
    alphas = {one.of: one.value for one in agreement(sqlite_store, bootstrap=0) if "alpha" in one.statistic}
    assert alphas["spans.wrong"] == pytest.approx(4 / 9)
    assert alphas["clear"] == 1
    assert alphas["verdict"] is None
    of_spans, of_scores = (read_votes(sqlite_store, Filter(queue=name)) for name in ("spans", "scores"))
    assert of_spans.alpha("spans") == pytest.approx(4 / 9)
    assert of_scores.alpha("scores") == alphas["kind"] < 1  # the lowest says how far to trust them
    assert of_scores.alpha("spans") is None
    means = {one.completion: one.scores for one in of_scores.made("scores", 0)}  # type: ignore[attr-defined]
    assert means == {"one": {"clear": 1, "kind": 4}, "two": {"clear": 3, "kind": 4}, "three": {"clear": 5, "kind": 3}}


def test_thumbs_that_differ_are_found_as_disputed(cast: Cast, sqlite_store: Store) -> None:
    change_queue(sqlite_store, "rewrites", QueueSettings(), author="root")  # thumbs, as everywhere
    for rater, outcome in (("ada", "up"), ("bob", "down"), ("eve", "up")):
        cast("rewrites", "It is Lyon.", rater, outcome=outcome)
    for rater in ("ada", "bob"):
        cast("rewrites", "It is Paris.", rater, outcome="up")
    (line,) = find_records(sqlite_store, RecordFilter(state="disputed")).lines
    assert line.id == open_record_id(sqlite_store, "It is Lyon.")
    assert line.disagreement == pytest.approx(1 / 3)


def test_what_raters_write_is_kept_as_a_text_without_what_nobody_sees(
    cast: Cast, sqlite_store: Store, tmp_path: Path
) -> None:
    written = f"\x1b[31m{ATTACK}\x07\r\nلا\tx"
    clean = f"[31m{ATTACK}\nلا\tx"
    cast(
        "rewrites", "It is Lyon.", outcome="edited", correction={"position": 0, "text": written}, comment=f"={written}"
    )
    span = {"start": 0, "end": 2, "label": "rude", "comment": f"={written}"}
    cast("spans", "It is Lyon.", outcome="marked", spans=[span])
    (pair,) = read_votes(sqlite_store).rewrites()
    assert pair.chosen == clean
    (answer,) = _rows(sqlite_store, tmp_path / "s.jsonl", "spans")
    assert answer["spans"][0]["comment"] == f"={clean}"
    export_records(sqlite_store, tmp_path / "records")
    for name in ("records.jsonl", "votes.csv", "records.csv"):
        text = (tmp_path / "records" / name).read_text("utf-8")
        assert not {one for one in text if ord(one) < 32} - set("\n\t\r")
    with (tmp_path / "records" / "votes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(row["comment"] for row in rows) == ["", f"'={clean}"]  # no formula in a spreadsheet
    assert [row["marks"] for row in rows if row["marks"]] == [f'rude: "It" (={clean})']
    assert not any(cell.startswith("=") for row in rows for cell in row.values())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"single": "scores"}, "need the queue's own criteria"),
        ({"single": "scores", "criteria": ()}, "need the queue's own criteria"),
        ({"single": "spans"}, "spans need labels"),
        ({"labels": LABELS}, "labels are for spans alone"),
        ({"single": "spans", "labels": (LABELS[0], LABELS[0])}, "two labels have the same name"),
        ({"single": "guesses"}, "single"),
    ],
)
def test_a_queue_says_what_its_question_needs(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        QueueSettings(**settings)
