"""The arena: talks with two versions at once, and one vote on each. What was voted on cannot be rewritten either."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "talks",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("versions", sa.JSON(), nullable=False),
        sa.Column("seed", sa.Integer(), nullable=False),
        sa.Column("turns", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(8), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("excluded", sa.Boolean(), server_default=sa.false(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_talks_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_talks")),
    )
    open_now = sa.text("state = 'open'")
    op.create_index(
        "uq_talks_open", "talks", ["account_id"], unique=True, sqlite_where=open_now, postgresql_where=open_now
    )
    op.create_table(
        "talk_votes",
        sa.Column("id", sa.String(32), nullable=False),
        sa.Column("talk_id", sa.String(32), nullable=False),
        sa.Column("account_id", sa.String(32), nullable=False),
        sa.Column("outcome", sa.String(8), nullable=False),
        sa.Column("strength", sa.Integer(), nullable=True),
        sa.Column("comment", sa.Text(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["talk_id"], ["talks.id"], name=op.f("fk_talk_votes_talk_id")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_talk_votes_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_talk_votes")),
        sa.UniqueConstraint("talk_id", name=op.f("uq_talk_votes_talk_id")),
    )
    _append_only()


def _append_only() -> None:
    """Votes are never changed or removed; nor are a talk's words, versions and end once it was voted on."""
    words = "turns, versions, seed, state, account_id"
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "CREATE TRIGGER talk_votes_append_only BEFORE UPDATE OR DELETE ON talk_votes "
            "FOR EACH ROW EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            f"CREATE TRIGGER talks_frozen BEFORE UPDATE OF {words} ON talks "
            "FOR EACH ROW WHEN (OLD.state = 'voted') EXECUTE FUNCTION refuse_change()"
        )
        op.execute(
            "CREATE TRIGGER talks_kept BEFORE DELETE ON talks "
            "FOR EACH ROW WHEN (OLD.state = 'voted') EXECUTE FUNCTION refuse_change()"
        )
        return
    for change in ("UPDATE", "DELETE"):
        op.execute(
            f"CREATE TRIGGER talk_votes_no_{change.lower()} BEFORE {change} ON talk_votes "
            "BEGIN SELECT RAISE(ABORT, 'talk_votes is append-only'); END"
        )
    for change in (f"UPDATE OF {words}", "DELETE"):
        op.execute(
            f"CREATE TRIGGER talks_no_{change.split()[0].lower()} BEFORE {change} ON talks WHEN OLD.state = 'voted' "
            "BEGIN SELECT RAISE(ABORT, 'talks is append-only'); END"
        )
