"""The store's tables, as they are after the newest migration. A test compares them with what the migrations make.

Votes, and the audit trail, are append-only: triggers in the first migration refuse every update and delete of them.
``comparisons.taken`` counts the raters who voted on a comparison or hold a lease of it; an abandoned lease gives its
place back, and the database itself refuses more than ``votes_wanted``. ``comparisons.judged`` counts the votes that
stand, skips and what is left out not among them. It, ``queue_tallies`` and ``changed_comparisons`` are kept by triggers
of the sixth migration, whoever writes: a look at the queues reads sums, never all rows.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    Boolean,
    CheckConstraint,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    false,
    literal_column,
)


class Utc(TypeDecorator[datetime]):
    """An aware time in UTC, on databases that know time zones and on those that do not."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        moment = value.astimezone(UTC)
        return moment if dialect.name == "postgresql" else moment.replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)  # type: ignore[no-any-return]


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

accounts = Table(
    "accounts",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(64), nullable=False, unique=True),
    Column("role", String(16), nullable=False),  # rater | administrator
    Column("state", String(16), nullable=False, default="active"),  # active | paused | disabled
    Column("password_hash", Text),  # None: signs in through OpenID Connect only
    Column("oidc_subject", Text, unique=True),  # "issuer subject"
    Column("created", Utc, nullable=False),
    Column("guidelines_read", Integer, nullable=False, default=0),  # the version of the settings that were read
    Column("trial_passed", Boolean, nullable=False, default=False),
)

