"""What is under way is found without reading what is done"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("payments", sa.Column("collected", sa.Integer(), nullable=False, server_default="0"))
    living = "select payment_id from commissions where commissions.is_void = 0"
    op.execute(f"update payments set collected = 1 where id in ({living})")  # noqa: S608 - no value is put in
    is_uncollected = sa.text("state = 'settled' and commission > 0 and collected = 0")
    _index("payments", "uncollected", ["id"], is_uncollected)
    _index("payments", "abandoned", ["payer"], sa.text("abandoned = 1"))
    op.drop_index("ix_movements_due", "movements")
    _index("movements", "due", ["kind", "id"], sa.text("state = 'due'"))
    op.drop_index("ix_deposits_unowned", "deposits")
    _index("deposits", "unowned", ["refund_id", "payment_id"], sa.text("payment_id is null and refund_id is null"))
    op.create_index("ix_deposits_nonce", "deposits", ["nonce"])
    for name in ("base_number", "base_balance"):
        op.add_column("ledger", sa.Column(name, sa.BigInteger(), nullable=False, server_default="0"))
    op.execute("update ledger set base_balance = start_balance")


def _index(table: str, name: str, columns: list[str], where: sa.TextClause) -> None:
    op.create_index(f"ix_{table}_{name}", table, columns, sqlite_where=where, postgresql_where=where)
