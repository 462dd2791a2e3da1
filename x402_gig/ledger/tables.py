"""The ledger's tables. Nothing but processes is ever deleted; money rows change only forward through their states.

Amounts are base units, times Unix seconds, hex lower case with `0x`.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    ColumnElement,
    Connection,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    insert,
)


def _where(condition: ColumnElement[bool]) -> dict[str, Any]:
    """Of a partial index; `make` names the database, whose part of SQLAlchemy takes its time to import."""
    return {"info": {"where": condition}}


metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


class Units(TypeDecorator[int]):
    """Base units of any token, as digits: a uint256 is more than a database's integers hold."""

    impl = String(78)
    cache_ok = True

    def process_bind_param(self, value: int | None, dialect: Any) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: str | None, dialect: Any) -> int | None:
        return None if value is None else int(value)


# SQLite gives out rowids only for INTEGER; AUTOINCREMENT below keeps it from using one twice.
Id = BigInteger().with_variant(Integer, "sqlite")
Hex = String(66)

ledger = Table(
    "ledger",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("chain_id", BigInteger, nullable=False),
    Column("genesis", Hex, nullable=False),
    Column("intake", Hex, nullable=False),
    # Every deposit up to this block is in the ledger.
    Column("cursor_number", BigInteger, nullable=False),
    Column("cursor_hash", Hex, nullable=False),
    # Where the ledger begins, and what the intake held there.
    Column("start_number", BigInteger, nullable=False, default=0, server_default="0"),
    Column("start_balance", BigInteger, nullable=False, default=0, server_default="0"),
    # What the intake held at a block so old that nothing changes up to there: sums begin here.
    Column("base_number", BigInteger, nullable=False, default=0, server_default="0"),
    Column("base_balance", BigInteger, nullable=False, default=0, server_default="0"),
    # Grows whenever the blocks of late are to be read again, by all servers.
    Column("doubts", BigInteger, nullable=False, default=0, server_default="0"),
    # Why our own authorizations are not signed any more; empty while they are.
    Column("funding_halt", Text, nullable=False, default=""),
    Column("created_at", BigInteger, nullable=False),
    # Who its servers are, by the names of their settings; empty until one has started with this version.
    Column("network", String(32)),
    Column("wallet_account", BigInteger),
    Column("commission_address", Hex),
    CheckConstraint("id = 1", name="one_row"),
)

