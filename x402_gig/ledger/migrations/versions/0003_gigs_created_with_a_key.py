"""API keys, gigs created with one, and any token"""

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

NUMBER = sa.BigInteger()
ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
HEX = sa.String(66)
UNITS = sa.String(78)
# A table that SQLite makes anew keeps this only when it is told to.
AUTOINCREMENT = {"sqlite_autoincrement": True}


def upgrade() -> None:
    _api_keys()
    _gigs()
    _describe_gigs()
    _gig_deposits()
    _movements()


def _api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", ID, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("prefix", sa.String(32), nullable=False),
        sa.Column("hash", HEX, nullable=False),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.Column("expires_at", NUMBER),
        sa.Column("revoked_at", NUMBER),
        sa.Column("last_used_at", NUMBER),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("prefix", name="uq_api_keys_prefix"),
        sqlite_autoincrement=True,
    )


def _gigs() -> None:
    with op.batch_alter_table("gigs", table_kwargs=AUTOINCREMENT) as table:
        table.add_column(sa.Column("key_id", ID))
        table.create_foreign_key("fk_gigs_key_id", "api_keys", ["key_id"], ["id"])
        table.add_column(_text("state", 16, "live"))
        table.create_check_constraint("state", "state in ('created', 'live', 'cancelled')")
        table.add_column(_text("gig_type", 32))
        table.add_column(_text("platform", 16))
        table.add_column(_text("token", 66))
        table.add_column(sa.Column("symbol", sa.Text(), nullable=False, server_default=""))
        table.add_column(_number("decimals", sa.Integer()))
        for name in ("reward", "commission"):
            table.alter_column(name, existing_type=NUMBER, existing_nullable=False, type_=UNITS)
        table.add_column(_number("since_block"))
        table.add_column(_text("surplus", 78, "0"))
        table.add_column(_number("is_funded", sa.Integer(), "1"))
        table.add_column(_number("start_fence"))
        table.add_column(_number("start_until"))
    op.create_index("ix_gigs_key_id", "gigs", ["key_id"])
    op.create_index("ix_gigs_creator", "gigs", ["creator"])
    live = sa.text("state = 'live'")
    op.create_index("ix_gigs_live", "gigs", ["end_at"], sqlite_where=live, postgresql_where=live)
    unfunded = sa.text("is_funded = 0")
    op.create_index("ix_gigs_unfunded", "gigs", ["id"], sqlite_where=unfunded, postgresql_where=unfunded)


def _describe_gigs() -> None:
    """What lists are searched by is in the terms of older gigs only; all of them are in USDC."""
    connection = op.get_bind()
    names = ("gig_type", "platform", "token", "symbol", "decimals")
    gigs = sa.table("gigs", *map(sa.column, ("id", "terms", *names)))
    for gig_id, terms in connection.execute(sa.select(gigs.c.id, gigs.c.terms)).all():
        said = json.loads(terms)
        values = {
            "gig_type": said.get("gig_type", ""),
            "platform": said.get("platform", ""),
            "token": said.get("token_address", ""),
            "symbol": "USDC",
            "decimals": 6,
        }
        connection.execute(sa.update(gigs).where(gigs.c.id == gig_id).values(values))
    with op.batch_alter_table("gigs", table_kwargs=AUTOINCREMENT) as table:
        for name in names[:-1]:
            table.alter_column(name, server_default=None)


def _gig_deposits() -> None:
    op.create_table(
        "gig_deposits",
        sa.Column("id", ID, nullable=False),
        sa.Column("gig_id", ID, nullable=False),
        sa.Column("payer", HEX, nullable=False),
        sa.Column("value", UNITS, nullable=False),
        sa.Column("transaction", HEX, nullable=False),
        sa.Column("log_index", sa.Integer(), nullable=False),
        sa.Column("block_number", NUMBER, nullable=False),
        sa.Column("block_hash", HEX, nullable=False),
        sa.Column("on_chain", sa.Integer(), nullable=False, server_default="1"),
        sa.Column("created_at", NUMBER, nullable=False),
        sa.ForeignKeyConstraint(["gig_id"], ["gigs.id"], name="fk_gig_deposits_gig_id"),
        sa.PrimaryKeyConstraint("id", name="pk_gig_deposits"),
        sa.UniqueConstraint("gig_id", "transaction", "log_index", name="uq_gig_deposits_gig_id_transaction_log_index"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_gig_deposits_block_number", "gig_deposits", ["block_number"])


def _movements() -> None:
    kinds = "'reward', 'commission', 'refund', 'fee', 'surplus'"
    with op.batch_alter_table("movements", table_kwargs=AUTOINCREMENT) as table:
        table.add_column(sa.Column("source_gig", ID))
        table.create_foreign_key("fk_movements_source_gig", "gigs", ["source_gig"], ["id"])
        table.add_column(sa.Column("asset", HEX))
        table.alter_column("value", existing_type=NUMBER, existing_nullable=False, type_=UNITS)
        table.drop_constraint("kind", type_="check")
        table.create_check_constraint("kind", f"kind in ({kinds})")
    op.create_index("ix_movements_source_gig", "movements", ["source_gig"])


def _text(name: str, length: int, default: str = "") -> sa.Column[Any]:
    return sa.Column(name, sa.String(length), nullable=False, server_default=default)


def _number(name: str, type_: sa.types.TypeEngine[int] = NUMBER, default: str = "0") -> sa.Column[Any]:
    return sa.Column(name, type_, nullable=False, server_default=default)
