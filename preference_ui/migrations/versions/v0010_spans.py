"""Parts of an answer that a rater has marked."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.add_column("votes", sa.Column("spans", sa.JSON(), nullable=True))
