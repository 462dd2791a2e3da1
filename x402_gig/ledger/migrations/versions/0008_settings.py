"""Settings that all servers of a ledger share, in the ledger"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("ledger", sa.Column("network", sa.String(32)))
    op.add_column("ledger", sa.Column("wallet_account", sa.BigInteger()))
    op.add_column("ledger", sa.Column("commission_address", sa.String(66)))
    op.add_column("processes", sa.Column("relayers", sa.Integer(), nullable=False, server_default="0"))
    amounts = [sa.Column(name, sa.BigInteger(), nullable=False) for name in ("minimum_reward", "maximum_reward")]
    times = [sa.Column(name, sa.BigInteger(), nullable=False) for name in ("valid_from", "created_at")]
    op.create_table(
        "rule_sets",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), nullable=False),
        times[0],
        sa.Column("commission_bps", sa.Integer(), nullable=False),
        *amounts,
        times[1],
        sa.PrimaryKeyConstraint("id", name="pk_rule_sets"),
        sqlite_autoincrement=True,
    )
