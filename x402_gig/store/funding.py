"""Movements of our own money: due, signed in a slot, done when their log pair is on chain."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, func, insert, select, update

from x402_gig.chain.eip3009 import AuthorizedTransfer
from x402_gig.store.tables import commissions, movements, payments, slot_movements, slots


@dataclass(frozen=True)
class Movement:
    """An authorization of the intake that is to be executed. `value` in base units."""

    movement_id: int
    payee: str
    value: int
    nonce: str


def _not_in_flight() -> ColumnElement[bool]:
    in_slot = select(slot_movements.c.movement_id).join(slots).where(slots.c.state == "open")
    return movements.c.id.not_in(in_slot)


def due(connection: Connection, kind: str, limit: int) -> list[Movement]:
    """Movements that are due and in no transaction under way, oldest first."""
    query = (
        select(movements.c.id, movements.c.payee, movements.c.value, movements.c.nonce)
        .where(movements.c.state == "due", movements.c.kind == kind, _not_in_flight())
        .order_by(movements.c.id)
        .limit(limit)
    )
    return [Movement(*row) for row in connection.execute(query)]


def still_due(connection: Connection, moves: Sequence[Movement]) -> int:
    """How many of these are not on chain."""
    ids = [move.movement_id for move in moves]
    query = select(func.count()).where(movements.c.id.in_(ids), movements.c.state == "due")
    return int(connection.execute(query).scalar_one())


def _uncollected() -> ColumnElement[bool]:
    collected = select(commissions.c.payment_id)
    return (payments.c.state == "settled") & (payments.c.commission > 0) & payments.c.id.not_in(collected)


def write_commission(connection: Connection, payee: str, nonce_of: Callable[[int], str], limit: int = 1000) -> None:
    """Write the next commission row down, unless one is still on its way: k+1 never before k is on chain."""
    pending = select(movements.c.id).where(movements.c.kind == "commission", movements.c.state == "due")
    if connection.execute(pending.limit(1)).first() is not None:
        return
    query = select(payments.c.id, payments.c.commission).where(_uncollected()).order_by(payments.c.id).limit(limit)
    rows = connection.execute(query).all()
    if not rows:
        return
    last = connection.execute(select(func.max(movements.c.subject)).where(movements.c.kind == "commission"))
    number = (last.scalar_one() or 0) + 1
    values = {
        "kind": "commission",
        "subject": number,
        "payee": payee,
        "value": sum(row.commission for row in rows),
        "nonce": nonce_of(number),
        "state": "due",
        "created_at": int(time.time()),
    }
    movement_id = connection.execute(insert(movements).values(values).returning(movements.c.id)).scalar_one()
    connection.execute(insert(commissions), [{"payment_id": row.id, "movement_id": movement_id} for row in rows])


def enter_slot(connection: Connection, slot_id: int, moves: Sequence[Movement], valid_before: int) -> None:
    rows = [{"slot_id": slot_id, "movement_id": m.movement_id, "valid_before": valid_before} for m in moves]
    connection.execute(insert(slot_movements), rows)


def complete(connection: Connection, transfers: Iterable[AuthorizedTransfer]) -> list[AuthorizedTransfer]:
    """Note the movements that these outgoing transfers carried out; returns the transfers we never wrote down."""
    unknown = []
    for transfer in transfers:
        place = {
            "state": "done",
            "transaction": transfer.transaction,
            "block_number": transfer.block_number,
            "block_hash": transfer.block_hash,
        }
        ours = update(movements).where(movements.c.nonce == transfer.nonce, movements.c.value == transfer.value)
        done_at = func.coalesce(movements.c.done_at, int(time.time()))
        if connection.execute(ours.values(**place, done_at=done_at)).rowcount == 0:
            unknown.append(transfer)
    return unknown
