"""What one server has undone, all of them read again"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("ledger", sa.Column("doubts", sa.BigInteger(), nullable=False, server_default="0"))
