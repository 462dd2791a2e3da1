"""Reorganisations, refunds and the journal"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

NUMBER = sa.BigInteger()
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
# A table that SQLite makes anew keeps this only when it is told to.
AUTOINCREMENT = {"sqlite_autoincrement": True}


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def added(name: str, default: str = "0", type_: sa.types.TypeEngine[int] | None = None) -> sa.Column[int]:
    return sa.Column(name, type_ or sa.Integer(), nullable=False, server_default=default)


def upgrade() -> None:
    op.add_column("ledger", added("start_number", type_=NUMBER))
    op.add_column("ledger", added("start_balance", type_=NUMBER))
    op.execute("update ledger set start_number = cursor_number")
    op.add_column("payments", added("resend"))
    op.add_column("slots", sa.Column("block_hash", sa.String(66)))
    op.add_column("attempts", added("gas", type_=NUMBER))
    op.add_column("attempts", added("is_empty"))
    _journal()
    _deposits()
    _states()
    with op.batch_alter_table("commissions") as table:
        table.drop_constraint("pk_commissions", type_="primary")
        table.create_primary_key("pk_commissions", ["payment_id", "movement_id"])
        table.add_column(added("is_void"))
    op.create_index("uq_commissions_payment_id", "commissions", ["payment_id"], unique=True, **where("is_void = 0"))


def _journal() -> None:
    op.create_table(
        "journal",
        sa.Column("id", ID, nullable=False),
        sa.Column("payment_id", ID, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("transaction", sa.String(66)),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name="fk_journal_payment_id"),
        sa.PrimaryKeyConstraint("id", name="pk_journal"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_journal_payment_id", "journal", ["payment_id"])
    op.execute(
        "insert into journal (payment_id, state, reason, at) "
        "select id, 'open', '', created_at from payments order by id"
    )
    op.execute(
        'insert into journal (payment_id, state, "transaction", reason, at) '
        "select id, state, \"transaction\", reason, final_at from payments where state <> 'open' order by id"
    )


def _deposits() -> None:
    with op.batch_alter_table("deposits", table_kwargs=AUTOINCREMENT) as table:
        table.alter_column("nonce", existing_type=sa.String(66), nullable=True)
        table.add_column(added("on_chain", "1"))
        table.add_column(sa.Column("refund_id", ID))
        table.create_foreign_key("fk_deposits_refund_id", "movements", ["refund_id"], ["id"])
        table.create_unique_constraint("uq_deposits_refund_id", ["refund_id"])
        table.create_check_constraint("one_owner", "payment_id is null or refund_id is null")
    plain, unowned = where("nonce IS NULL"), where("payment_id IS NULL AND refund_id IS NULL")
    op.create_index("uq_deposits_plain", "deposits", ["transaction", "log_index"], unique=True, **plain)
    op.create_index("ix_deposits_unowned", "deposits", ["id"], **unowned)
    op.create_index("ix_movements_block_number", "movements", ["block_number"])
    op.create_index("ix_slots_block_number", "slots", ["block_number"])


def _states() -> None:
    for name, states in (
        ("movements", "'due', 'done', 'void'"),
        ("slots", "'open', 'mined', 'reverted', 'filled', 'lost'"),
    ):
        with op.batch_alter_table(name, table_kwargs=AUTOINCREMENT) as table:
            table.drop_constraint("state", type_="check")
            table.create_check_constraint("state", f"state in ({states})")
