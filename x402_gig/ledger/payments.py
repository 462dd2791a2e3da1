"""Payments in the ledger: found, reserved, settled, rejected, abandoned. `states` has the table of their states."""

import json
import time
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import (
    ColumnElement,
    Connection,
    CursorResult,
    RowMapping,
    Select,
    and_,
    bindparam,
    case,
    exists,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    tuple_,
    union,
    union_all,
    update,
)

from x402_gig.ledger import chain_state, gig_ids, journal, states
from x402_gig.ledger.engine import InsertIgnore, Ledger
from x402_gig.ledger.journal import Entry
from x402_gig.ledger.tables import aliases, deposits, payments, slot_payments, slots
from x402_gig.ledger.tables import journal as journal_rows
from x402_gig.payments.checkout import Known
from x402_gig.payments.order import Order
from x402_gig.payments.outcome import Rejected, Settled
from x402_gig.payments.payment import Authorization, Payment, PaymentKey

MAX_BROADCASTS = 3
# The end of the year 9999: a later validBefore, which may be a uint256, is kept as this.
LAST_S = 253_402_300_799
# How long an answer may take from the commit to the buyer, and how many may be on their way at once.
ANSWER_S = 2
LAST_ENTRIES = 2000


class Reservation(Struct, frozen=True):
    """A payment that is about to be sent. `abandoned`: its buyer has hung up already."""

    key: PaymentKey
    payment: Payment
    order: Order
    abandoned: bool = False


class OpenPayment(Struct, frozen=True):
    payment_id: int
    authorization: Authorization


