"""Commissions to collect, abandoned payments and the intake's balance are found without reading all rows"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("payments", sa.Column("collected", sa.Integer(), nullable=False, server_default="0"))
    living = "select payment_id from commissions where commissions.is_void = 0"
    op.execute(f"update payments set collected = 1 where id in ({living})")  # noqa: S608 - no value is put in
    is_uncollected = sa.text("state = 'settled' and commission > 0 and collected = 0")
    _index("ix_payments_uncollected", "id", is_uncollected)
    _index("ix_payments_abandoned", "payer", sa.text("abandoned = 1"))
    for name in ("base_number", "base_balance"):
        op.add_column("ledger", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("update ledger set base_balance = start_balance")


def _index(name: str, column: str, where: sa.TextClause) -> None:
    op.create_index(name, "payments", [column], sqlite_where=where, postgresql_where=where)
