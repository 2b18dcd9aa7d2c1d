"""The arena's talks: a person talks to two versions at once, does not know which, votes, and then learns their names.

Here is what is stored and when; the answers are made in :mod:`preference_ui.arena.responders`. A vote and the end of
its talk are one transaction, and the names leave this module only from a talk that has ended so. There is no undo: who
has seen the names is no longer blind.
"""

import random
import secrets
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError
from sqlalchemy import Connection, Row, insert, select, update

from alignment.records import Message
from preference_ui.labelling.assignment import lock_rater
from preference_ui.labelling.vote_schema import storable
from preference_ui.store.errors import Refusal
from preference_ui.store.schema import talk_votes, talks
from preference_ui.store.store import Store, now, record

MAX_SAID = 4_000  # characters of one message
MAX_TURNS = 12
_SYSTEM = random.SystemRandom()


@dataclass(frozen=True, slots=True)
class Contestant:
    """A version that can be talked to.

    ``answer(messages, seed)`` yields the whole answer so far, again and again until it is complete; a generator that
    returns False says that it was cut off at its longest length. It may raise Refusal with a sentence for the person
    who asked, which must not say who the version is.
    """

    name: str
    digest: str
    answer: Callable[[Sequence[Message], int], Iterator[str]]


@dataclass(frozen=True, slots=True)
class Talk:
    """A talk as stored. ``versions`` are (name, digest) of A and of B and never leave the server before the vote."""

    id: str
    account_id: str
    versions: tuple[tuple[str, str], tuple[str, str]]
    seed: int
    turns: tuple[Mapping[str, Any], ...]
    state: str

    @property
    def unanswered(self) -> bool:
        """Whether the last message waits for its answers."""
        return bool(self.turns) and self.turns[-1]["answers"] is None

    def messages(self, side: int) -> list[Message]:
        """The talk as the version on this side (0: A, 1: B) knows it."""
        return messages_of(self.turns, side)


def messages_of(turns: Sequence[Mapping[str, Any]], side: int) -> list[Message]:
    """Turns of a talk as the conversation of one side."""
    found = []
    for turn in turns:
        found.append(Message(role="user", content=turn["said"]))
        if turn["answers"] is not None:
            found.append(Message(role="assistant", content=turn["answers"][side]))
    return found


class TalkBallot(BaseModel):
    """A vote on a talk as it comes over the wire."""

    model_config = ConfigDict(extra="forbid")
    outcome: Literal["ranked", "both_bad"]
    strength: Annotated[StrictInt, Field(ge=-3, le=3)] | None = None
    comment: Annotated[StrictStr, Field(max_length=2_000)] = ""


def talk_in_hand(store: Store, account_id: str, contestants: Sequence[Contestant]) -> Talk:
    """The person's open talk, else a new one between two versions drawn at random, on sides drawn at random.

    A talk with a version that is no longer here is left. Raises Refusal where the person may not vote.
    """
    here = {(one.name, one.digest) for one in contestants}
    with store.write() as connection:
        account = lock_rater(connection, account_id)
        row = connection.execute(_open(account_id)).first()
        if row is not None:
            talk = _talk(row)
            if set(talk.versions) <= here:
                return talk
            _leave(connection, account.name, row)
        pair = _SYSTEM.sample(list(contestants), 2)
        values = {"id": secrets.token_urlsafe(16), "account_id": account_id, "turns": [], "state": "open",
                  "versions": [[one.name, one.digest] for one in pair], "seed": _SYSTEM.randrange(2**31),
                  "created": now()}  # fmt: skip
        return _talk(connection.execute(insert(talks).values(values).returning(*talks.c)).one())


def say(store: Store, account_id: str, talk_id: Any, text: Any) -> Talk:
    """Adds a message to an open talk, which then waits for the answers. Raises Refusal where that cannot be."""
    if not isinstance(text, str) or not text.strip() or len(text) > MAX_SAID or not storable(text):
        raise Refusal("malformed", f"A message has 1 to {MAX_SAID} characters.")
    with store.write() as connection:
        lock_rater(connection, account_id)
        talk = _talk(_own(connection, account_id, talk_id, must_be_open=True))
        if talk.unanswered:
            raise Refusal("busy", "Please wait until both have answered.")
        if len(talk.turns) >= MAX_TURNS:
            raise Refusal("long", "This talk is long enough to judge. Please vote.")
        turns = [*talk.turns, {"said": text.strip(), "answers": None}]
        row = update(talks).where(talks.c.id == talk.id).values(turns=turns).returning(*talks.c)
        return _talk(connection.execute(row).one())


