"""Payments in the ledger: found, sent again, settled, rejected, opened. `states` has the table of their states."""

import json
import time
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import (
    Connection,
    RowMapping,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    union_all,
    update,
)

from x402_gig.ledger import journal, states
from x402_gig.ledger.tables import aliases, deposits, payments, slot_payments, slots
from x402_gig.payments.checkout import Known
from x402_gig.payments.order import Order
from x402_gig.payments.outcome import Rejected, Settled
from x402_gig.payments.payment import Authorization, Payment, PaymentKey

MAX_BROADCASTS = 3
# The end of the year 9999: a later validBefore, which may be a uint256, is kept as this.
LAST_S = 253_402_300_799


class Reservation(Struct, frozen=True):
    """A payment that is about to be sent. `abandoned`: its buyer has hung up already."""

    key: PaymentKey
    payment: Payment
    order: Order
    abandoned: bool = False


class OpenPayment(Struct, frozen=True):
    payment_id: int
    authorization: Authorization


def _has_key(table: Any) -> Any:
    return and_(*(table.c[name] == bindparam(name) for name in PaymentKey._fields))


# The columns that `known_of` reads.
STATUS = [
    payments.c[name]
    for name in (
        "id",
        "fingerprint",
        "state",
        "payer",
        "transaction",
        "answer",
        "reason",
        "detail",
        "abandoned",
        "terms",
    )
]
# By its own key, or by that of an alias.
NAMED = (
    select(*STATUS, payments.c.signature).where(_has_key(payments)),
    select(*STATUS, aliases.c.signature).join(aliases).where(_has_key(aliases)),
)
_FIND = union_all(*NAMED)


def find(connection: Connection, key: PaymentKey) -> Known | None:
    """A payment by its own key or by that of an alias."""
    row = connection.execute(_FIND, key._asdict()).mappings().first()
    return known_of(row) if row is not None else None


def known_of(row: RowMapping) -> Known:
    return Known(
        payment_id=row["id"],
        fingerprint=row["fingerprint"],
        signature=bytes.fromhex(row["signature"]),
        outcome=outcome_of(row),
        abandoned=bool(row["abandoned"]),
        terms=row["terms"],
    )


def outcome_of(row: RowMapping) -> Settled | Rejected | None:
    if row["state"] == "settled":
        return Settled(row["id"], row["payer"], row["transaction"], json.loads(row["answer"]))
    if row["state"] == "rejected":
        return Rejected(row["reason"], row["detail"])
    return None


_AMONG = payments.c.id.in_(bindparam("ids", expanding=True))
_BY_IDS = select(payments).where(_AMONG)


def outcomes(connection: Connection, ids: Iterable[int]) -> dict[int, Settled | Rejected]:
    """Of these payments the final ones."""
    rows = connection.execute(_BY_IDS, {"ids": list(ids)}).mappings()
    return {row["id"]: outcome for row in rows if (outcome := outcome_of(row))}


# Written out: what a partial index has as its condition SQLite compares with each new parameter, and plans anew.
IS_ABANDONED = payments.c.abandoned == literal_column("1")


def in_flight() -> Any:
    in_slot = select(slot_payments.c.payment_id).join(slots).where(slots.c.state == "open")
    return payments.c.id.in_(in_slot)


def is_flagged() -> Any:
    """Open, and sent in vain as often as we send one: only its expiry or a person goes on."""
    sent_in_vain = (payments.c.broadcasts >= MAX_BROADCASTS) & (payments.c.resend == 0) & ~in_flight()
    return (payments.c.state == "open") & sent_in_vain


def is_exhausted(connection: Connection, payment_id: int) -> bool:
    """Will it not be sent again, also when its buyer repeats it?"""
    query = select(payments.c.id).where(payments.c.id == payment_id, is_flagged())
    return connection.execute(query).first() is not None


def unsettled(connection: Connection, after: int, limit: int) -> list[OpenPayment]:
    """Open payments that no transaction of ours has in flight: only the chain can say what became of them."""
    query = (
        select(payments)
        .where(payments.c.id > after, payments.c.state == "open", ~in_flight())
        .order_by(payments.c.id)
        .limit(limit)
    )
    return [OpenPayment(row["id"], _payment(row).authorization) for row in connection.execute(query).mappings()]


def find_open(connection: Connection, payment_id: int) -> Reservation | None:
    """An open payment as it was written down, to be sent again; None when it is final or in a transaction under way."""
    query = select(payments).where(payments.c.id == payment_id, payments.c.state == "open", ~in_flight())
    row = connection.execute(query).mappings().first()
    return _reservation(row) if row is not None else None


