"""Counters beside the rows, kept by triggers, so that no look at the queues reads them all; and comparisons on hold.

``queue_tallies`` is a ledger: a figure of a queue is the sum of a column. Triggers only ever add rows, so that two
votes never wait for each other; now and then many rows are folded into few (:mod:`preference_ui.store.tallies`).
"""

from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

_COUNTED = "{row}.purpose = 'work' AND NOT {row}.withdrawn"
_OF_A_COMPARISON = {
    "comparisons": "CASE WHEN " + _COUNTED + " THEN 1 ELSE 0 END",
    "wanted": "CASE WHEN " + _COUNTED + " THEN {row}.votes_wanted ELSE 0 END",
    "taken": "CASE WHEN " + _COUNTED + " THEN {row}.taken ELSE 0 END",
    "room": "CASE WHEN " + _COUNTED + " AND NOT {row}.held AND {row}.taken < {row}.votes_wanted THEN 1 ELSE 0 END",
    "complete": "CASE WHEN " + _COUNTED + " AND {row}.judged >= {row}.votes_wanted THEN 1 ELSE 0 END",
    "filled": "CASE WHEN NOT (" + _COUNTED + ") THEN 0 WHEN {row}.judged < {row}.votes_wanted THEN {row}.judged "
    "ELSE {row}.votes_wanted END",
    "judged": "CASE WHEN {row}.purpose = 'work' THEN {row}.judged ELSE 0 END",
    "wide": "CASE WHEN {row}.purpose = 'work' AND json_array_length({row}.responses) > 2 THEN 1 ELSE 0 END",
}
_OF_A_VOTE = {
    "votes": "CASE WHEN {row}.purpose = 'work' AND {row}.outcome <> 'skipped' THEN 1 ELSE 0 END",
    "given": "CASE WHEN {row}.purpose IN ('trial', 'ruling') THEN 0 ELSE 1 END",
    "corrections": "CASE WHEN {row}.correction IS NULL THEN 0 ELSE 1 END",
}
_WATCHED = ("taken", "judged", "votes_wanted", "withdrawn", "held")
_STANDS = "NOT EXISTS (SELECT 1 FROM votes later WHERE later.supersedes = {vote}.id)"
_JUDGES = "{vote}.purpose = 'work' AND {vote}.outcome <> 'skipped'"


def upgrade() -> None:
    op.add_column("comparisons", sa.Column("judged", sa.Integer(), server_default="0", nullable=False))
    op.add_column("comparisons", sa.Column("held", sa.Boolean(), server_default=sa.false(), nullable=False))
    _tables()
    _indexes()
    _count_what_is_there()
    for name, when, table, body in _triggers():
        _trigger(name, when, table, body)