def last_finished(turns: Sequence[Mapping[str, Any]], side: int) -> bool:
    """Whether the newest answer of one side ended by itself; so did all from before that was kept."""
    return bool(turns[-1].get("finished", (True, True))[side])


def settle_turn(
    store: Store, talk_id: str, at: int, answers: Sequence[str] | None, finished: Sequence[bool] = (True, True)
) -> None:
    """Stores both answers to turn ``at``, and whether they ended by themselves; None takes the message back, because no
    answer could be made."""
    with store.write() as connection:
        row = connection.execute(select(talks).where(talks.c.id == talk_id).with_for_update()).first()
        if row is None or row.state != "open" or len(row.turns) != at + 1 or row.turns[at]["answers"] is not None:
            return
        turns = list(row.turns[:at])
        if answers is not None:
            turns.append({"said": row.turns[at]["said"], "answers": list(answers), "finished": list(finished)})
        connection.execute(update(talks).where(talks.c.id == talk_id).values(turns=turns))


def vote_on_talk(store: Store, account_id: str, talk_id: Any, wire: Any) -> Talk:
    """Stores the vote and ends the talk. Returns it after the commit; sent twice, it changes nothing.

    Raises Refusal where the talk is another's, is over, has no answers yet, or the vote does not fit.
    """
    ballot = _read(wire)
    with store.write() as connection:
        account = lock_rater(connection, account_id)
        row = _own(connection, account_id, talk_id, must_be_open=False)
        if row.state == "voted":
            return _talk(row)
        talk = _talk(row)
        if row.state != "open":
            raise Refusal("over", "This talk is over. Please reload the page.")
        if not talk.turns or talk.unanswered:
            raise Refusal("early", "Please wait until both have answered.")
        moment, identifier = now(), uuid.uuid4().hex
        values = {"id": identifier, "talk_id": talk.id, "account_id": account_id, "created": moment,
                  "seconds": round((moment - row.created).total_seconds(), 3),
                  **ballot.model_dump()}  # fmt: skip
        connection.execute(insert(talk_votes).values(values | {"comment": ballot.comment.strip()}))
        ended = update(talks).where(talks.c.id == talk.id).values(state="voted").returning(*talks.c)
        record(connection, account.name, "talk.vote", identifier, {"talk": talk.id, "outcome": ballot.outcome})
        return _talk(connection.execute(ended).one())


def leave_talk(store: Store, account_id: str, talk_id: Any) -> None:
    """Ends a talk without a vote; the names stay unsaid. Raises Refusal where the talk is another's."""
    with store.write() as connection:
        account = lock_rater(connection, account_id)
        row = _own(connection, account_id, talk_id, must_be_open=False)
        if row.state == "open":
            _leave(connection, account.name, row)


def own_talk(store: Store, account_id: str, talk_id: Any) -> Talk:
    """A talk of this person. Raises Refusal where it is another's or never was."""
    with store.read() as connection:
        return _talk(_own(connection, account_id, talk_id, must_be_open=False))


def _read(wire: Any) -> TalkBallot:
    try:
        if storable(wire):
            ballot = TalkBallot.model_validate(wire)
            if (ballot.outcome == "ranked") == (ballot.strength is not None):
                return ballot
    except (ValidationError, RecursionError):
        pass
    raise Refusal("malformed", "This vote could not be read. Please reload the page and try again.")


def _open(account_id: str) -> Any:
    return select(talks).where((talks.c.account_id == account_id) & (talks.c.state == "open"))


def _own(connection: Connection, account_id: str, talk_id: Any, *, must_be_open: bool) -> Row[Any]:
    mine = (talks.c.id == talk_id) & (talks.c.account_id == account_id)
    known = isinstance(talk_id, str) and len(talk_id) <= 64 and storable(talk_id)
    row = connection.execute(select(talks).where(mine)).first() if known else None
    if row is None:  # another's and one that never was get the same answer
        raise Refusal("no_talk", "This talk is not yours. Please reload the page.")
    if must_be_open and row.state != "open":
        raise Refusal("over", "This talk is over. Please reload the page.")
    return row


def _leave(connection: Connection, name: str, row: Row[Any]) -> None:
    connection.execute(update(talks).where(talks.c.id == row.id).values(state="left"))
    record(connection, name, "talk.leave", row.id, {"turns": len(row.turns)})


def _talk(row: Row[Any]) -> Talk:
    (a, b) = ((str(name), str(digest)) for name, digest in row.versions)
    return Talk(row.id, row.account_id, (a, b), row.seed, tuple(row.turns), row.state)
