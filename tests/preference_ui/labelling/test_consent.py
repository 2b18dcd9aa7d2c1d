"""A rater agrees, and says a few things, before there is work; who does not agree gets none."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import delete
from sqlalchemy.exc import DatabaseError

from alignment.records import Comparison
from preference_ui.labelling.assignment import next_lease
from preference_ui.labelling.consent import answer_before_work, asked_before_work, consent_rows
from preference_ui.labelling.queue import queue_comparisons
from preference_ui.store import schema
from preference_ui.store.errors import Refusal
from preference_ui.store.settings import DeskSettings, RaterQuestion
from preference_ui.store.store import Store

AGE = RaterQuestion(name="age", text="How old are you?", choices=("under 30", "30 or more"))
ASKS = DeskSettings(gold_share=0, repeat_share=0, consent="We keep your **votes**.", questions=(AGE,))


def _asked(store: Store, account: str) -> dict[str, Any]:
    asked = asked_before_work(store, account)
    assert asked is not None
    return asked


def test_work_begins_with_consent_once_and_again_when_the_text_changes(
    store: Store, comparison: Callable[..., Comparison], add_rater: Callable[..., str]
) -> None:
    queue_comparisons(store, [comparison("c0")], votes_wanted=3)
    ada, bob = add_rater(store, "ada"), add_rater(store, "bob")
    assert asked_before_work(store, ada) is None
    store.change_settings(ASKS, author="root")
    asked = _asked(store, ada)
    assert (asked["text"], asked["declined"]) == ("We keep your **votes**.", False)
    assert asked["questions"] == [{"name": "age", "text": "How old are you?", "choices": ["under 30", "30 or more"]}]
    assert next_lease(store, ada) is None
    for answers in ({}, {"age": "12"}, {"age": "under 30", "more": "x"}, None, ["age"]):
        with pytest.raises(Refusal, match="every question"):
            answer_before_work(store, ada, asked["digest"], True, answers)
    answer_before_work(store, ada, asked["digest"], True, {"age": "under 30"})
    assert asked_before_work(store, ada) is None
    lease = next_lease(store, ada)
    assert lease is not None

    answer_before_work(store, bob, asked["digest"], False, {"age": "under 30"})
    assert _asked(store, bob)["declined"] is True
    assert next_lease(store, bob) is None
    answer_before_work(store, bob, asked["digest"], True, {"age": "30 or more"})  # thought again
    assert next_lease(store, bob) is not None

    store.change_settings(ASKS.model_copy(update={"lease_minutes": 5.0}), author="root")
    assert asked_before_work(store, ada) is None  # other settings do not ask again
    store.change_settings(ASKS.model_copy(update={"consent": "We keep more."}), author="root")
    assert _asked(store, ada)["declined"] is False
    with pytest.raises(Refusal, match="changed meanwhile"):
        answer_before_work(store, ada, asked["digest"], True, {"age": "under 30"})
    said = [(one.name, one.version, one.agreed, one.answers) for one in consent_rows(store)]
    assert said == [
        ("ada", 1, True, {"age": "under 30"}),
        ("bob", 1, False, {}),
        ("bob", 1, True, {"age": "30 or more"}),
    ]
    with pytest.raises(DatabaseError, match="append-only"), store.write() as connection:
        connection.execute(delete(schema.consents))


@pytest.mark.parametrize("questions", [(AGE, AGE), (AGE.model_copy(update={"choices": ("x", "x")}),)])
def test_questions_can_be_told_apart(questions: tuple[RaterQuestion, ...]) -> None:
    with pytest.raises(ValueError, match=r"two questions|same answer twice"):
        DeskSettings(questions=questions)
