"""Relayer slots: one nonce of one relayer, every transaction signed for it, and how it ended."""

import time
from collections.abc import Iterable
from typing import Any

from msgspec import Struct
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    union_all,
    update,
)

from x402_gig.evm.node import SignedTransaction
from x402_gig.ledger import states
from x402_gig.ledger.engine import InsertIgnore
from x402_gig.ledger.tables import attempts, gigs, movements, payments, slot_movements, slot_payments, slots

DEPLOY = "deploy"
# A gig's wallet gets gas, and sends a token by a transaction of its own.
GAS, FUNDING, PAYOUT = "gas", "funding", "payout"


class Attempt(Struct, frozen=True):
    """One transaction signed for a slot. An empty one only uses the nonce up."""

    transaction: SignedTransaction
    max_fee: int
    priority_fee: int
    gas: int
    is_empty: bool = False


class Slot(Struct, frozen=True):
    """`first` is what has just been signed for a new one; of others see `attempts_of`."""

    slot_id: int
    relayer: str
    nonce: int
    purpose: str
    first: Attempt | None = None


class End(Struct, frozen=True):
    """The block that closed a slot, and the transaction of ours in it, if any."""

    block_number: int
    block_hash: str
    transaction: str | None = None
    gas_used: int | None = None


def _open() -> Any:
    after_last = func.coalesce(func.max(slots.c.nonce) + 1, 0)
    chain_nonce = bindparam("chain_nonce", type_=BigInteger)
    values = {
        "relayer": bindparam("relayer", type_=slots.c.relayer.type),
        "nonce": case((after_last > chain_nonce, after_last), else_=chain_nonce),
        "purpose": bindparam("purpose", type_=slots.c.purpose.type),
        "state": literal("open"),
        "created_at": bindparam("now", type_=BigInteger),
    }
    row = select(*values.values()).where(slots.c.relayer == values["relayer"])
    return insert(slots).from_select(list(values), row).returning(slots.c.id, slots.c.nonce)


_OPEN = _open()
_ADD_ATTEMPT = InsertIgnore(attempts, attempts.c.id)
_ENTER_PAYMENTS = insert(slot_payments)


def open_slot(connection: Connection, relayer: str, purpose: str, chain_nonce: int) -> Slot:
    """Take the relayer's next nonce: the one after its last slot, or the chain's when that is ahead."""
    values = {"relayer": relayer, "chain_nonce": chain_nonce, "purpose": purpose, "now": int(time.time())}
    slot_id, nonce = connection.execute(_OPEN, values).one()
    return Slot(slot_id, relayer, nonce, purpose)


def add_attempt(connection: Connection, slot: Slot, attempt: Attempt) -> None:
    """Keep a signed transaction. It may be there already: after a lost commit the same one is signed again."""
    values = {
        "slot_id": slot.slot_id,
        "hash": attempt.transaction.hash,
        "raw": attempt.transaction.raw,
        "max_fee": attempt.max_fee,
        "priority_fee": attempt.priority_fee,
        "gas": attempt.gas,
        "is_empty": int(attempt.is_empty),
        "created_at": int(time.time()),
    }
    _ADD_ATTEMPT(connection, [values])


def enter_payments(connection: Connection, slot: Slot, payment_ids: Iterable[int]) -> None:
    rows = [{"slot_id": slot.slot_id, "payment_id": payment_id} for payment_id in payment_ids]
    connection.execute(_ENTER_PAYMENTS, rows)


_IS_OPEN = select(slots.c.id).where(slots.c.id == bindparam("slot_id"), slots.c.state == "open")
_OPEN_SLOTS = (
    select(slots).where(slots.c.relayer == bindparam("relayer"), slots.c.state == "open").order_by(slots.c.nonce)
)


def open_slots(connection: Connection, relayer: str) -> list[Slot]:
    """Slots whose end is not known, in the order of their nonces."""
    rows = connection.execute(_OPEN_SLOTS, {"relayer": relayer}).mappings()
    return [Slot(row["id"], row["relayer"], row["nonce"], row["purpose"]) for row in rows]