# What gigs cost and how large they may be, each from its time on, by the database's clock.
rule_sets = Table(
    "rule_sets",
    metadata,
    Column("id", Id, primary_key=True),
    Column("valid_from", BigInteger, nullable=False),
    Column("commission_bps", Integer, nullable=False),
    Column("minimum_reward", BigInteger, nullable=False),
    Column("maximum_reward", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

payments = Table(
    "payments",
    metadata,
    Column("id", Id, primary_key=True),
    Column("network", String(32), nullable=False),
    Column("asset", Hex, nullable=False),
    Column("payer", Hex, nullable=False),
    Column("nonce", Hex, nullable=False),
    Column("payee", Hex, nullable=False),
    Column("value", BigInteger, nullable=False),
    Column("valid_after", BigInteger, nullable=False),
    Column("valid_before", BigInteger, nullable=False),
    Column("signature", Text, nullable=False),
    Column("product", String(64), nullable=False),
    Column("terms", Text, nullable=False),
    Column("fingerprint", Hex, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(128), nullable=False, default=""),
    Column("detail", Text, nullable=False, default=""),
    Column("answer", Text),
    Column("commission", BigInteger, nullable=False, default=0),
    Column("transaction", Hex),
    Column("broadcasts", Integer, nullable=False, default=0),
    Column("abandoned", Integer, nullable=False, default=0),
    # To be sent once more although nobody waits for it: its deposit was reorganised away, or the operator said so.
    Column("resend", Integer, nullable=False, default=0, server_default="0"),
    # A remote facilitator's last answer was a failure without a transaction.
    Column("failed", Integer, nullable=False, default=0, server_default="0"),
    # Its commission is in a row of commissions that is not void.
    Column("collected", Integer, nullable=False, default=0, server_default="0"),
    Column("created_at", BigInteger, nullable=False),
    Column("final_at", BigInteger),
    UniqueConstraint("network", "asset", "payer", "nonce"),
    CheckConstraint("state in ('open', 'settled', 'rejected')", name="state"),
    Index("ix_payments_open", "id", **_where(Column("state") == "open")),
    Index("ix_payments_payer_fingerprint", "payer", "fingerprint"),
    Index("ix_payments_abandoned", "payer", **_where(Column("abandoned") == 1)),
    Index(
        "ix_payments_uncollected",
        "id",
        **_where((Column("state") == "settled") & (Column("commission") > 0) & (Column("collected") == 0)),
    ),
    sqlite_autoincrement=True,
)

# A second authorization for terms whose first one was abandoned: it is never sent, it only gives its answer.
aliases = Table(
    "aliases",
    metadata,
    Column("network", String(32), primary_key=True),
    Column("asset", Hex, primary_key=True),
    Column("payer", Hex, primary_key=True),
    Column("nonce", Hex, primary_key=True),
    Column("signature", Text, nullable=False),
    Column("payment_id", Id, ForeignKey("payments.id"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
)

# Each state that a payment went through; rows are only added.
journal = Table(
    "journal",
    metadata,
    Column("id", Id, primary_key=True),
    Column("payment_id", Id, ForeignKey("payments.id"), nullable=False, index=True),
    Column("state", String(16), nullable=False),
    Column("transaction", Hex),
    Column("reason", Text, nullable=False, default=""),
    Column("at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

# Money that came to the intake, by an authorization or (without a nonce) by a plain transfer. Its one owner, a payment
# or a refund, is set once, by compare-and-set; only a reorganisation that takes the deposit away takes it back.
deposits = Table(
    "deposits",
    metadata,
    Column("id", Id, primary_key=True),
    Column("asset", Hex, nullable=False),
    Column("payer", Hex, nullable=False),
    Column("nonce", Hex),
    Column("value", BigInteger, nullable=False),
    Column("transaction", Hex, nullable=False),
    Column("log_index", Integer, nullable=False),
    Column("block_number", BigInteger, nullable=False),
    Column("block_hash", Hex, nullable=False),
    # 0 while the block it was seen in is not part of the chain.
    Column("on_chain", Integer, nullable=False, default=1, server_default="1"),
    Column("payment_id", Id, ForeignKey("payments.id"), unique=True),
    Column("refund_id", Id, ForeignKey("movements.id"), unique=True),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("asset", "payer", "nonce"),
    CheckConstraint("payment_id is null or refund_id is null", name="one_owner"),
    Index("ix_deposits_block_number", "block_number"),
    Index("uq_deposits_plain", "transaction", "log_index", unique=True, **_where(Column("nonce").is_(None))),
    Index("ix_deposits_nonce", "nonce"),
    # Both columns, or the unique index of one of them is taken for the better one.
    Index(
        "ix_deposits_unowned",
        "refund_id",
        "payment_id",
        **_where(Column("payment_id").is_(None) & Column("refund_id").is_(None)),
    ),
    # Anybody can send dust that stays for ever: what is worth a refund is found by its value.
    Index(
        "ix_deposits_refundable",
        "refund_id",
        "payment_id",
        "value",
        **_where(Column("payment_id").is_(None) & Column("refund_id").is_(None) & Column("nonce").is_not(None)),
    ),
    sqlite_autoincrement=True,
)

# Money that is to move out of the intake or a gig's wallet, by an authorization whose nonce says what it is for; other
# tokens than USDC move by a transaction of the gig's wallet.
movements = Table(
    "movements",
    metadata,
    Column("id", Id, primary_key=True),
    Column("kind", String(16), nullable=False),
    # The gig's id (reward, fee), the row's number (commission, surplus), or the deposit's id.
    Column("subject", BigInteger, nullable=False),
    # The gig whose wallet it leaves; empty: it leaves the intake.
    Column("source_gig", Id, ForeignKey("gigs.id"), index=True),
    # Empty: the token that we are paid in.
    Column("asset", Hex),
    Column("payee", Hex, nullable=False),
    Column("value", Units, nullable=False),
    Column("nonce", Hex, nullable=False, unique=True),
    Column("state", String(16), nullable=False),
    Column("transaction", Hex),
    Column("block_number", BigInteger),
    Column("block_hash", Hex),
    Column("created_at", BigInteger, nullable=False),
    Column("done_at", BigInteger),
    UniqueConstraint("kind", "subject"),
    CheckConstraint("kind in ('reward', 'commission', 'refund', 'fee', 'surplus')", name="kind"),
    CheckConstraint("state in ('due', 'done', 'void')", name="state"),
    Index("ix_movements_block_number", "block_number"),
    Index("ix_movements_due", "kind", "id", **_where(Column("state") == "due")),
    sqlite_autoincrement=True,
)

# Which payments' commissions a commission movement carries; a payment is in one only that is not void.
commissions = Table(
    "commissions",
    metadata,
    Column("payment_id", Id, ForeignKey("payments.id"), primary_key=True),
    Column("movement_id", Id, ForeignKey("movements.id"), primary_key=True, index=True),
    Column("is_void", Integer, nullable=False, default=0, server_default="0"),
    Index("uq_commissions_payment_id", "payment_id", unique=True, **_where(Column("is_void") == 0)),
)

# One nonce of one relayer. Closed when a block shows the nonce used, open again when that block is replaced.
slots = Table(
    "slots",
    metadata,
    Column("id", Id, primary_key=True),
    Column("relayer", Hex, nullable=False),
    Column("nonce", BigInteger, nullable=False),
    Column("purpose", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("transaction", Hex),
    Column("block_number", BigInteger),
    Column("block_hash", Hex),
    Column("gas_used", BigInteger),
    Column("created_at", BigInteger, nullable=False),
    Column("closed_at", BigInteger),
    UniqueConstraint("relayer", "nonce"),
    CheckConstraint("state in ('open', 'mined', 'reverted', 'filled', 'lost')", name="state"),
    Index("ix_slots_open", "relayer", **_where(Column("state") == "open")),
    Index("ix_slots_block_number", "block_number"),
    sqlite_autoincrement=True,
)

# Every transaction signed for a slot: any of them may be the one that is mined.
attempts = Table(
    "attempts",
    metadata,
    Column("id", Id, primary_key=True),
    Column("slot_id", Id, ForeignKey("slots.id"), nullable=False, index=True),
    Column("hash", Hex, nullable=False, unique=True),
    Column("raw", Text, nullable=False),
    Column("gas", BigInteger, nullable=False, default=0, server_default="0"),
    # It only uses the nonce up, so that what is behind it moves.
    Column("is_empty", Integer, nullable=False, default=0, server_default="0"),
    Column("max_fee", BigInteger, nullable=False),
    Column("priority_fee", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    sqlite_autoincrement=True,
)

slot_payments = Table(
    "slot_payments",
    metadata,
    Column("slot_id", Id, ForeignKey("slots.id"), primary_key=True),
    Column("payment_id", Id, ForeignKey("payments.id"), primary_key=True, index=True),
)

slot_movements = Table(
    "slot_movements",
    metadata,
    Column("slot_id", Id, ForeignKey("slots.id"), primary_key=True),
    Column("movement_id", Id, ForeignKey("movements.id"), primary_key=True, index=True),
    Column("valid_before", BigInteger, nullable=False),
)

# Who may create gigs without paying for each; the key itself is not kept.
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False),
    Column("prefix", String(32), nullable=False, unique=True),
    Column("hash", Hex, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
    sqlite_autoincrement=True,
)

# Bought with a payment and live at once, or created with an API key and live when it is funded and started.
gigs = Table(
    "gigs",
    metadata,
    Column("id", Id, primary_key=True),
    Column("payment_id", Id, ForeignKey("payments.id"), unique=True),
    Column("key_id", Id, ForeignKey("api_keys.id"), index=True),
    Column("state", String(16), nullable=False, default="live", server_default="live"),
    Column("wallet", Hex, nullable=False),
    # The payer's address; of a gig created with a key, whoever funded it (empty until then).
    Column("creator", Hex, nullable=False, index=True),
    Column("terms", Text, nullable=False),
    Column("gig_type", String(32), nullable=False, default=""),
    Column("platform", String(16), nullable=False, default=""),
    Column("token", Hex, nullable=False, default=""),
    Column("symbol", Text, nullable=False, default=""),
    Column("decimals", Integer, nullable=False, default=0, server_default="0"),
    Column("reward", Units, nullable=False),
    Column("commission", Units, nullable=False),
    Column("start_at", BigInteger, nullable=False),
    Column("end_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    # Of a gig created with a key: the block before which nothing can have come to its wallet,
    Column("since_block", BigInteger, nullable=False, default=0, server_default="0"),
    # what its wallet held beyond the total when it was started,
    Column("surplus", Units, nullable=False, default=0, server_default="0"),
    # whether a reorganisation has taken its funding away since,
    Column("is_funded", Integer, nullable=False, default=1, server_default="1"),
    # and who is starting it: a number that only grows, and until when nobody else may.
    Column("start_fence", BigInteger, nullable=False, default=0, server_default="0"),
    Column("start_until", BigInteger, nullable=False, default=0, server_default="0"),
    CheckConstraint("state in ('created', 'live', 'cancelled')", name="state"),
    Index("ix_gigs_live", "end_at", **_where(Column("state") == "live")),
    Index("ix_gigs_unfunded", "id", **_where(Column("is_funded") == 0)),
    sqlite_autoincrement=True,
)

# Which id the next gig gets, and up to which id the wallets were looked at. One row.
gig_ids = Table(
    "gig_ids",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("next", BigInteger, nullable=False),
    Column("looked_to", BigInteger, nullable=False),
    CheckConstraint("id = 1", name="one_row"),
)

# Ids that are given to no gig: the wallet of the last one of each row was used by a gig that this ledger does not know,
# and those below it were given out before.
skipped_ids = Table(
    "skipped_ids",
    metadata,
    Column("first", BigInteger, primary_key=True, autoincrement=False),
    Column("last", BigInteger, nullable=False),
    Column("wallet", Hex, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

# What came to the wallet of a gig that was created with a key.
gig_deposits = Table(
    "gig_deposits",
    metadata,
    Column("id", Id, primary_key=True),
    Column("gig_id", Id, ForeignKey("gigs.id"), nullable=False),
    Column("payer", Hex, nullable=False),
    Column("value", Units, nullable=False),
    Column("transaction", Hex, nullable=False),
    Column("log_index", Integer, nullable=False),
    Column("block_number", BigInteger, nullable=False, index=True),
    Column("block_hash", Hex, nullable=False),
    # 0 while the block it was seen in is not part of the chain.
    Column("on_chain", Integer, nullable=False, default=1, server_default="1"),
    Column("created_at", BigInteger, nullable=False),
    UniqueConstraint("gig_id", "transaction", "log_index"),
    sqlite_autoincrement=True,
)

# The servers at work on this ledger, each alive until its deadline.
processes = Table(
    "processes",
    metadata,
    Column("id", Id, primary_key=True),
    Column("ends_at", BigInteger, nullable=False),
    # How many relayers it knows.
    Column("relayers", Integer, nullable=False, default=0, server_default="0"),
    sqlite_autoincrement=True,
)

# What one process at a time may use: a relayer, by its address, or the right to move money on. The fence grows whenever
# it is taken, and only who has the newest may write.
leases = Table(
    "leases",
    metadata,
    Column("name", Hex, primary_key=True),
    Column("process_id", Id, ForeignKey("processes.id"), index=True),
    Column("fence", BigInteger, nullable=False),
)


def make(connection: Connection) -> None:
    """All of them, in an empty database."""
    for index in (index for table in metadata.tables.values() for index in table.indexes):
        if "where" in index.info:
            index.dialect_options[connection.dialect.name]["where"] = index.info["where"]
    metadata.create_all(connection)
    connection.execute(insert(gig_ids).values(id=1, next=1, looked_to=0))
