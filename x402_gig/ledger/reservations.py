"""Payments are written down before anything is sent for them, and are ours to send when they are reserved."""

import json
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, CursorResult, bindparam, null, select, tuple_, union_all, update

from x402_gig.ledger import chain_state, gig_ids, journal
from x402_gig.ledger.abandonment import find_abandoned, mark_abandoned, take_abandoned
from x402_gig.ledger.engine import InsertIgnore
from x402_gig.ledger.payments import IS_ABANDONED, LAST_S, MAX_BROADCASTS, Reservation, in_flight, key_of
from x402_gig.ledger.tables import aliases, payments
from x402_gig.payments.payment import PaymentKey

_COUNT_BROADCAST = update(payments).where(payments.c.id.in_(bindparam("ids", expanding=True)))
_COUNT_BROADCAST = _COUNT_BROADCAST.values(broadcasts=payments.c.broadcasts + 1, resend=0)


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


_KEY_COLUMNS = [payments.c[name] for name in PaymentKey._fields]
_ALIAS_COLUMNS = [aliases.c[name] for name in PaymentKey._fields]
_INSERT = InsertIgnore(payments, *_KEY_COLUMNS, payments.c.id)
# Which of these are aliases, and (without a nonce) which payers have an abandoned payment.
_BESIDES = union_all(
    select(*_ALIAS_COLUMNS).where(tuple_(*_ALIAS_COLUMNS).in_(bindparam("keys", expanding=True))),
    select(payments.c.network, payments.c.asset, payments.c.payer, null()).where(
        IS_ABANDONED,
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
    return known | {r.key for r in wanted if r.key.payer in careless and _inherit(connection, r, now)}


def _inherit(connection: Connection, wanted: Reservation, now: int) -> bool:
    """Make it another name of its buyer's abandoned payment, if there is one for the same terms."""
    payment_id = find_abandoned(connection, wanted.key, wanted.order, now)
    if payment_id is None or not take_abandoned(connection, wanted.key, payment_id, wanted.payment.signature):
        return False
    if wanted.abandoned:  # this request's buyer has gone, too
        mark_abandoned(connection, [payment_id])
    return True


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


_SENDABLE_AGAIN = select(*_KEY_COLUMNS, payments.c.id).where(
    # For its own terms only: whoever asks for others with the same payment must not get its answer.
    tuple_(*_KEY_COLUMNS, payments.c.fingerprint).in_(bindparam("orders", expanding=True)),
    payments.c.state == "open",
    payments.c.broadcasts.between(1, MAX_BROADCASTS - 1) | (payments.c.resend == 1),
    ~in_flight(),
)


def _sendable_again(connection: Connection, wanted: Sequence[Reservation]) -> dict[PaymentKey, int]:
    if not wanted:
        return {}
    orders = [(*r.key, r.order.fingerprint) for r in wanted]
    return _ids_by_key(connection.execute(_SENDABLE_AGAIN, {"orders": orders}))


def _ids_by_key(rows: CursorResult[Any]) -> dict[PaymentKey, int]:
    return {key_of(row): row["id"] for row in rows.mappings()}
