"""Payments that nobody waits for any more, and the next signatures of their buyers, which get their gigs.

`abandoned` is a mark and no state: docs/payment-states.md.
"""

import time
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    bindparam,
    exists,
    func,
    null,
    select,
    true,
    union,
    union_all,
    update,
)

from x402_gig.ledger import journal
from x402_gig.ledger.engine import InsertIgnore
from x402_gig.ledger.journal import Entry
from x402_gig.ledger.payments import IS_ABANDONED, IS_PAID, NAMED, STATUS, find, known_of
from x402_gig.ledger.tables import aliases, payments, slot_payments, slots
from x402_gig.ledger.tables import journal as journal_rows
from x402_gig.payments.checkout import Known
from x402_gig.payments.order import Order
from x402_gig.payments.payment import PaymentKey

# How long an answer may take from the commit to the buyer, and how many may be on their way at once.
ANSWER_S = 2
LAST_ENTRIES = 2000


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


_CAN_BE_TAKEN = (
    payments.c.payer == bindparam("payer"),
    # Not the bare column, whose index leads to all that its payer ever bought for these terms.
    func.coalesce(payments.c.fingerprint, "").in_([bindparam("fingerprint"), bindparam("old_fingerprint")]),
    IS_ABANDONED,
    payments.c.state != "rejected",
    payments.c.valid_before > bindparam("now"),
    # What is paid needs nobody else's money.
    ~exists(IS_PAID),
)
_ABANDONED = select(func.min(payments.c.id)).where(*_CAN_BE_TAKEN)
_LOOK_UP = union_all(
    *NAMED,
    # Without a signature.
    select(*STATUS, null()).where(payments.c.id == _ABANDONED.correlate(None).scalar_subquery()),
)


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
            known = known_of(row)
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
