"""What the arena's votes say: which version is liked better, and by how much; and the talks as files to learn from."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import String, cast, func, select

from alignment.preferences.preference_files import write_votes
from alignment.records import Message, Record
from preference_ui.arena.talks import last_finished, messages_of
from preference_ui.import_export import ALL, Export, Filter, pseudonym, some
from preference_ui.quality.rater_quality import Share, share
from preference_ui.store.schema import accounts, talk_votes, talks
from preference_ui.store.store import Store

Verdict = Literal["a", "b", "tie", "both_bad"]


class TalkVote(Record):
    """One vote of the arena with all that was said. ``strength`` is 0 for a tie, else 1 (slightly) to 3 (much)."""

    id: str
    rater: str
    a: str  # the version that answered as A
    b: str
    verdict: Verdict
    strength: int | None
    a_messages: tuple[Message, ...]
    b_messages: tuple[Message, ...]
    comment: str
    seconds: float
    created: datetime
    a_finished: bool = True  # False: its last answer was cut off at its longest length
    b_finished: bool = True


class TalkPair(Record):
    """A decided vote in TRL's columns: both whole conversations, which share the first message, and perhaps no more."""

    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    margin: float
    chosen_version: str
    rejected_version: str
    rater: str
    chosen_finished: bool
    rejected_finished: bool


class Match(BaseModel):
    """Two versions against each other. ``share`` is the first's, a tie counting half; votes for neither are out."""

    first: str
    second: str
    wins: int
    losses: int
    ties: int
    both_bad: int
    share: Share


def read_talk_votes(store: Store, chosen: Filter = ALL) -> list[TalkVote]:
    """The arena's votes that are not left out, in the order of their ids; raters under pseudonyms."""
    told = [talk_votes.c[name] for name in ("id", "account_id", "outcome", "strength", "comment", "seconds", "created")]
    query = (
        select(*told, talks.c.versions, talks.c.turns)
        .join_from(talk_votes, talks, talk_votes.c.talk_id == talks.c.id)
        .join(accounts, talk_votes.c.account_id == accounts.c.id)
        .where(~talks.c.excluded)
        .order_by(talk_votes.c.id)
    )
    if chosen.raters:
        query = query.where(accounts.c.name.in_(chosen.raters))
    if chosen.since is not None:
        query = query.where(talk_votes.c.created >= chosen.since)
    if chosen.until is not None:
        query = query.where(talk_votes.c.created < chosen.until)
    with store.read() as connection:
        return [_vote(row) for row in connection.execute(query)]


def matches(votes: Sequence[TalkVote]) -> list[Match]:
    """Every two versions that met, in the order of their names."""
    return _matches((vote.a, vote.b, vote.verdict, 1) for vote in votes)


def count_matches(store: Store) -> list[Match]:
    """:func:`matches` of all votes that are not left out, counted by the database: no talk is read."""
    versions = cast(talks.c.versions, String)
    query = (
        select(versions.label("versions"), talk_votes.c.outcome, func.sign(talk_votes.c.strength).label("side"),
               func.count().label("votes"))
        .join_from(talk_votes, talks, talk_votes.c.talk_id == talks.c.id)
        .where(~talks.c.excluded)
        .group_by(versions, talk_votes.c.outcome, func.sign(talk_votes.c.strength))
    )  # fmt: skip
    with store.read() as connection:
        rows = [(json.loads(row.versions), row) for row in connection.execute(query)]
    return _matches((a, b, _verdict(row.outcome, row.side), row.votes) for ((a, _), (b, _)), row in rows)


def _matches(said_of: Iterable[tuple[str, str, Verdict, int]]) -> list[Match]:
    """Of the versions that were A and B, a verdict, and how many votes say it."""
    met: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for a, b, verdict, votes in said_of:
        first, second = sorted((a, b))
        winner = {"a": a, "b": b}.get(verdict)
        met[first, second][verdict if winner is None else "win" if winner == first else "loss"] += votes
    found = []
    for (first, second), said in sorted(met.items()):
        wins, losses, ties = said["win"], said["loss"], said["tie"]
        counted = share(wins + ties / 2, wins + ties + losses)
        bad = said["both_bad"]
        found.append(
            Match(first=first, second=second, wins=wins, losses=losses, ties=ties, both_bad=bad, share=counted)
        )
    return found


def export_talks(store: Store, path: Path, *, pairs: bool, chosen: Filter = ALL) -> Export:
    """Writes the arena's votes, or the decided ones as ``pairs``, as .jsonl. Raises InputError where none is left."""
    votes = read_talk_votes(store, chosen)
    rows: Sequence[Record] = [pair for vote in votes if (pair := _pair(vote)) is not None] if pairs else votes
    digest = write_votes(path, some(rows, path))
    raters = len({vote.rater for vote in votes})
    return Export(path=str(path), rows=len(rows), votes=len(votes), raters=raters, comparisons=len(votes),
                  digest=digest, agreement=None)  # fmt: skip


def _vote(row: Any) -> TalkVote:
    (a, _), (b, _) = row.versions
    return TalkVote(
        id=row.id, rater=pseudonym(row.account_id), a=a, b=b, verdict=_verdict(row.outcome, row.strength),
        strength=None if row.strength is None else abs(row.strength), a_messages=tuple(messages_of(row.turns, 0)),
        b_messages=tuple(messages_of(row.turns, 1)), comment=row.comment, seconds=row.seconds, created=row.created,
        a_finished=last_finished(row.turns, 0), b_finished=last_finished(row.turns, 1),
    )  # fmt: skip


def _verdict(outcome: str, strength: float | None) -> Verdict:
    if outcome != "ranked" or strength is None:
        return "both_bad"
    return "tie" if strength == 0 else "a" if strength < 0 else "b"


def _pair(vote: TalkVote) -> TalkPair | None:
    sides = {"a": (vote.a_messages, vote.a, vote.a_finished), "b": (vote.b_messages, vote.b, vote.b_finished)}
    if vote.verdict not in sides or vote.a_messages == vote.b_messages:
        return None
    chosen, rejected = sides[vote.verdict], sides["b" if vote.verdict == "a" else "a"]
    return TalkPair(chosen=chosen[0], rejected=rejected[0], margin=float(vote.strength or 0), chosen_version=chosen[1],
                    rejected_version=rejected[1], rater=vote.rater, chosen_finished=chosen[2],
                    rejected_finished=rejected[2])  # fmt: skip
