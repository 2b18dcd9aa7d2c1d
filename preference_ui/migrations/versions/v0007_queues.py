"""Queues with settings of their own: who rates them, in which order, until when, and what is read before.

The indexes that a draw walks along begin with the queue. A lease says as which queue it is shown, for gold may be mixed
into any. Besides, what raters are asked about themselves, and links by which many may join.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"

_MOMENT = sa.DateTime(timezone=True)
APPEND_ONLY = ("queue_settings", "consents")


def upgrade() -> None:
    op.create_table(
        "queue_settings",
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
        sa.Column("author", sa.String(64), nullable=False),
        sa.Column("body", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("queue", "version", name=op.f("pk_queue_settings")),
    )
    op.create_table(
        "queue_readings",
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("queue", sa.String(64), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_queue_readings_account_id")),
        sa.PrimaryKeyConstraint("account_id", "queue", name=op.f("pk_queue_readings")),
    )
    op.add_column("leases", sa.Column("queue", sa.String(64), server_default="default", nullable=False))
    elsewhere = "SELECT id FROM comparisons WHERE queue <> 'default'"
    own = "(SELECT comparisons.queue FROM comparisons WHERE comparisons.id = leases.comparison_id)"
    op.execute(f"UPDATE leases SET queue = {own} WHERE comparison_id IN ({elsewhere})")
    _walks()
    _people()
    for table in APPEND_ONLY:
        _append_only(table)


def _walks() -> None:
    sqlite = op.get_bind().dialect.name == "sqlite"
    room = "purpose = 'work' AND NOT withdrawn AND NOT held AND taken < votes_wanted"
    where = sa.text("purpose = 'work' AND withdrawn = 0 AND held = 0 AND taken < votes_wanted" if sqlite else room)
    walks: dict[str, list[Any]] = {
        "random": ["shuffle"],
        "least_voted": ["taken", "shuffle"],
        "most_informative": [sa.text("informativeness DESC"), "taken", "shuffle"],
    }
    for name, columns in walks.items():
        op.drop_index(f"ix_comparisons_room_{name}", "comparisons")
        op.create_index(
            f"ix_comparisons_queue_{name}", "comparisons", ["queue", *columns], sqlite_where=where,
            postgresql_where=where,
        )  # fmt: skip


def _people() -> None:
    op.create_table(
        "consents",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("agreed", sa.Boolean(), nullable=False),
        sa.Column("answers", sa.JSON(), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_consents_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consents")),
    )
    op.create_index(op.f("ix_consents_account_id"), "consents", ["account_id"])
    op.create_table(
        "links",
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("note", sa.Text(), nullable=False),
        sa.Column("parameter", sa.String(64), nullable=False),
        sa.Column("completion", sa.Text(), nullable=True),
        sa.Column("places", sa.Integer(), nullable=False),
        sa.Column("taken", sa.Integer(), nullable=False),
        sa.Column("created", _MOMENT, nullable=False),
        sa.Column("expires", _MOMENT, nullable=False),
        sa.Column("created_by", sa.String(64), nullable=False),
        sa.CheckConstraint("taken >= 0 AND taken <= places", name=op.f("ck_links_taken")),
        sa.PrimaryKeyConstraint("token_hash", name=op.f("pk_links")),
    )
    op.create_table(
        "joined",
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("link", sa.String(64), nullable=False),
        sa.Column("external_id", sa.String(128), nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_joined_account_id")),
        sa.ForeignKeyConstraint(["link"], ["links.token_hash"], name=op.f("fk_joined_link")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_joined")),
    )
    op.create_index("uq_joined_once", "joined", ["link", "external_id"], unique=True)


def _append_only(table: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE ON {table} "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
