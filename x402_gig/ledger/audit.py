"""All that the ledger says about money, in one consistent view, for the comparison with the chain."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, Table, func, select

from x402_gig.ledger import gig_ids
from x402_gig.ledger.chain_state import Cursor
from x402_gig.ledger.gig_ids import Skip
from x402_gig.ledger.slots import PAYOUT
from x402_gig.ledger.tables import (
    attempts,
    commissions,
    deposits,
    gig_deposits,
    gigs,
    journal,
    ledger,
    movements,
    payments,
    slot_movements,
    slots,
)

Row = TypeVar("Row", "DepositRow", "PaymentRow", "GigRow", "KeyedRow", "GigDepositRow", "MovementRow")


class DepositRow(Struct, frozen=True):
    id: int
    asset: str
    payer: str
    nonce: str | None
    value: int
    transaction: str
    log_index: int
    block_number: int
    on_chain: int
    payment_id: int | None
    refund_id: int | None

    @property
    def source(self) -> tuple[str | int, ...]:
        """What it is known by on chain."""
        return (self.payer, self.nonce) if self.nonce is not None else (self.transaction, self.log_index)


class PaymentRow(Struct, frozen=True):
    id: int
    payer: str
    nonce: str
    value: int
    state: str
    transaction: str | None
    commission: int


class GigRow(Struct, frozen=True):
    id: int
    payment_id: int | None
    wallet: str
    reward: int
    commission: int


class KeyedRow(Struct, frozen=True):
    """A gig that was created with an API key; amounts in base units of its token."""

    id: int
    state: str
    wallet: str
    token: str
    reward: int
    commission: int
    is_funded: int
    since_block: int


class GigDepositRow(Struct, frozen=True):
    id: int
    gig_id: int
    value: int
    transaction: str
    log_index: int
    block_number: int
    on_chain: int


class MovementRow(Struct, frozen=True):
    id: int
    kind: str
    subject: int
    payee: str
    value: int
    nonce: str
    state: str
    transaction: str | None
    block_number: int | None
    source_gig: int | None

    def is_done_by(self, block_number: int) -> bool:
        return self.state == "done" and (self.block_number or 0) <= block_number


class OpenPayout(Struct, frozen=True):
    """What a gig's wallet has sent and whose end is not known: all transactions that were signed for one nonce."""

    gig_id: int
    wallet: str
    nonce: int
    transactions: list[str]


class Books(Struct, frozen=True):
    """Rows by id: `movements` are the intake's, `payouts` those of the wallets of the `keyed` gigs.

    `cursor`: every deposit up to there is in it. `commissions`: the living (payment, movement) pairs.

    `signed`: the movements that were in a transaction of ours. `unlike_journal`: the payments whose newest entry in
    the journal is another state than theirs. `skips`: the ids that were given to no gig.
    """

    start_number: int
    start_balance: int
    cursor: Cursor
    halt: str
    deposits: Mapping[int, DepositRow]
    payments: Mapping[int, PaymentRow]
    gigs: Mapping[int, GigRow]
    movements: Mapping[int, MovementRow]
    keyed: Mapping[int, KeyedRow]
    gig_deposits: Mapping[int, GigDepositRow]
    payouts: Mapping[int, MovementRow]
    open_payouts: Sequence[OpenPayout]
    commissions: Sequence[tuple[int, int]]
    signed: frozenset[int]
    unlike_journal: frozenset[int]
    skips: Sequence[Skip]

    @property
    def begin(self) -> int:
        """The block after which all that moved is in the ledger: it may know of some before its own beginning."""
        blocks = [d.block_number for d in self.deposits.values()]
        blocks += [m.block_number for m in self.movements.values() if m.block_number is not None]
        return min(self.start_number, min(blocks, default=self.start_number + 1) - 1)


def read_books(connection: Connection) -> Books:
    one = connection.execute(select(ledger)).mappings().one()
    return Books(
        start_number=one["start_number"],
        start_balance=one["start_balance"],
        cursor=Cursor(one["cursor_number"], one["cursor_hash"]),
        halt=one["funding_halt"],
        deposits=_rows(connection, deposits, DepositRow),
        payments=_rows(connection, payments, PaymentRow),
        gigs=_rows(connection, gigs, GigRow, gigs.c.key_id.is_(None)),
        movements=_rows(connection, movements, MovementRow, movements.c.source_gig.is_(None)),
        keyed=_rows(connection, gigs, KeyedRow, gigs.c.key_id.is_not(None)),
        gig_deposits=_rows(connection, gig_deposits, GigDepositRow),
        payouts=_rows(connection, movements, MovementRow, movements.c.source_gig.is_not(None)),
        open_payouts=_open_payouts(connection),
        commissions=[
            (row[0], row[1]) for row in connection.execute(select(commissions).where(commissions.c.is_void == 0))
        ],
        signed=frozenset(connection.execute(select(slot_movements.c.movement_id)).scalars()),
        unlike_journal=_unlike_journal(connection),
        skips=gig_ids.skips(connection),
    )


def _rows(
    connection: Connection, table: Table, row_type: type[Row], *conditions: ColumnElement[bool]
) -> dict[int, Row]:
    query = select(*(table.c[name] for name in row_type.__struct_fields__)).where(*conditions)
    return {row[0]: row_type(*row) for row in connection.execute(query.order_by(table.c.id))}


def _open_payouts(connection: Connection) -> list[OpenPayout]:
    query = (
        select(slots.c.id, movements.c.source_gig, slots.c.relayer, slots.c.nonce, attempts.c.hash)
        .join(attempts, attempts.c.slot_id == slots.c.id)
        .join(slot_movements, slot_movements.c.slot_id == slots.c.id)
        .join(movements, movements.c.id == slot_movements.c.movement_id)
        .where(slots.c.state == "open", slots.c.purpose == PAYOUT)
    )
    found: dict[int, OpenPayout] = {}
    for slot_id, gig_id, wallet, nonce, transaction in connection.execute(query):
        found.setdefault(slot_id, OpenPayout(gig_id, wallet, nonce, [])).transactions.append(transaction)
    return list(found.values())


def _unlike_journal(connection: Connection) -> frozenset[int]:
    newest = select(func.max(journal.c.id)).group_by(journal.c.payment_id)
    noted = select(journal).where(journal.c.id.in_(newest)).subquery()
    query = (
        select(payments.c.id)
        .outerjoin(noted, noted.c.payment_id == payments.c.id)
        .where(func.coalesce(noted.c.state, "") != payments.c.state)
    )
    return frozenset(connection.execute(query).scalars())
