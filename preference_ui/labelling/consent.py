"""What a rater is asked before there is work: agreement to a text, and a few questions about the rater.

It is asked once, and again when text or questions change. Every answer is kept with the version and the time. Who does
not agree gets no work, and may think again.
"""

import json
from typing import Any

from sqlalchemy import Connection, Select, insert, select

from alignment.errors import Fault, InputError
from alignment.records import Record
from preference_ui.store.errors import Refusal
from preference_ui.store.queue_settings import text_digest
from preference_ui.store.schema import accounts, consents
from preference_ui.store.settings import DeskSettings
from preference_ui.store.store import Store, current_settings, now, record


class ConsentRow(Record):
    """What one rater said once."""

    account: str
    name: str
    at: str
    version: int
    digest: str
    agreed: bool
    answers: dict[str, str]


def consent_digest(settings: DeskSettings) -> str | None:
    """By which it is known what was asked; None where nothing is."""
    if not settings.consent.strip() and not settings.questions:
        return None
    asked = [settings.consent, [question.model_dump(mode="json") for question in settings.questions]]
    return text_digest(json.dumps(asked, ensure_ascii=False))


def may_work(connection: Connection, account_id: str, settings: DeskSettings) -> bool:
    """Whether a rater has agreed to what is asked now, or nothing is."""
    digest = consent_digest(settings)
    return digest is None or _said(connection, account_id, digest) is True


def asked_before_work(store: Store, account_id: str) -> dict[str, Any] | None:
    """What a rater has to be asked now; None where there is nothing. ``declined`` says that the rater did not agree."""
    with store.read() as connection:
        settings = current_settings(connection)[1]
        digest = consent_digest(settings)
        said = None if digest is None else _said(connection, account_id, digest)
    if digest is None or said:
        return None
    questions = [question.model_dump(mode="json") for question in settings.questions]
    return {"digest": digest, "text": settings.consent, "questions": questions, "declined": said is False}


def answer_before_work(store: Store, account_id: str, digest: Any, agreed: Any, answers: Any) -> None:
    """Keeps what a rater said; of who does not agree, no answers are kept.

    Raises Refusal where something else is asked by now, or an answer is none of the choices.
    """
    with store.write() as connection:
        version, settings = current_settings(connection)
        if digest is None or digest != consent_digest(settings):
            raise Refusal("malformed", "The questions have changed meanwhile. Please reload the page.")
        choices = {question.name: question.choices for question in settings.questions}
        if agreed is True and (
            not isinstance(answers, dict)
            or set(answers) != set(choices)
            or any(answers[name] not in choices[name] for name in choices)
        ):
            raise Refusal("incomplete", "Please answer every question.")
        name = connection.execute(select(accounts.c.name).where(accounts.c.id == account_id)).scalar_one()
        kept = {"digest": digest, "version": version, "agreed": agreed is True}
        values = kept | {"account_id": account_id, "answers": answers if agreed is True else {}, "at": now()}
        connection.execute(insert(consents).values(values))
        record(connection, name, "consent.agree" if agreed is True else "consent.decline", str(version), {})


def consent_rows(store: Store) -> list[ConsentRow]:
    """Everything that raters said, oldest first. Raises InputError where nobody was asked."""
    query = select(consents, accounts.c.name).join_from(consents, accounts).order_by(consents.c.id)
    with store.read() as connection:
        rows = connection.execute(query).all()
    if not rows:
        remedy = "write a consent text or questions into the settings first"
        raise InputError([Fault("no rater was asked for consent yet", remedy)])
    return [
        ConsentRow(account=row.account_id, name=row.name, at=row.at.isoformat(timespec="seconds"), version=row.version,
                   digest=row.digest, agreed=row.agreed, answers=row.answers)
        for row in rows
    ]  # fmt: skip


def _said(connection: Connection, account_id: str, digest: str) -> bool | None:
    asked = (consents.c.account_id == account_id) & (consents.c.digest == digest)
    newest: Select[tuple[bool]] = select(consents.c.agreed).where(asked).order_by(consents.c.id.desc()).limit(1)
    return connection.execute(newest).scalar_one_or_none()