def busy_relayers(connection: Connection) -> set[str]:
    """The relayers that have a slot whose end is not known; not the gigs' wallets."""
    is_busy = (slots.c.state == "open", slots.c.purpose != PAYOUT)
    return set(connection.execute(select(slots.c.relayer).where(*is_busy).distinct()).scalars())


def open_payouts(connection: Connection) -> list[int]:
    """The gigs whose wallets have sent something whose end is not known."""
    carried = select(slot_movements.c.movement_id).join(slots, slots.c.id == slot_movements.c.slot_id)
    sent = movements.c.id.in_(carried.where(slots.c.state == "open", slots.c.purpose == PAYOUT))
    return list(connection.execute(select(movements.c.source_gig).where(sent)).scalars())


def is_open(connection: Connection, slot: Slot) -> bool:
    return connection.execute(_IS_OPEN, {"slot_id": slot.slot_id}).first() is not None


def is_backed(connection: Connection, slot: Slot) -> bool:
    """Not while a reorganisation has taken the funding of a gig away whose wallet pays in it."""
    pays = select(gigs.c.id).join(movements, movements.c.source_gig == gigs.c.id).join(slot_movements)
    unfunded = pays.where(slot_movements.c.slot_id == slot.slot_id, gigs.c.is_funded == 0)
    return connection.execute(unfunded).first() is None


def sent_by(connection: Connection, sender: str) -> int:
    """How many nonces of this account the ledger knows."""
    return int(connection.execute(select(func.count()).where(slots.c.relayer == sender)).scalar_one())


def attempts_of(connection: Connection, slot: Slot) -> list[Attempt]:
    """Every transaction signed for the slot, newest first."""
    query = select(attempts).where(attempts.c.slot_id == slot.slot_id).order_by(attempts.c.id.desc())
    return [
        Attempt(
            SignedTransaction(row["hash"], row["raw"]),
            row["max_fee"],
            row["priority_fee"],
            row["gas"],
            bool(row["is_empty"]),
        )
        for row in connection.execute(query).mappings()
    ]


def payments_of(connection: Connection, slot: Slot) -> list[int]:
    query = select(slot_payments.c.payment_id).where(slot_payments.c.slot_id == slot.slot_id)
    return list(connection.execute(query).scalars())


def is_wanted(connection: Connection, slot: Slot) -> bool:
    """Does it still carry anything that is not done?"""
    payment = select(1).join(slot_payments).where(slot_payments.c.slot_id == slot.slot_id, payments.c.state == "open")
    movement = (
        select(1).join(slot_movements).where(slot_movements.c.slot_id == slot.slot_id, movements.c.state == "due")
    )
    found = connection.execute(union_all(payment.select_from(payments), movement.select_from(movements)).limit(1))
    return slot.purpose == DEPLOY or found.first() is not None


def _may_become(state: str) -> ColumnElement[bool]:
    # Not IN, which is put together anew each time.
    return or_(*(slots.c.state == before for before in states.before("slot", state)))


_CLOSE = {
    state: update(slots).where(slots.c.id == bindparam("slot_id"), _may_become(state)).values(state=state)
    for state in ("mined", "reverted", "filled", "lost")
}


def close(connection: Connection, slot: Slot, state: str, end: End) -> None:
    """`mined`, `reverted`, `filled` (by the empty transaction) or `lost` (to a transaction that is not ours)."""
    values = {
        "slot_id": slot.slot_id,
        "transaction": end.transaction,
        "block_number": end.block_number,
        "block_hash": end.block_hash,
        "gas_used": end.gas_used,
        "closed_at": int(time.time()),
    }
    connection.execute(_CLOSE[state], values)


def forget_block(connection: Connection, number: int, block_hash: str) -> bool:
    """Slots that were closed by another block of this height are open again; True when there were any."""
    replaced = update(slots).where(
        slots.c.block_number == number,
        slots.c.block_hash != block_hash,
        slots.c.state.in_(states.before("slot", "open")),
    )
    nowhere = {"transaction": None, "block_number": None, "block_hash": None, "gas_used": None, "closed_at": None}
    return connection.execute(replaced.values(state="open", **nowhere)).rowcount > 0
