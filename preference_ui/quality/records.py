"""The records of the store for whoever reviews them: found by what was said of them, a page at a time, and opened."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

from pydantic import Field
from sqlalchemy import ColumnElement, Row, String, cast, exists, func, select

from alignment.records import Record
from preference_ui.labelling.ballots import left_out
from preference_ui.labelling.ruling import LETTERS
from preference_ui.quality.standings import bring_up_to_date
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import accounts, audit, comparisons, standings, votes
from preference_ui.store.store import Store

PAGE = 50  # records
BEHIND = 500  # comparisons whose votes are read before a search, at most
DISPUTED = 1 / 3  # of the ratings of a pair that do not say what most say
State = Literal["any", "disputed", "flagged", "held", "withdrawn", "commented", "corrected", "marked", "ruled"]


class RecordFilter(Record):
    """Which records. ``text`` stands in the question, or begins the record's id; times are of the newest vote."""

    queue: str | None = None
    rater: str | None = None
    state: State = "any"
    reason: str | None = None  # of a flag
    since: datetime | None = None
    until: datetime | None = None
    text: str = Field(default="", max_length=200)


class RecordLine(Record):
    """A record in a list."""

    id: str
    queue: str
    question: str
    votes: int
    disagreement: float
    flags: int
    comments: int
    corrections: int
    held: bool
    withdrawn: bool
    ruled: bool
    newest: datetime | None


class RecordPage(Record):
    """A page of a list, and how many records there are in all."""

    lines: tuple[RecordLine, ...]
    found: int


def find_records(store: Store, chosen: RecordFilter, *, page: int = 0) -> RecordPage:
    """The records that were voted on, or are held or withdrawn, newest vote first."""
    bring_up_to_date(store, at_most=BEHIND)
    joined = comparisons.outerjoin(standings, standings.c.comparison_id == comparisons.c.id)
    where = [comparisons.c.purpose == "work", *_conditions(chosen)]
    columns = [standings.c[name] for name in ("disagreement", "flags", "comments", "corrections", "ruled", "newest")]
    own = [comparisons.c[name] for name in ("id", "queue", "prompt", "judged", "held", "withdrawn")]
    order = (standings.c.newest.desc(), comparisons.c.id)
    query = select(*own, *columns).select_from(joined).where(*where).order_by(*order).limit(PAGE).offset(page * PAGE)
    with store.read() as connection:
        found = connection.execute(select(func.count()).select_from(joined).where(*where)).scalar_one()
        rows = connection.execute(query).all()
    return RecordPage(lines=tuple(_line(row) for row in rows), found=int(found))


def open_record(store: Store, identifier: str) -> dict[str, Any]:
    """All that is known of a record: question, answers with their models, every vote, and who did what with it.

    Raises Refusal where there is none.
    """
    with store.read() as connection:
        item = connection.execute(select(comparisons).where(comparisons.c.id == identifier)).first()
        if item is None:
            raise Refusal("no_record", "There is no such record.")
        later = votes.alias("later")
        superseded = exists().where(later.c.supersedes == votes.c.id).label("superseded")
        query = (
            select(votes, accounts.c.name, left_out().label("excluded"), superseded)
            .join_from(votes, accounts, votes.c.account_id == accounts.c.id)
            .where(votes.c.comparison_id == identifier)
            .order_by(votes.c.created, votes.c.id)
        )
        cast_votes = connection.execute(query).all()
        trail = connection.execute(select(audit).where(audit.c.subject == identifier).order_by(audit.c.id)).all()
    letters = {response["id"]: LETTERS[at] for at, response in enumerate(item.responses)}
    texts = {response["id"]: response["text"] for response in item.responses}
    answers = [{"letter": letters[one["id"]], "text": one["text"], "model": one.get("model", "")}
               for one in item.responses]  # fmt: skip
    return {
        "id": item.id, "queue": item.queue, "held": item.held, "withdrawn": item.withdrawn,
        "votes_wanted": item.votes_wanted, "answers": answers,
        "prompt": [(turn["role"], turn["content"]) for turn in item.prompt["messages"]],
        "votes": [_vote(row, letters, texts) for row in cast_votes],
        "trail": [{"at": line.at, "actor": line.actor, "action": line.action} for line in trail],
    }  # fmt: skip


