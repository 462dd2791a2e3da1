"""The ledger"""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "ledger",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("chain_id", sa.BigInteger(), nullable=False),
        sa.Column("genesis", sa.String(length=66), nullable=False),
        sa.Column("intake", sa.String(length=66), nullable=False),
        sa.Column("cursor_number", sa.BigInteger(), nullable=False),
        sa.Column("cursor_hash", sa.String(length=66), nullable=False),
        sa.Column("funding_halt", sa.Text(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("ck_ledger_one_row")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger")),
    )
    op.create_table(
        "movements",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("subject", sa.BigInteger(), nullable=False),
        sa.Column("payee", sa.String(length=66), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("nonce", sa.String(length=66), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("transaction", sa.String(length=66), nullable=True),
        sa.Column("block_number", sa.BigInteger(), nullable=True),
        sa.Column("block_hash", sa.String(length=66), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("done_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("kind in ('reward', 'commission', 'refund')", name=op.f("ck_movements_kind")),
        sa.CheckConstraint("state in ('due', 'done')", name=op.f("ck_movements_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_movements")),
        sa.UniqueConstraint("kind", "subject", name=op.f("uq_movements_kind_subject")),
        sa.UniqueConstraint("nonce", name=op.f("uq_movements_nonce")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("movements", schema=None) as batch_op:
        batch_op.create_index(
            "ix_movements_due",
            ["id"],
            unique=False,
            sqlite_where=sa.text("state = 'due'"),
            postgresql_where=sa.text("state = 'due'"),
        )

    op.create_table(
        "payments",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("network", sa.String(length=32), nullable=False),
        sa.Column("asset", sa.String(length=66), nullable=False),
        sa.Column("payer", sa.String(length=66), nullable=False),
        sa.Column("nonce", sa.String(length=66), nullable=False),
        sa.Column("payee", sa.String(length=66), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("valid_after", sa.BigInteger(), nullable=False),
        sa.Column("valid_before", sa.BigInteger(), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("product", sa.String(length=64), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.String(length=66), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.String(length=128), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("commission", sa.BigInteger(), nullable=False),
        sa.Column("transaction", sa.String(length=66), nullable=True),
        sa.Column("broadcasts", sa.Integer(), nullable=False),
        sa.Column("abandoned", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("final_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state in ('open', 'settled', 'rejected')", name=op.f("ck_payments_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_payments")),
        sa.UniqueConstraint("network", "asset", "payer", "nonce", name=op.f("uq_payments_network_asset_payer_nonce")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("payments", schema=None) as batch_op:
        batch_op.create_index(
            "ix_payments_open",
            ["id"],
            unique=False,
            sqlite_where=sa.text("state = 'open'"),
            postgresql_where=sa.text("state = 'open'"),
        )
        batch_op.create_index("ix_payments_payer_fingerprint", ["payer", "fingerprint"], unique=False)

    op.create_table(
        "slots",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("relayer", sa.String(length=66), nullable=False),
        sa.Column("nonce", sa.BigInteger(), nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("transaction", sa.String(length=66), nullable=True),
        sa.Column("block_number", sa.BigInteger(), nullable=True),
        sa.Column("gas_used", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("closed_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint("state in ('open', 'mined', 'reverted', 'lost')", name=op.f("ck_slots_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_slots")),
        sa.UniqueConstraint("relayer", "nonce", name=op.f("uq_slots_relayer_nonce")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("slots", schema=None) as batch_op:
        batch_op.create_index(
            "ix_slots_open",
            ["relayer"],
            unique=False,
            sqlite_where=sa.text("state = 'open'"),
            postgresql_where=sa.text("state = 'open'"),
        )

    op.create_table(
        "aliases",
        sa.Column("network", sa.String(length=32), nullable=False),
        sa.Column("asset", sa.String(length=66), nullable=False),
        sa.Column("payer", sa.String(length=66), nullable=False),
        sa.Column("nonce", sa.String(length=66), nullable=False),
        sa.Column("signature", sa.Text(), nullable=False),
        sa.Column("payment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_aliases_payment_id")),
        sa.PrimaryKeyConstraint("network", "asset", "payer", "nonce", name=op.f("pk_aliases")),
    )
    with op.batch_alter_table("aliases", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_aliases_payment_id"), ["payment_id"], unique=False)

    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("slot_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("hash", sa.String(length=66), nullable=False),
        sa.Column("raw", sa.Text(), nullable=False),
        sa.Column("max_fee", sa.BigInteger(), nullable=False),
        sa.Column("priority_fee", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["slot_id"], ["slots.id"], name=op.f("fk_attempts_slot_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
        sa.UniqueConstraint("hash", name=op.f("uq_attempts_hash")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("attempts", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_attempts_slot_id"), ["slot_id"], unique=False)

    op.create_table(
        "commissions",
        sa.Column("payment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("movement_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["movement_id"], ["movements.id"], name=op.f("fk_commissions_movement_id")),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_commissions_payment_id")),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("pk_commissions")),
    )
    with op.batch_alter_table("commissions", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_commissions_movement_id"), ["movement_id"], unique=False)

    op.create_table(
        "deposits",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("asset", sa.String(length=66), nullable=False),
        sa.Column("payer", sa.String(length=66), nullable=False),
        sa.Column("nonce", sa.String(length=66), nullable=False),
        sa.Column("value", sa.BigInteger(), nullable=False),
        sa.Column("transaction", sa.String(length=66), nullable=False),
        sa.Column("log_index", sa.Integer(), nullable=False),
        sa.Column("block_number", sa.BigInteger(), nullable=False),
        sa.Column("block_hash", sa.String(length=66), nullable=False),
        sa.Column("payment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_deposits_payment_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deposits")),
        sa.UniqueConstraint("asset", "payer", "nonce", name=op.f("uq_deposits_asset_payer_nonce")),
        sa.UniqueConstraint("payment_id", name=op.f("uq_deposits_payment_id")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("deposits", schema=None) as batch_op:
        batch_op.create_index("ix_deposits_block_number", ["block_number"], unique=False)

    op.create_table(
        "gigs",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("payment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=True),
        sa.Column("wallet", sa.String(length=66), nullable=False),
        sa.Column("creator", sa.String(length=66), nullable=False),
        sa.Column("terms", sa.Text(), nullable=False),
        sa.Column("reward", sa.BigInteger(), nullable=False),
        sa.Column("commission", sa.BigInteger(), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        sa.Column("end_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_gigs_payment_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_gigs")),
        sa.UniqueConstraint("payment_id", name=op.f("uq_gigs_payment_id")),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "slot_movements",
        sa.Column("slot_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("movement_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("valid_before", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["movement_id"], ["movements.id"], name=op.f("fk_slot_movements_movement_id")),
        sa.ForeignKeyConstraint(["slot_id"], ["slots.id"], name=op.f("fk_slot_movements_slot_id")),
        sa.PrimaryKeyConstraint("slot_id", "movement_id", name=op.f("pk_slot_movements")),
    )
    with op.batch_alter_table("slot_movements", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_slot_movements_movement_id"), ["movement_id"], unique=False)

    op.create_table(
        "slot_payments",
        sa.Column("slot_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.Column("payment_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        sa.ForeignKeyConstraint(["payment_id"], ["payments.id"], name=op.f("fk_slot_payments_payment_id")),
        sa.ForeignKeyConstraint(["slot_id"], ["slots.id"], name=op.f("fk_slot_payments_slot_id")),
        sa.PrimaryKeyConstraint("slot_id", "payment_id", name=op.f("pk_slot_payments")),
    )
    with op.batch_alter_table("slot_payments", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_slot_payments_payment_id"), ["payment_id"], unique=False)