def to_resend(connection: Connection, limit: int) -> list[tuple[int, Reservation]]:
    """Open payments that are to be sent again although nobody waits for them, oldest first."""
    query = (
        select(payments)
        .where(payments.c.state == "open", payments.c.resend == 1, ~in_flight())
        .order_by(payments.c.id)
        .limit(limit)
    )
    return [(row["id"], _reservation(row)) for row in connection.execute(query).mappings()]


def send_again(connection: Connection, payment_id: int) -> bool:
    """Ask for another broadcast of an open payment; False when it is final."""
    asked = update(payments).where(payments.c.id == payment_id, payments.c.state == "open").values(resend=1)
    if connection.execute(asked).rowcount == 0:
        return False
    journal.note(connection, [payment_id], "open", "to be sent again")
    return True


def key_of(row: RowMapping) -> PaymentKey:
    return PaymentKey(row["network"], row["asset"], row["payer"], row["nonce"])


def _reservation(row: RowMapping) -> Reservation:
    order = Order(row["product"], json.loads(row["terms"]), row["value"], kept=row["fingerprint"])
    return Reservation(key_of(row), _payment(row), order)


def _payment(row: RowMapping) -> Payment:
    authorization = Authorization(
        payer=row["payer"],
        payee=row["payee"],
        value=row["value"],
        valid_after=row["valid_after"],
        valid_before=row["valid_before"],
        nonce=row["nonce"],
    )
    signature = bytes.fromhex(row["signature"])
    return Payment(2, "exact", row["network"], row["asset"], row["payee"], row["value"], authorization, signature)


def reject(connection: Connection, payment_id: int, rejected: Rejected) -> bool:
    """Close an open payment; False when it is final already or its deposit has come."""
    same = (deposits.c[name] == payments.c[name] for name in ("asset", "payer", "nonce", "value"))
    has_deposit = exists().where(*same, deposits.c.on_chain == 1, deposits.c.refund_id.is_(None))
    statement = update(payments).where(payments.c.id == payment_id, _may_become("rejected"), ~has_deposit)
    values = {"state": "rejected", "reason": rejected.reason, "detail": rejected.detail, "final_at": int(time.time())}
    if connection.execute(statement.values(**values, resend=0)).rowcount == 0:
        return False
    journal.note(connection, [payment_id], "rejected", f"{rejected.reason}: {rejected.detail}")
    return True


def _may_become(state: str) -> Any:
    # Not IN, which many rows at once cannot be updated with.
    return or_(*(payments.c.state == before for before in states.before("payment", state)))


_SETTLE = (
    update(payments)
    .where(payments.c.id == bindparam("payment_id"), _may_become("settled"))
    .values(
        state="settled",
        transaction=bindparam("deposit_transaction"),
        final_at=bindparam("now"),
        resend=0,
        # What was delivered before a reorganisation stays as it was.
        answer=func.coalesce(payments.c.answer, bindparam("its_answer")),
        commission=func.coalesce(bindparam("its_commission"), payments.c.commission),
    )
)


class Delivery(Struct, frozen=True):
    """A payment whose deposit is on chain in `transaction`. The rest is None when it was delivered before."""

    payment_id: int
    transaction: str
    answer: str | None = None
    commission: int | None = None


def settle(connection: Connection, deliveries: Sequence[Delivery]) -> None:
    """Their deposits are on chain. Raises AssertionError when one of them is not open."""
    rows = [
        {
            "payment_id": each.payment_id,
            "deposit_transaction": each.transaction,
            "its_answer": each.answer,
            "its_commission": each.commission,
            "now": int(time.time()),
        }
        for each in deliveries
    ]
    if connection.execute(_SETTLE, rows).rowcount != len(rows):
        raise AssertionError("a payment that is to be settled is not open")
    journal.note_all(
        connection, [{"payment_id": d.payment_id, "transaction": d.transaction} for d in deliveries], "settled"
    )


def reopen(connection: Connection, ids: Iterable[int], reason: str) -> list[int]:
    """Their deposits are not on chain any more; the ids of those that were settled."""
    statement = update(payments).where(payments.c.id.in_(list(ids)), _may_become("open"))
    # Without the validBefore that was signed, only a stranger can execute it again.
    resend = case((payments.c.valid_before < LAST_S, 1), else_=0)
    values = {"state": "open", "transaction": None, "final_at": None, "resend": resend}
    reopened = list(connection.execute(statement.values(values).returning(payments.c.id)).scalars())
    journal.note(connection, reopened, "open", reason)
    return reopened


_ITS_DEPOSIT = [deposits.c[name] == bindparam(name) for name in ("asset", "payer", "nonce")]
IS_PAID = select(literal(1)).where(*_ITS_DEPOSIT, deposits.c.on_chain == 1)


def is_paid(connection: Connection, key: PaymentKey) -> bool:
    """Has somebody executed this authorization?"""
    return connection.execute(IS_PAID, key._asdict()).first() is not None