def said(outcome: str, ranking: Any, strength: int | None, letters: Mapping[str, str]) -> str:
    """A verdict in a few letters: "A > B (2)", "A = B", "both bad"."""
    if outcome != "ranked":
        return outcome.replace("_", " ")
    order = " > ".join(" = ".join(sorted(letters.get(one, "?") for one in group)) for group in ranking)
    return order if not strength else f"{order} ({strength})"


def marked_words(spans: Sequence[Mapping[str, Any]], texts: Mapping[str, str]) -> list[str]:
    """Marked parts in words: 'label: "what is marked" (comment)'."""
    return [
        f'{one["label"]}: "{texts.get(one["response"], "")[one["start"] : one["end"]]}"'
        + (f" ({one['comment']})" if one["comment"] else "")
        for one in spans
    ]


def _conditions(chosen: RecordFilter) -> list[ColumnElement[bool]]:
    where: list[ColumnElement[bool]] = []
    if chosen.queue is not None:
        where.append(comparisons.c.queue == chosen.queue)
    if chosen.rater is not None:
        by = votes.join(accounts, votes.c.account_id == accounts.c.id)
        mine = (votes.c.comparison_id == comparisons.c.id) & (accounts.c.name == chosen.rater)
        where.append(exists().select_from(by).where(mine))
    if chosen.reason is not None:
        flagged = (votes.c.comparison_id == comparisons.c.id) & (votes.c.reason == chosen.reason)
        where.append(exists().where(flagged & (votes.c.outcome == "flagged")))
    if chosen.since is not None:
        where.append(standings.c.newest >= chosen.since)
    if chosen.until is not None:
        where.append(standings.c.newest < chosen.until)
    if chosen.text:
        inside = json.dumps(chosen.text)[1:-1]  # as JSON writes it
        within = cast(comparisons.c.prompt, String).contains(inside, autoescape=True)
        where.append(within | comparisons.c.id.startswith(chosen.text, autoescape=True))
    states: dict[State, ColumnElement[bool]] = {
        "any": standings.c.comparison_id.is_not(None) | comparisons.c.held | comparisons.c.withdrawn,
        "disputed": (standings.c.disagreement >= DISPUTED - 1e-9) & ~standings.c.ruled,
        "flagged": standings.c.flags > 0,
        "held": comparisons.c.held,
        "withdrawn": comparisons.c.withdrawn,
        "commented": standings.c.comments > 0,
        "corrected": standings.c.corrections > 0,
        "marked": exists().where((votes.c.comparison_id == comparisons.c.id) & (votes.c.outcome == "marked")),
        "ruled": standings.c.ruled,
    }
    return [*where, states[chosen.state]]


def _line(row: Row[Any]) -> RecordLine:
    turns = row.prompt.get("messages") or [{"content": ""}]
    return RecordLine(
        id=row.id, queue=row.queue, question=turns[-1]["content"][:200], votes=row.judged, held=row.held,
        withdrawn=row.withdrawn, disagreement=row.disagreement or 0.0, flags=row.flags or 0,
        comments=row.comments or 0, corrections=row.corrections or 0, ruled=bool(row.ruled), newest=row.newest,
    )  # fmt: skip


def _vote(row: Row[Any], letters: Mapping[str, str], texts: Mapping[str, str]) -> dict[str, Any]:
    correction = row.correction or {}
    scores = {f"{name.partition(':')[0]} {letters.get(name.partition(':')[2], '?')}": score
              for name, score in row.criteria.items()}  # fmt: skip
    return {
        "vote": row.id, "rater": row.name, "purpose": row.purpose, "created": row.created, "seconds": row.seconds,
        "said": said(row.outcome, row.ranking, row.strength, letters), "reason": row.reason, "comment": row.comment,
        "scores": scores, "correction": correction.get("text", ""),
        "corrects": letters.get(correction.get("response", ""), ""),
        "marks": marked_words(row.spans or (), texts),
        "excluded": bool(row.excluded), "superseded": bool(row.superseded),
    }  # fmt: skip