class PaymentBook:
    """The ledger as `payments.checkout.Book`."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def find_payment(self, key: PaymentKey) -> Known | None:
        return await self._ledger.read(lambda c: find(c, key))

    async def is_paid(self, key: PaymentKey) -> bool:
        return await self._ledger.read(lambda c: is_paid(c, key))

    async def look_up(self, key: PaymentKey, order: Order, now_s: int) -> tuple[Known | None, int | None]:
        return await self._ledger.read(lambda c: look_up(c, key, order, now_s))

    async def take_abandoned(self, key: PaymentKey, payment_id: int, signature: bytes) -> bool:
        return await self._ledger.write_surely(lambda c: take_abandoned(c, key, payment_id, signature))

    async def forget_abandoned(self, payment_id: int) -> None:
        await self._ledger.write(lambda c: mark_abandoned(c, [payment_id], False))


def _has_key(table: Any) -> Any:
    return and_(*(table.c[name] == bindparam(name) for name in PaymentKey._fields))


# What `_known` reads.
_STATUS = [
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
_NAMED = (
    select(*_STATUS, payments.c.signature).where(_has_key(payments)),
    select(*_STATUS, aliases.c.signature).join(aliases).where(_has_key(aliases)),
)
_FIND = union_all(*_NAMED)


def find(connection: Connection, key: PaymentKey) -> Known | None:
    """A payment by its own key or by that of an alias."""
    row = connection.execute(_FIND, key._asdict()).mappings().first()
    return _known(row) if row is not None else None


def _known(row: RowMapping) -> Known:
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


_COUNT_BROADCAST = update(payments).where(_AMONG).values(broadcasts=payments.c.broadcasts + 1, resend=0)


def reserve(connection: Connection, wanted: Sequence[Reservation]) -> dict[PaymentKey, int]:
    """Write the payments down; ids of those that are ours to send now.

    New ones, and open ones that are in no transaction under way and were not broadcast three times already, or are
    to be sent again all the same.
    """
    new = write_down(connection, wanted, broadcasts=1)
    again = _sendable_again(connection, [r for r in wanted if r.key not in new])
    if again:
        connection.execute(_COUNT_BROADCAST, {"ids": list(again.values())})
    return new | again


def leave(connection: Connection, wanted: Sequence[Reservation]) -> dict[PaymentKey, int]:
    """Write the payments down for whoever can send them; the ids of those that nobody sends yet."""
    new = write_to_charge(connection, wanted)
    ids = new | _sendable_again(connection, [r for r in wanted if r.key not in new])
    connection.execute(update(payments).where(payments.c.id.in_(ids.values())).values(resend=1))
    journal.note(connection, ids.values(), "open", "left to a server with a relayer")
    return ids


# Written out: what a partial index has as its condition SQLite compares with each new parameter, and plans anew.
_IS_ABANDONED = payments.c.abandoned == literal_column("1")
_KEY_COLUMNS = [payments.c[name] for name in PaymentKey._fields]
_ALIAS_COLUMNS = [aliases.c[name] for name in PaymentKey._fields]
_INSERT = InsertIgnore(payments, *_KEY_COLUMNS, payments.c.id)
# Which of these are aliases, and (without a nonce) which payers have an abandoned payment.
_BESIDES = union_all(
    select(*_ALIAS_COLUMNS).where(tuple_(*_ALIAS_COLUMNS).in_(bindparam("keys", expanding=True))),
    select(payments.c.network, payments.c.asset, payments.c.payer, null()).where(
        _IS_ABANDONED,
        payments.c.payer.in_(bindparam("payers", expanding=True)),
        payments.c.valid_before > bindparam("now"),
    ),
)


def write_down(connection: Connection, wanted: Sequence[Reservation], broadcasts: int = 0) -> dict[PaymentKey, int]:
    """Insert the payments that are not in the ledger yet, nor other names of one that is; their ids.

    In the order of their keys: two processes with the same payments must not deadlock.

    One whose buyer has an abandoned payment for the same terms becomes a name of that one here at the latest: a
    mark that was set while it was on its way to this transaction is seen.

    Those for which there is no gig in store (see `gig_ids`) are left out: nothing may be sent for them.
    """
    now = int(time.time())
    ordered = sorted(wanted, key=lambda r: r.key)
    inherited = _inherited(connection, ordered, now)
    new = [_new_row(r, now, broadcasts) for r in ordered if r.key not in inherited]
    new = new[: gig_ids.room(connection)] if new else []
    if not new:
        return {}
    ids = _ids_by_key(_INSERT(connection, new))
    journal.note(connection, ids.values(), "open")
    return ids


def write_to_charge(
    connection: Connection, wanted: Sequence[Reservation], broadcasts: int = 0
) -> dict[PaymentKey, int]:
    """`write_down` of what is not paid yet. Raises Unavailable for new ones in a halted ledger."""
    new = write_down(connection, wanted, broadcasts)
    if new:
        chain_state.check_charging(connection)
    return new


def _inherited(connection: Connection, wanted: Sequence[Reservation], now: int) -> set[PaymentKey]:
    """The keys that are aliases, or have just become aliases of abandoned payments."""
    values = {"keys": [r.key for r in wanted], "payers": list({r.key.payer for r in wanted}), "now": now}
    rows = [PaymentKey(*row) for row in connection.execute(_BESIDES, values)]
    known = {row for row in rows if row.nonce is not None}
    careless = {row.payer for row in rows if row.nonce is None}
    return known | {
        r.key
        for r in wanted
        if r.key.payer in careless
        and (payment_id := find_abandoned(connection, r.key, r.order, now)) is not None
        and take_abandoned(connection, r.key, payment_id, r.payment.signature)
    }


def _new_row(wanted: Reservation, now: int, broadcasts: int) -> dict[str, Any]:
    authorization, order = wanted.payment.authorization, wanted.order
    return {
        **wanted.key._asdict(),
        "payee": authorization.payee,
        "value": authorization.value,
        "valid_after": authorization.valid_after,
        "valid_before": min(authorization.valid_before, LAST_S),
        "signature": wanted.payment.signature.hex(),
        "product": order.product,
        "terms": json.dumps(order.terms),
        "fingerprint": order.fingerprint,
        "state": "open",
        "broadcasts": broadcasts,
        "abandoned": int(wanted.abandoned),
        "created_at": now,
    }


def _in_flight() -> Any:
    in_slot = select(slot_payments.c.payment_id).join(slots).where(slots.c.state == "open")
    return payments.c.id.in_(in_slot)


_SENDABLE_AGAIN = select(*_KEY_COLUMNS, payments.c.id).where(
    # For its own terms only: whoever asks for others with the same payment must not get its answer.
    tuple_(*_KEY_COLUMNS, payments.c.fingerprint).in_(bindparam("orders", expanding=True)),
    payments.c.state == "open",
    payments.c.broadcasts.between(1, MAX_BROADCASTS - 1) | (payments.c.resend == 1),
    ~_in_flight(),
)


def _sendable_again(connection: Connection, wanted: Sequence[Reservation]) -> dict[PaymentKey, int]:
    if not wanted:
        return {}
    orders = [(*r.key, r.order.fingerprint) for r in wanted]
    return _ids_by_key(connection.execute(_SENDABLE_AGAIN, {"orders": orders}))


def is_flagged() -> Any:
    """Open, and sent in vain as often as we send one: only its expiry or a person goes on."""
    sent_in_vain = (payments.c.broadcasts >= MAX_BROADCASTS) & (payments.c.resend == 0) & ~_in_flight()
    return (payments.c.state == "open") & sent_in_vain


def is_exhausted(connection: Connection, payment_id: int) -> bool:
    """Will it not be sent again, also when its buyer repeats it?"""
    query = select(payments.c.id).where(payments.c.id == payment_id, is_flagged())
    return connection.execute(query).first() is not None


def _key(row: RowMapping) -> PaymentKey:
    return PaymentKey(row["network"], row["asset"], row["payer"], row["nonce"])


def _ids_by_key(rows: CursorResult[Any]) -> dict[PaymentKey, int]:
    return {_key(row): row["id"] for row in rows.mappings()}


def unsettled(connection: Connection, after: int, limit: int) -> list[OpenPayment]:
    """Open payments that no transaction of ours has in flight: only the chain can say what became of them."""
    query = (
        select(payments)
        .where(payments.c.id > after, payments.c.state == "open", ~_in_flight())
        .order_by(payments.c.id)
        .limit(limit)
    )
    return [OpenPayment(row["id"], _payment(row).authorization) for row in connection.execute(query).mappings()]


def find_open(connection: Connection, payment_id: int) -> Reservation | None:
    """An open payment as it was written down, to be sent again; None when it is final or in a transaction under way."""
    query = select(payments).where(payments.c.id == payment_id, payments.c.state == "open", ~_in_flight())
    row = connection.execute(query).mappings().first()
    return _reservation(row) if row is not None else None


def to_resend(connection: Connection, limit: int) -> list[tuple[int, Reservation]]:
    """Open payments that are to be sent again although nobody waits for them, oldest first."""
    query = (
        select(payments)
        .where(payments.c.state == "open", payments.c.resend == 1, ~_in_flight())
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


def _reservation(row: RowMapping) -> Reservation:
    order = Order(row["product"], json.loads(row["terms"]), row["value"], kept=row["fingerprint"])
    return Reservation(_key(row), _payment(row), order)


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


def mark_abandoned(connection: Connection, ids: Iterable[int], abandoned: bool = True) -> list[int]:
    """Set the mark, or take it away; those of the payments for which that is new."""
    marked = update(payments).where(payments.c.id.in_(list(ids)), payments.c.abandoned == int(not abandoned))
    changed = connection.execute(marked.values(abandoned=int(abandoned)).returning(payments.c.id, payments.c.state))
    found = changed.all()
    for payment_id, state in found:
        reason = "its buyer stopped waiting" if abandoned else "its buyer has the answer"
        journal.note(connection, [payment_id], state, reason)
    return [row.id for row in found]


def mark_left(connection: Connection, names: Collection[int | PaymentKey]) -> Entry | None:
    """Nobody waits for these payments any more. Those named by a key may not be in the ledger.

    What the journal says of the last mark that is new, if there is one.
    """
    ids = {name for name in names if isinstance(name, int)}
    found = [find(connection, name) for name in names if isinstance(name, PaymentKey)]
    new = mark_abandoned(connection, ids | {known.payment_id for known in found if known is not None})
    return journal.newest(connection, new[-1]) if new else None


def mark_unanswered(connection: Connection, relayers: Collection[str] | None = None, gone_s: int = 0) -> None:
    """Whoever waited for an open payment waits no more, and the last answers may not have gone out.

    True of all at a start, and of those that `relayers` carried, or none, when the process that had them is found gone
    after `gone_s` seconds.
    """
    is_open = select(payments.c.id).where(payments.c.state == "open")
    waited_for = payments.c.id.in_(union(is_open, _settled_last(connection, ANSWER_S + gone_s)))
    carried = exists().where(slot_payments.c.payment_id == payments.c.id)
    theirs = carried.where(slots.c.id == slot_payments.c.slot_id, slots.c.relayer.in_(relayers or []))
    is_theirs: ColumnElement[bool] = true() if relayers is None else theirs | ~carried
    mark_abandoned(connection, connection.execute(select(payments.c.id).where(waited_for, is_theirs)).scalars().all())


def _settled_last(connection: Connection, seconds: int) -> Select[tuple[int]]:
    """The payments that were settled in the last seconds of the journal."""
    newest = select(journal_rows.c.id, journal_rows.c.at).order_by(journal_rows.c.id.desc()).limit(1)
    last_id, last_at = connection.execute(newest).first() or (0, 0)
    return select(journal_rows.c.payment_id).where(
        journal_rows.c.id > last_id - LAST_ENTRIES * seconds // ANSWER_S,
        journal_rows.c.at >= last_at - seconds,
        journal_rows.c.state == "settled",
    )


_ITS_DEPOSIT = [deposits.c[name] == bindparam(name) for name in ("asset", "payer", "nonce")]
_IS_PAID = select(literal(1)).where(*_ITS_DEPOSIT, deposits.c.on_chain == 1)
_CAN_BE_TAKEN = (
    payments.c.payer == bindparam("payer"),
    # Not the bare column, whose index leads to all that its payer ever bought for these terms.
    func.coalesce(payments.c.fingerprint, "").in_([bindparam("fingerprint"), bindparam("old_fingerprint")]),
    _IS_ABANDONED,
    payments.c.state != "rejected",
    payments.c.valid_before > bindparam("now"),
    # What is paid needs nobody else's money.
    ~exists(_IS_PAID),
)
_ABANDONED = select(func.min(payments.c.id)).where(*_CAN_BE_TAKEN)
_LOOK_UP = union_all(
    *_NAMED,
    # Without a signature.
    select(*_STATUS, null()).where(payments.c.id == _ABANDONED.correlate(None).scalar_subquery()),
)


def is_paid(connection: Connection, key: PaymentKey) -> bool:
    """Has somebody executed this authorization?"""
    return connection.execute(_IS_PAID, key._asdict()).first() is not None


def find_abandoned(connection: Connection, key: PaymentKey, order: Order, now_s: int) -> int | None:
    payment_id: int | None = connection.execute(_ABANDONED, _asked(key, order, now_s)).scalar_one()
    return payment_id


def look_up(connection: Connection, key: PaymentKey, order: Order, now_s: int) -> tuple[Known | None, int | None]:
    """What `find` and `find_abandoned` tell, for one question."""
    known = abandoned = None
    for row in connection.execute(_LOOK_UP, _asked(key, order, now_s)).mappings():
        if row["signature"] is None:
            abandoned = row["id"]
        else:
            known = _known(row)
    return known, abandoned


def _asked(key: PaymentKey, order: Order, now_s: int) -> dict[str, Any]:
    fingerprints = {"fingerprint": order.fingerprint, "old_fingerprint": order.old_fingerprint()}
    return {**key._asdict(), **fingerprints, "now": now_s}


_INSERT_ALIAS = InsertIgnore(aliases, aliases.c.payment_id)


def take_abandoned(connection: Connection, key: PaymentKey, payment_id: int, signature: bytes) -> bool:
    """Make `key` another name of an abandoned payment; True also when it is one already."""
    if (known := find(connection, key)) is not None:
        return known.payment_id == payment_id
    taken = update(payments).where(payments.c.id == payment_id, payments.c.abandoned == 1).values(abandoned=0)
    if connection.execute(taken).rowcount == 0:
        return False
    row = {**key._asdict(), "signature": signature.hex(), "payment_id": payment_id, "created_at": int(time.time())}
    return _INSERT_ALIAS(connection, [row]).first() is not None