def _tables() -> None:
    counts = [sa.Column(name, sa.Integer(), server_default="0", nullable=False)
              for name in (*_OF_A_COMPARISON, *_OF_A_VOTE, "units", "first", "second", "ties", "both_bad")]  # fmt: skip
    op.create_table(
        "queue_tallies",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("account_id", sa.String(32), server_default="", nullable=False),
        *counts,
        sa.Column("apart", sa.Float(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_queue_tallies")),
    )
    op.create_table(
        "changed_comparisons",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("comparison_id", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_changed_comparisons")),
    )
    said = ("judged", "flags", "comments", "corrections", "units", "first", "second", "ties", "both_bad")
    whole = [sa.Column(name, sa.Integer(), nullable=False) for name in said]
    op.create_table(
        "standings",
        sa.Column("comparison_id", sa.String(128), nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        *whole,
        sa.Column("apart", sa.Float(), nullable=False),
        sa.Column("disagreement", sa.Float(), nullable=False),
        sa.Column("ruled", sa.Boolean(), nullable=False),
        sa.Column("newest", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["comparison_id"], ["comparisons.id"], name=op.f("fk_standings_comparison_id")),
        sa.PrimaryKeyConstraint("comparison_id", name=op.f("pk_standings")),
    )
    op.create_index(op.f("ix_standings_newest"), "standings", ["newest"])
    op.create_index(op.f("ix_standings_disagreement"), "standings", ["disagreement"])


def _indexes() -> None:
    """What a draw walks along holds only what may be drawn: what has its votes is no longer passed by."""
    for last in (["shuffle"], ["taken", "shuffle"], ["informativeness"]):
        op.drop_index(op.f("ix_comparisons_" + "_".join(["purpose", "withdrawn", *last])), "comparisons")
    room = sa.text("purpose = 'work' AND NOT withdrawn AND NOT held AND taken < votes_wanted")
    if op.get_bind().dialect.name == "sqlite":
        room = sa.text("purpose = 'work' AND withdrawn = 0 AND held = 0 AND taken < votes_wanted")
    informative: list[str | sa.TextClause] = [sa.text("informativeness DESC"), "taken", "shuffle"]
    for name, columns in (("random", ["shuffle"]), ("least_voted", ["taken", "shuffle"]),
                          ("most_informative", informative)):  # fmt: skip
        op.create_index(f"ix_comparisons_room_{name}", "comparisons", columns, sqlite_where=room, postgresql_where=room)
    known = sa.text("purpose <> 'work'")
    op.create_index(
        "ix_comparisons_known", "comparisons", ["purpose", "shuffle"], sqlite_where=known, postgresql_where=known
    )
    op.create_index(op.f("ix_comparisons_queue_judged"), "comparisons", ["queue", "judged"])
    op.create_index(op.f("ix_votes_created"), "votes", ["created"])


def _count_what_is_there() -> None:
    out = "NOT EXISTS (SELECT 1 FROM exclusions WHERE vote_id = votes.id)"
    standing = f"{_STANDS} AND {out}".format(vote="votes")
    judged = f"SELECT count(*) FROM votes WHERE comparison_id = comparisons.id AND {_JUDGES.format(vote='votes')}"
    voted = "id IN (SELECT comparison_id FROM votes)"
    op.execute(f"UPDATE comparisons SET judged = ({judged} AND {standing}) WHERE {voted}")
    private = f"SELECT comparison_id FROM votes WHERE reason = 'personal_data' AND {standing}"
    op.execute(f"UPDATE comparisons SET held = {_true()} WHERE id IN ({private})")
    sums = {name: f"sum({one.format(row='comparisons')})" for name, one in _OF_A_COMPARISON.items()}
    op.execute(_add(sums, "queue, ''", "FROM comparisons GROUP BY queue"))
    sums = {name: f"sum({one.format(row='votes')})" for name, one in _OF_A_VOTE.items()}
    op.execute(_add(sums, "comparisons.queue, votes.account_id",
                    "FROM votes JOIN comparisons ON comparisons.id = votes.comparison_id GROUP BY 1, 2"))  # fmt: skip
    voted = "SELECT DISTINCT comparison_id FROM votes WHERE purpose = 'work'"
    op.execute(f"INSERT INTO changed_comparisons (comparison_id) {voted}")


def _add(sums: Mapping[str, str], of: str, source: str) -> str:
    names = ", ".join(f'"{name}"' for name in sums)
    return f"INSERT INTO queue_tallies (queue, account_id, {names}) SELECT {of}, {', '.join(sums.values())} {source}"


def _triggers() -> list[tuple[str, str, str, list[str]]]:
    """Name, when, table and statements. They are the same on both databases."""
    there = {name: one.format(row="NEW") for name, one in _OF_A_COMPARISON.items()}
    moved = {name: f"({there[name]}) - ({one.format(row='OLD')})" for name, one in _OF_A_COMPARISON.items()}
    gone = {name: f"-({one.format(row='OLD')})" for name, one in _OF_A_COMPARISON.items()}
    voted = {name: one.format(row="NEW") for name, one in _OF_A_VOTE.items()}
    changed = " OR ".join(f"NEW.{name} <> OLD.{name}" for name in _WATCHED)
    mark = "INSERT INTO changed_comparisons (comparison_id) SELECT {row}.comparison_id WHERE {row}.purpose <> 'trial'"
    out = "NOT EXISTS (SELECT 1 FROM exclusions WHERE vote_id = earlier.id)"
    before = (
        f"SELECT 1 FROM votes earlier WHERE earlier.id = NEW.supersedes AND {_JUDGES.format(vote='earlier')} AND {out}"
    )
    step = f"CASE WHEN {_JUDGES.format(vote='NEW')} THEN 1 ELSE 0 END - CASE WHEN EXISTS ({before}) THEN 1 ELSE 0 END"
    left_out = "SELECT comparison_id FROM votes one WHERE one.id = {row}.vote_id"
    counted = f"{left_out} AND {_JUDGES.format(vote='one')} AND {_STANDS.format(vote='one')}"
    marked = f"INSERT INTO changed_comparisons (comparison_id) {left_out}"
    return [
        ("comparisons_counted", "AFTER INSERT", "comparisons", [_add(there, "NEW.queue, ''", "")]),
        ("comparisons_recounted", f"AFTER UPDATE OF {', '.join((*_WATCHED, 'queue'))}", "comparisons",
         [_add(moved, "NEW.queue, ''", f"WHERE NEW.queue = OLD.queue AND ({changed})"),
          _add(gone, "OLD.queue, ''", "WHERE NEW.queue <> OLD.queue"),
          _add(there, "NEW.queue, ''", "WHERE NEW.queue <> OLD.queue")]),
        ("votes_counted", "AFTER INSERT", "votes",
         [_add(voted, "queue, NEW.account_id", "FROM comparisons WHERE id = NEW.comparison_id"),
          f"UPDATE comparisons SET judged = judged + {step} WHERE id = NEW.comparison_id AND {step} <> 0",
          mark.format(row="NEW")]),
        ("exclusions_counted", "AFTER INSERT", "exclusions",
         [f"UPDATE comparisons SET judged = judged - 1 WHERE id IN ({counted.format(row='NEW')})",
          marked.format(row="NEW")]),
        ("exclusions_recounted", "AFTER DELETE", "exclusions",
         [f"UPDATE comparisons SET judged = judged + 1 WHERE id IN ({counted.format(row='OLD')})",
          marked.format(row="OLD")]),
    ]  # fmt: skip


def _trigger(name: str, when: str, table: str, statements: list[str]) -> None:
    body = "; ".join(statements)
    if op.get_bind().dialect.name == "sqlite":
        op.execute(f"CREATE TRIGGER {name} {when} ON {table} BEGIN {body}; END")
        return
    op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NULL; END $$")
    op.execute(f"CREATE TRIGGER {name} {when} ON {table} FOR EACH ROW EXECUTE FUNCTION {name}()")


def _true() -> str:
    return "1" if op.get_bind().dialect.name == "sqlite" else "true"
