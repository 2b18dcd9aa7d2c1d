"""Votes can be left out, reversibly, and comparisons belong to a named queue (what there was goes into "default")."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("comparisons", sa.Column("queue", sa.String(64), server_default="default", nullable=False))
    op.create_table(
        "exclusions",
        sa.Column("vote_id", sa.String(32), nullable=False),
        sa.Column("by", sa.String(64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["vote_id"], ["votes.id"], name=op.f("fk_exclusions_vote_id")),
        sa.PrimaryKeyConstraint("vote_id", name=op.f("pk_exclusions")),
    )
