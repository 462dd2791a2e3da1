"""A remote facilitator that failed plainly is asked again"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.add_column("payments", sa.Column("failed", sa.Integer(), nullable=False, server_default="0"))
