"""An index for "has this rater had this comparison?": without it PostgreSQL read all leases at every draw."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index(op.f("ix_leases_account_id_comparison_id"), "leases", ["account_id", "comparison_id"])