sessions = Table(
    "sessions",
    metadata,
    Column("token_hash", String(64), primary_key=True),  # SHA-256: a stolen store opens no session
    Column("account_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("created", Utc, nullable=False),
    Column("expires", Utc, nullable=False),
    Column("seen", Utc, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("note", Text, nullable=False, default=""),
    Column("created", Utc, nullable=False),
    Column("expires", Utc, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("used", Utc),
    Column("used_by", ForeignKey("accounts.id")),
)

tokens = Table(  # of the HTTP API; a revoked one stays, so that the trail can be read
    "tokens",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("token_hash", String(64), nullable=False, unique=True),  # SHA-256, as of a session
    Column("name", String(40), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("account_id", ForeignKey("accounts.id")),  # in whose name; None: in the name of who runs the app
    Column("created", Utc, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("expires", Utc, nullable=False),
    Column("used", Utc),  # the last time, to some minutes
    Column("revoked", Utc),
)

webhooks = Table(  # who is told of what; the secret signs, so it is kept as it is
    "webhooks",
    metadata,
    Column("id", String(16), primary_key=True),
    Column("url", Text, nullable=False),
    Column("events", JSON, nullable=False),
    Column("secret", Text, nullable=False),
    Column("created", Utc, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("delivered", Utc),  # the last time
    Column("gone", Utc),  # it said that it wants to be told no more
)

deliveries = Table(  # what a webhook has not taken yet: written with what it tells of, removed once it is taken
    "deliveries",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("webhook_id", ForeignKey("webhooks.id"), nullable=False),
    Column("event", String(32), nullable=False),
    Column("body", Text, nullable=False),  # as it is signed
    Column("created", Utc, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("due", Utc),  # when it is tried; None: given up
    Column("trouble", String(200), nullable=False, server_default=""),  # of the last attempt
    Index(None, "webhook_id", "due"),
)

throttles = Table(  # failed sign-ins, by "account:NAME", by "address:IP" and by "from:IP NAME"
    "throttles",
    metadata,
    Column("subject", String(160), primary_key=True),
    Column("failures", Integer, nullable=False),
    Column("last", Utc, nullable=False),
    Column("locked_until", Utc),
)

settings = Table(  # append-only: the newest version holds
    "settings",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("created", Utc, nullable=False),
    Column("author", String(64), nullable=False),
    Column("body", JSON, nullable=False),
)

queue_settings = Table(  # append-only: a queue's newest version holds; a queue without one is as ``settings`` says
    "queue_settings",
    metadata,
    Column("queue", String(64), primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("created", Utc, nullable=False),
    Column("author", String(64), nullable=False),
    Column("body", JSON, nullable=False),
)

queue_readings = Table(  # the guidelines of a queue of its own that a rater has read last
    "queue_readings",
    metadata,
    Column("account_id", ForeignKey("accounts.id"), primary_key=True),
    Column("queue", String(64), primary_key=True),
    Column("digest", String(64), nullable=False),  # SHA-256 of the text
    Column("at", Utc, nullable=False),
)

consents = Table(  # append-only: what a rater was asked before work, and said
    "consents",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False, index=True),
    Column("digest", String(64), nullable=False),  # SHA-256 of the text and the questions
    Column("version", Integer, nullable=False),  # of the settings that asked
    Column("agreed", Boolean, nullable=False),
    Column("answers", JSON, nullable=False),
    Column("at", Utc, nullable=False),
)

links = Table(  # by which many may join
    "links",
    metadata,
    Column("token_hash", String(64), primary_key=True),
    Column("note", Text, nullable=False),
    Column("parameter", String(64), nullable=False),  # of the address, in which a platform says who comes
    Column("completion", Text),  # where a rater goes at the end
    Column("places", Integer, nullable=False),
    Column("taken", Integer, CheckConstraint("taken >= 0 AND taken <= places", name="taken"), nullable=False),
    Column("created", Utc, nullable=False),
    Column("expires", Utc, nullable=False),
    Column("created_by", String(64), nullable=False),
)

joined = Table(  # accounts that came by a link
    "joined",
    metadata,
    Column("account_id", ForeignKey("accounts.id"), primary_key=True),
    Column("link", ForeignKey("links.token_hash"), nullable=False),
    Column("external_id", String(128), nullable=False),
    Column("at", Utc, nullable=False),
)
Index("uq_joined_once", joined.c.link, joined.c.external_id, unique=True)

comparisons = Table(
    "comparisons",
    metadata,
    Column("id", String(128), primary_key=True),
    Column("purpose", String(8), nullable=False),  # work | gold | trial
    Column("prompt", JSON, nullable=False),
    Column("responses", JSON, nullable=False),
    Column("expected", JSON(none_as_null=True)),  # gold and trial: the right ranking, best first, and why
    Column("votes_wanted", Integer, nullable=False),
    Column("taken", Integer, CheckConstraint("taken >= 0 AND taken <= votes_wanted", name="taken"), nullable=False),
    Column("informativeness", Float, nullable=False, default=0.0),  # higher: asked earlier by "most_informative"
    Column("shuffle", Float, nullable=False),  # a number drawn once; the order of a random draw
    Column("self_naming", JSON, nullable=False),  # ids of responses that say who wrote them
    Column("withdrawn", Boolean, nullable=False, default=False),
    Column("created", Utc, nullable=False),
    Column("queue", String(64), nullable=False, server_default="default"),
    Column("judged", Integer, nullable=False, server_default="0"),
    Column("held", Boolean, nullable=False, server_default=false()),  # not handed out until somebody has looked at it
    Index(None, "queue", "judged"),
)
# Comparisons that want more raters. The words are the indexes' own, without parameters: a database sees that they fit.
HAS_ROOM = (
    (comparisons.c.purpose == literal_column("'work'"))
    & ~comparisons.c.withdrawn
    & ~comparisons.c.held
    & (comparisons.c.taken < comparisons.c.votes_wanted)
)
# Gold and trials. An index of all purposes would look better for real work, to SQLite, than the ones made for it.
IS_KNOWN = comparisons.c.purpose != literal_column("'work'")
Index("ix_comparisons_known", comparisons.c.purpose, comparisons.c.shuffle, sqlite_where=IS_KNOWN,
      postgresql_where=IS_KNOWN)  # fmt: skip
# A draw walks along one queue: the queue comes first in each.
_WALKS: dict[str, list[Any]] = {
    "random": [comparisons.c.shuffle],
    "least_voted": [comparisons.c.taken, comparisons.c.shuffle],
    "most_informative": [comparisons.c.informativeness.desc(), comparisons.c.taken, comparisons.c.shuffle],
}
for _policy, _columns in _WALKS.items():
    Index(f"ix_comparisons_queue_{_policy}", comparisons.c.queue, *_columns, sqlite_where=HAS_ROOM,
          postgresql_where=HAS_ROOM)  # fmt: skip

leases = Table(
    "leases",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("comparison_id", ForeignKey("comparisons.id"), nullable=False),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("purpose", String(8), nullable=False),  # work | gold | trial | repeat | ruling
    Column("state", String(8), nullable=False),  # open | voted | expired
    Column("order", JSON, nullable=False),  # response ids as shown, first to last
    Column("drawn_by", String(16), nullable=False),  # the policy, or "random" for the calibration share
    Column("holds_place", Boolean, nullable=False),  # counted in `taken`; given back if this lease is abandoned
    Column("revises", String(32)),  # the vote that this lease may supersede
    Column("created", Utc, nullable=False),
    Column("expires", Utc, nullable=False),
    Column("queue", String(64), nullable=False, server_default="default"),  # as which it is shown; of gold, any
    Index(None, "state", "expires"),
    Index(None, "account_id", "comparison_id"),  # "has this rater had it?" is asked of every row that a draw looks at
)
_live = leases.c.state.in_(["open", "voted"]) & leases.c.revises.is_(None)
_open = (leases.c.state == "open") & leases.c.revises.is_(None)
_revising = (leases.c.state == "open") & leases.c.revises.is_not(None)


def _unique_where(name: str, columns: list[Any], condition: Any) -> None:
    Index(name, *columns, unique=True, sqlite_where=condition, postgresql_where=condition)


_unique_where("uq_leases_once", [leases.c.account_id, leases.c.comparison_id, leases.c.purpose], _live)
_unique_where("uq_leases_open", [leases.c.account_id], _open)
_unique_where("uq_leases_revising", [leases.c.account_id], _revising)

drafts = Table(
    "drafts",
    metadata,
    Column("lease_id", ForeignKey("leases.id"), primary_key=True),
    Column("body", JSON, nullable=False),
    Column("saved", Utc, nullable=False),
)

votes = Table(
    "votes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("lease_id", ForeignKey("leases.id"), nullable=False, unique=True),  # one vote per lease: idempotent
    Column("comparison_id", ForeignKey("comparisons.id"), nullable=False, index=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("purpose", String(8), nullable=False),
    Column("outcome", String(8), nullable=False),
    Column("ranking", JSON, nullable=False),
    Column("strength", Integer),
    Column("criteria", JSON, nullable=False),
    Column("reason", String(32), nullable=False, default=""),
    Column("comment", Text, nullable=False, default=""),
    Column("correction", JSON(none_as_null=True)),  # {"response": id, "text": better answer}
    Column("spans", JSON(none_as_null=True)),  # [{"response": id, "start", "end", "label", "comment"}], in code points
    Column("seconds", Float, nullable=False),
    Column("created", Utc, nullable=False),
    Column("supersedes", ForeignKey("votes.id"), unique=True),
    Index(None, "account_id", "created"),
    Index(None, "created"),
)

exclusions = Table(  # a row here leaves a vote out of every figure and export; removing the row brings it back
    "exclusions",
    metadata,
    Column("vote_id", ForeignKey("votes.id"), primary_key=True),
    Column("by", String(64), nullable=False),
    Column("reason", Text, nullable=False),
    Column("created", Utc, nullable=False),
)

TALLIED = (
    "comparisons", "wanted", "taken", "room", "complete", "filled", "judged", "wide", "votes", "given", "corrections",
    "units", "first", "second", "ties", "both_bad",
)  # fmt: skip
queue_tallies = Table(  # a ledger: a figure is the sum of its column; see preference_ui.store.tallies
    "queue_tallies",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("queue", String(64), nullable=False),
    Column("account_id", String(32), nullable=False, server_default=""),  # whose votes; empty for all else
    *(Column(name, Integer, nullable=False, server_default="0") for name in TALLIED),
    Column("apart", Float, nullable=False, server_default="0"),
)

changed_comparisons = Table(  # a row for each change of a comparison's votes that is not in ``standings`` yet
    "changed_comparisons",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("comparison_id", String(128), nullable=False),
)

standings = Table(  # what the votes on a comparison say, a few seconds behind them; see quality/standings.py
    "standings",
    metadata,
    Column("comparison_id", ForeignKey("comparisons.id"), primary_key=True),
    Column("queue", String(64), nullable=False),
    *(Column(name, Integer, nullable=False) for name in ("judged", "flags", "comments", "corrections")),
    *(Column(name, Integer, nullable=False) for name in ("units", "first", "second", "ties", "both_bad")),
    Column("apart", Float, nullable=False),
    Column("disagreement", Float, nullable=False, index=True),  # 1 less the largest share that says the same of a pair
    Column("ruled", Boolean, nullable=False),  # an administrator has adjudicated it
    Column("newest", Utc, nullable=False, index=True),  # vote
)

collections = Table(
    "collections",
    metadata,
    Column("queue", String(64), primary_key=True),
    Column("condition", JSON, nullable=False),
    Column("created", Utc, nullable=False),
    Column("ready", Utc),  # when the condition held; the snapshot is taken then and never again
    Column("snapshot", JSON(none_as_null=True)),
    Column("announced", Utc),  # when the event was sent; until then it is sent again
)

talks = Table(  # in the arena: two versions talked to at once
    "talks",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("versions", JSON, nullable=False),  # name and digest of A's version and of B's, as drawn
    Column("seed", Integer, nullable=False),
    Column("turns", JSON, nullable=False),  # {"said": text, "answers": [A's, B's], or null until both are whole}
    Column("state", String(8), nullable=False),  # open | voted | left
    Column("created", Utc, nullable=False),
    Column("excluded", Boolean, nullable=False, server_default=false()),  # left out of figures and exports, reversibly
)
_unique_where("uq_talks_open", [talks.c.account_id], talks.c.state == "open")

talk_votes = Table(  # append-only, one a talk: the names were shown, so there is no undo
    "talk_votes",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("talk_id", ForeignKey("talks.id"), nullable=False, unique=True),
    Column("account_id", ForeignKey("accounts.id"), nullable=False),
    Column("outcome", String(8), nullable=False),  # ranked | both_bad
    Column("strength", Integer),  # -3 (A much better) to 3 (B much better); null where both are bad
    Column("comment", Text, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("created", Utc, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=True),
    Column("at", Utc, nullable=False),
    Column("actor", String(64), nullable=False),  # an account's name, or "system"
    Column("action", String(48), nullable=False),
    Column("subject", String(160), nullable=False, index=True),
    Column("detail", JSON, nullable=False),
)

DERIVED = (queue_tallies, changed_comparisons, standings)  # made from the other tables, by triggers and by looks
