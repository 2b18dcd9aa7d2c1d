"""The queues at the review desk, listed, changed and closed; and what a rater sees of a queue."""

from collections.abc import Callable
from typing import Any

import pytest

from alignment.records import Comparison
from preference_ui.accounts.auth import Account
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import QueueSettings, change_queue, current_queue
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store
from preference_ui.web.rater_page import RaterHandlers
from preference_ui.web.review.queues import duration, read_criteria, write_criteria

FORM = ("q", "Run the code.", "style: 1: clumsy; 5: a joy", 3, "ada", 2, "2030-01-02 03:04:05", True, "0", "thumbs", "")


def test_a_queue_is_listed_changed_and_closed(call: Callable[..., Any], sqlite_store: Store) -> None:
    listed, plot, _said = call("table")
    assert listed["data"][0][:7] == ["q", "open", "0", "", "everybody", "1", "0"]
    assert plot["datatypes"] == {"time": "temporal", "queue": "nominal", "votes": "quantitative"}
    assert [point[1:] for point in plot["data"]] == [["q", 1]]
    *form, listed, _plot, said = call("save", *FORM)
    assert said == "Saved."
    assert form[:7] == ["q", "Run the code.", "style: 1: clumsy; 5: a joy", 3, "ada", 2, "2030-01-02 03:04:05"]
    assert listed["data"][0][2:5] == ["2", "2030-01-02 03:04", "ada"]
    with sqlite_store.read() as connection:
        version, settings = current_queue(connection, "q")
    assert (version, settings.votes_wanted, settings.deadline.isoformat()) == (1, 3, "2030-01-02T03:04:05+00:00")  # type: ignore[union-attr]
    assert "meanwhile" in call("save", *FORM)[-1]  # still of version 0
    assert call("close", "q")[-1] == "It is closed."
    assert call("choose", event_data={"index": [0, 0], "value": "q", "row_value": ["q"], "selected": True})[7] is False
    assert call("reopen", "q")[-1] == "It is open."


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [(0, "No Name", "no name of a queue"), (2, "Style is all", "name: what it means"), (4, "nobody", "no account"),
     (5, 10_000, "priority"), (1, "a\0b", "cannot be stored"), (9, "spans", "need labels"),
     (10, "Wrong is all", "name: what it means"), (10, "wrong: not so", "for spans alone")],
)  # fmt: skip
def test_a_form_that_is_wrong_stays_and_changes_nothing(
    call: Callable[..., Any], sqlite_store: Store, field: int, value: Any, said: str
) -> None:
    form = list(FORM)
    form[field] = value
    assert said in call("save", *form)[-1]
    with sqlite_store.read() as connection:
        assert current_queue(connection, "q")[0] == 0


def test_what_is_asked_of_single_answers_is_kept_when_something_else_is_changed(
    call: Callable[..., Any], sqlite_store: Store
) -> None:
    labels = "wrong: not so\nrude: unkind"
    asked = [*FORM[:9], "spans", labels]
    *form, _listed, _plot, said = call("save", *asked)
    assert said == "Saved."
    assert form[9:] == ["spans", labels]
    asked[5], asked[8] = 7, "1"
    assert call("save", *asked)[-1] == "Saved."
    call("close", "q")
    with sqlite_store.read() as connection:
        version, settings = current_queue(connection, "q")
    assert (version, settings.single, settings.priority, settings.open) == (3, "spans", 7, False)
    assert [(one.name, one.rubric) for one in settings.labels] == [("wrong", "not so"), ("rude", "unkind")]


def test_the_queues_are_for_administrators(call: Callable[..., Any]) -> None:
    for name, data in (("table", ()), ("form", ("q",)), ("save", FORM), ("close", ("q",))):
        assert call(name, *data, by="ada") == 403


def test_scores_are_written_as_they_are_read() -> None:
    for text in ("", "none", "style: 1: clumsy; 5: a joy\nsafe: yes or no"):
        assert write_criteria(read_criteria(text)) == text
    with pytest.raises(Refusal):
        read_criteria("UPPER: no")
    assert [duration(hours) for hours in (0.5, 3, 72)] == ["30 min", "3.0 h", "3.0 days"]


def test_a_queue_is_read_before_it_is_shown_and_again_when_its_text_changes(
    store: Store, comparison: Callable[..., Comparison], add_rater: Callable[..., str]
) -> None:
    store.change_settings(DeskSettings(gold_share=0, repeat_share=0), author="root")
    queue_comparisons(store, [comparison("c0"), comparison("c1")], votes_wanted=1, queue="code")
    change_queue(store, "code", QueueSettings(guidelines="**Run** it.", criteria=()), author="root")
    ada = Account(add_rater(store, "ada"), "ada", "rater", "active", 0)
    desk = RaterHandlers(store)
    begun = desk._begin(ada)
    assert begun["must_read"] is False  # the queue's own stand for the general ones
    screen = begun["screen"]
    assert screen["queue"]["name"] == "code"
    assert "<strong>Run</strong>" in screen["queue"]["guidelines"]["html"]
    assert "prompt" not in screen
    with pytest.raises(Refusal, match="changed meanwhile"):
        desk._read_queue(ada, {"queue": "code", "digest": "0" * 64})
    read = {"queue": "code", "digest": screen["queue"]["guidelines"]["digest"]}
    shown = desk._read_queue(ada, read)["screen"]
    assert (shown["lease"], shown["queue"]["criteria"], len(shown["answers"])) == (screen["lease"], [], 2)
    change_queue(store, "code", QueueSettings(guidelines="Read it.", criteria=()), author="root")
    verdict = {"outcome": "ranked", "strength": 0}
    after = desk._vote(ada, {"lease": shown["lease"], "verdict": verdict})["screen"]
    assert (after["queue"]["must_read"], "prompt" in after) == (True, False)
    change_queue(store, "code", QueueSettings(priority=1), author="root")
    assert desk._begin(ada)["must_read"] is True  # the general ones hold again, and were never read
    with pytest.raises(Refusal, match="changed meanwhile"):
        desk._read_queue(ada, read)
