"""An id is given to a gig after its wallet was looked at; dust hides no refund"""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"

NUMBER = sa.BigInteger()
# Where gigs got their ids from before.
COUNTED = {
    "sqlite": "select seq from sqlite_sequence where name = 'gigs'",
    "postgresql": "select last_value from gigs_id_seq where is_called",
}


def upgrade() -> None:
    _gig_ids()
    op.create_table(
        "skipped_ids",
        sa.Column("first", NUMBER, autoincrement=False, nullable=False),
        sa.Column("last", NUMBER, nullable=False),
        sa.Column("wallet", sa.String(66), nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("first", name="pk_skipped_ids"),
    )
    is_refundable = sa.text("payment_id is null and refund_id is null and nonce is not null")
    columns = ["refund_id", "payment_id", "value"]
    op.create_index(
        "ix_deposits_refundable", "deposits", columns, sqlite_where=is_refundable, postgresql_where=is_refundable
    )


def _gig_ids() -> None:
    ids = op.create_table(
        "gig_ids",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("next", NUMBER, nullable=False),
        sa.Column("looked_to", NUMBER, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_gig_ids"),
        sa.CheckConstraint("id = 1", name=op.f("ck_gig_ids_one_row")),
    )
    connection = op.get_bind()
    last = connection.execute(sa.text(COUNTED[connection.dialect.name])).scalar() or 0
    connection.execute(sa.insert(ids).values(id=1, next=last + 1, looked_to=last))
