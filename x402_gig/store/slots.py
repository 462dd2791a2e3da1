"""Relayer slots: one nonce of one relayer, every transaction signed for it, and how it ended."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy import Connection, func, insert, select, update

from x402_gig.chain.node import SignedTransaction
from x402_gig.store.tables import attempts, slot_payments, slots


@dataclass(frozen=True)
class Slot:
    slot_id: int
    relayer: str
    nonce: int
    purpose: str


@dataclass(frozen=True)
class Attempt:
    transaction: SignedTransaction
    max_fee: int
    priority_fee: int


def open_slot(connection: Connection, relayer: str, purpose: str, chain_nonce: int) -> Slot:
    """Take the relayer's next nonce: the one after its last slot, or the chain's when that is ahead."""
    last = connection.execute(select(func.max(slots.c.nonce)).where(slots.c.relayer == relayer)).scalar_one()
    nonce = max(chain_nonce, -1 if last is None else last + 1)
    values = {
        "relayer": relayer,
        "nonce": nonce,
        "purpose": purpose,
        "state": "open",
        "created_at": int(time.time()),
    }
    slot_id = connection.execute(insert(slots).values(values).returning(slots.c.id)).scalar_one()
    return Slot(slot_id, relayer, nonce, purpose)


def add_attempt(connection: Connection, slot: Slot, attempt: Attempt) -> None:
    values = {
        "slot_id": slot.slot_id,
        "hash": attempt.transaction.hash,
        "raw": attempt.transaction.raw,
        "max_fee": attempt.max_fee,
        "priority_fee": attempt.priority_fee,
        "created_at": int(time.time()),
    }
    connection.execute(insert(attempts).values(values))


def enter_payments(connection: Connection, slot: Slot, payment_ids: Iterable[int]) -> None:
    rows = [{"slot_id": slot.slot_id, "payment_id": payment_id} for payment_id in payment_ids]
    connection.execute(insert(slot_payments), rows)


def open_slots(connection: Connection, relayer: str) -> list[Slot]:
    """Slots whose end is not known, in the order of their nonces."""
    query = select(slots).where(slots.c.relayer == relayer, slots.c.state == "open").order_by(slots.c.nonce)
    rows = connection.execute(query).mappings()
    return [Slot(row["id"], row["relayer"], row["nonce"], row["purpose"]) for row in rows]


def busy_relayers(connection: Connection) -> set[str]:
    """The relayers that have a slot whose end is not known."""
    return set(connection.execute(select(slots.c.relayer).where(slots.c.state == "open").distinct()).scalars())


def attempts_of(connection: Connection, slot: Slot) -> list[Attempt]:
    """Every transaction signed for the slot, newest first."""
    query = select(attempts).where(attempts.c.slot_id == slot.slot_id).order_by(attempts.c.id.desc())
    rows = connection.execute(query).mappings()
    return [Attempt(SignedTransaction(row["hash"], row["raw"]), row["max_fee"], row["priority_fee"]) for row in rows]


def close(
    connection: Connection, slot: Slot, state: str, *, transaction: str = "", block: int = 0, gas: int = 0
) -> None:
    """`mined`, `reverted`, or `lost` (the nonce was used by a transaction that is not ours)."""
    values = {
        "state": state,
        "transaction": transaction or None,
        "block_number": block or None,
        "gas_used": gas or None,
        "closed_at": int(time.time()),
    }
    connection.execute(update(slots).where(slots.c.id == slot.slot_id, slots.c.state == "open").values(values))
