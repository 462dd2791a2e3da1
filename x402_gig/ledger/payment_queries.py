"""What a person asks the ledger about payments: which there are, and all that is known of one. Changes nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Column, ColumnElement, Connection, Select, Table, select, union

from x402_gig.ledger.movements import COMMISSION, REWARD
from x402_gig.ledger.payments import is_flagged
from x402_gig.ledger.tables import (
    aliases,
    attempts,
    commissions,
    deposits,
    gigs,
    journal,
    movements,
    payments,
    slot_movements,
    slot_payments,
    slots,
)

Row = Mapping[str, Any]

LISTED = ("id", "state", "value", "payer", "nonce", "created_at", "valid_before", "final_at", "transaction", "reason")
# Whoever has a signature can execute it, and whoever has a raw transaction has the signatures in it.
SECRET = ("signature", "raw")


class Story(Struct, frozen=True):
    """Everything about one payment, oldest first, as the tables have it; secrets are left out.

    `sends` are the slots that carried it, each with its `attempts`; `reward` and `commissions` have `sends` too.
    """

    payment: Row
    is_flagged: bool
    journal: Sequence[Row]
    sends: Sequence[Row]
    deposit: Row | None
    aliases: Sequence[Row]
    gig: Row | None
    reward: Row | None
    commissions: Sequence[Row]


def newest(
    connection: Connection, limit: int, *, state: str | None = None, payer: str | None = None, flagged: bool = False
) -> list[Row]:
    """Payments, newest first, each with `flagged`."""
    query = select(*(payments.c[name] for name in LISTED), is_flagged().label("flagged"))
    if state is not None:
        query = query.where(payments.c.state == state)
    if payer is not None:
        query = query.where(payments.c.payer == payer)
    if flagged:
        query = query.where(is_flagged())
    return _rows(connection, query.order_by(payments.c.id.desc()).limit(limit))


def with_number(connection: Connection, payment_id: int) -> list[int]:
    return list(connection.execute(select(payments.c.id).where(payments.c.id == payment_id)).scalars())


def with_hash(connection: Connection, word: str) -> list[int]:
    """Ids of the payments that have to do with a nonce or a transaction."""
    gig_of = gigs.c.id == movements.c.subject
    query = union(
        select(payments.c.id).where((payments.c.nonce == word) | (payments.c.transaction == word)),
        select(aliases.c.payment_id).where(aliases.c.nonce == word),
        select(deposits.c.payment_id).where(deposits.c.transaction == word, deposits.c.payment_id.is_not(None)),
        select(slot_payments.c.payment_id)
        .join(attempts, attempts.c.slot_id == slot_payments.c.slot_id)
        .where(attempts.c.hash == word),
        select(gigs.c.payment_id).join(movements, gig_of).where(movements.c.kind == REWARD, _moved_in(word)),
        select(commissions.c.payment_id).join(movements).where(_moved_in(word)),
    )
    return sorted(connection.execute(query).scalars())


def _moved_in(word: str) -> ColumnElement[bool]:
    return (movements.c.transaction == word) | (movements.c.nonce == word)


def story(connection: Connection, payment_id: int) -> Story:
    """Of a payment that exists."""
    [payment] = _rows(connection, select(payments).where(payments.c.id == payment_id))
    gig = _first(connection, select(gigs).where(gigs.c.payment_id == payment_id))
    reward = select(movements).where(movements.c.kind == REWARD, movements.c.subject == (gig["id"] if gig else 0))
    carrying = select(commissions.c.movement_id).where(commissions.c.payment_id == payment_id)
    commission = select(movements).where(movements.c.kind == COMMISSION, movements.c.id.in_(carrying))
    flagged = select(payments.c.id).where(payments.c.id == payment_id, is_flagged())
    return Story(
        payment=_readable(payment),
        is_flagged=connection.execute(flagged).first() is not None,
        journal=_rows(connection, _of(journal.c.payment_id, payment_id)),
        sends=_sends(connection, slot_payments, slot_payments.c.payment_id == payment_id),
        deposit=_deposit(connection, payment),
        aliases=_rows(connection, select(aliases).where(aliases.c.payment_id == payment_id)),
        gig=_readable(gig) if gig else None,
        reward=next(iter(_movements(connection, reward)), None),
        commissions=_movements(connection, commission.order_by(movements.c.id)),
    )


def _of(column: Column[int], payment_id: int) -> Select[Any]:
    return select(column.table).where(column == payment_id).order_by(column.table.c.id)


def _rows(connection: Connection, query: Select[Any]) -> list[Row]:
    found = connection.execute(query).mappings()
    return [{name: value for name, value in row.items() if name not in SECRET} for row in found]


def _first(connection: Connection, query: Select[Any]) -> Row | None:
    return next(iter(_rows(connection, query.limit(1))), None)


def _readable(row: Row) -> Row:
    return {**row, "terms": json.loads(row["terms"])}


def _deposit(connection: Connection, payment: Row) -> Row | None:
    """Its deposit, or the one that its authorization made and that something else owns."""
    same = (deposits.c[name] == payment[name] for name in ("asset", "payer", "nonce"))
    return _first(connection, select(deposits).where(*same))


def _movements(connection: Connection, query: Select[Any]) -> list[Row]:
    return [
        {**row, "sends": _sends(connection, slot_movements, slot_movements.c.movement_id == row["id"])}
        for row in _rows(connection, query)
    ]


def _sends(connection: Connection, carried: Table, condition: ColumnElement[bool]) -> list[Row]:
    query = select(slots).join(carried, carried.c.slot_id == slots.c.id).where(condition).order_by(slots.c.id)
    return [{**row, "attempts": _attempts(connection, row["id"])} for row in _rows(connection, query)]


def _attempts(connection: Connection, slot_id: int) -> list[Row]:
    return _rows(connection, _of(attempts.c.slot_id, slot_id))


def refunds(connection: Connection, limit: int) -> list[Row]:
    """Deposits that are paid back, newest first, each with its refund's payee, state and transaction."""
    query = (
        select(
            deposits.c.id,
            deposits.c.payer,
            deposits.c.value,
            movements.c.payee,
            movements.c.state,
            movements.c.transaction.label("refund_transaction"),
            movements.c.created_at,
        )
        .join(movements, movements.c.id == deposits.c.refund_id)
        .order_by(movements.c.id.desc())
    )
    return _rows(connection, query.limit(limit))


def owner(connection: Connection, deposit_id: int) -> Row | None:
    """The deposit, whoever owns it; `refund` is its refund."""
    deposit = _first(connection, select(deposits).where(deposits.c.id == deposit_id))
    if deposit is None:
        return None
    return {**deposit, "refund": _first(connection, select(movements).where(movements.c.id == deposit["refund_id"]))}
