"""Movements of money out of the intake and the gigs' wallets: due, signed in a slot, done when they are on chain.

Nothing is signed while the deposit that it spends is off the chain.
"""

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

from msgspec import Struct
from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Select,
    bindparam,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    union_all,
    update,
)

from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.ledger import states
from x402_gig.ledger.slots import GAS, End
from x402_gig.ledger.tables import (
    commissions,
    deposits,
    gigs,
    journal,
    ledger,
    movements,
    payments,
    slot_movements,
    slots,
)

REWARD, COMMISSION, REFUND = "reward", "commission", "refund"
# Out of the wallet of a gig that was created with a key: the commission on it, and what is given back.
FEE, SURPLUS = "fee", "surplus"


class Movement(Struct, frozen=True):
    """Money that is to move. `value` in base units of `asset`, which is None for the token that we are paid in.

    `subject` is the gig's id, the row's number or the deposit's id, by `kind`. It leaves the wallet of `source_gig`, or
    the intake where that is None.
    """

    movement_id: int
    kind: str
    subject: int
    payee: str
    value: int
    nonce: str
    source_gig: int | None
    asset: str | None


class Pulse(NamedTuple):
    """Changes whenever there may be more to move than before."""

    journal_id: int | None
    movement_id: int | None
    due: int


def pulse(connection: Connection) -> Pulse:
    entry, movement = (select(func.max(table.c.id)).scalar_subquery() for table in (journal, movements))
    due = select(func.count()).select_from(movements).where(movements.c.state == "due").scalar_subquery()
    return Pulse._make(connection.execute(select(entry, movement, due)).one())


def _not_in_flight(*purposes: str) -> ColumnElement[bool]:
    """In no open slot, or in none of these purposes."""
    in_slot = select(slot_movements.c.movement_id).join(slots).where(slots.c.state == "open")
    return movements.c.id.not_in(in_slot.where(slots.c.purpose.in_(purposes)) if purposes else in_slot)


def _is_backed() -> ColumnElement[bool]:
    """The deposits that the movement spends are on chain."""
    unsettled = payments.c.state != "settled"
    reward = exists().where(gigs.c.id == movements.c.subject, gigs.c.payment_id == payments.c.id, unsettled)
    commission = exists().where(
        commissions.c.movement_id == movements.c.id, commissions.c.payment_id == payments.c.id, unsettled
    )
    refund = exists().where(deposits.c.refund_id == movements.c.id, deposits.c.on_chain == 0)
    source = exists().where(gigs.c.id == movements.c.source_gig, gigs.c.is_funded == 0)
    kind = movements.c.kind
    return ~(((kind == REWARD) & reward) | ((kind == COMMISSION) & commission) | ((kind == REFUND) & refund) | source)


def due(connection: Connection, kind: str, limit: int, held: Collection[int] = ()) -> list[Movement]:
    """Authorizations that can be sent now: due, on a deposit that is on chain, in no transaction under way, not `held`.

    Oldest first.
    """
    values = {"kind": kind, "held": list(held), "limit": limit}
    return [Movement(*row) for row in connection.execute(_DUE, values)]


def due_in_tokens(
    connection: Connection, limit: int, held: Collection[int] = (), besides: Collection[int] = ()
) -> list[Movement]:
    """The same for other tokens, which a gig's wallet sends by itself; not those of the gigs `besides`."""
    values = {"held": list(held), "besides": list(besides), "limit": limit}
    return [Movement(*row) for row in connection.execute(_DUE_IN_TOKENS, values)]


def sources(connection: Connection, limit: int, held: Collection[int] = ()) -> list[int]:
    """The gigs whose wallets are to send the token that we are paid in, by the oldest of these movements."""
    values = {"held": list(held), "limit": limit}
    return list(dict.fromkeys(connection.execute(_SOURCES, values).scalars()))


def is_due(connection: Connection, move: Movement) -> bool:
    """Can this one be sent now?"""
    values = {"movement_id": move.movement_id, "limit": 1}
    return connection.execute(_IS_DUE, values).first() is not None


def needs_gas(connection: Connection, move: Movement) -> bool:
    """Is gas to be sent for this one, for its first transaction or for one that outbids it?"""
    values = {"movement_id": move.movement_id, "limit": 1}
    return connection.execute(_NEEDS_GAS, values).first() is not None


def due_from(connection: Connection, gig_id: int, *, in_token: bool) -> list[Movement]:
    """All that is due out of a gig's wallet, oldest first: by transactions of its own, or by authorizations."""
    is_in_token = movements.c.asset.is_not(None) if in_token else movements.c.asset.is_(None)
    query = select(*_movement_columns()).where(
        movements.c.source_gig == gig_id, movements.c.state == "due", is_in_token
    )
    return [Movement(*row) for row in connection.execute(query.order_by(movements.c.id))]


def carried(connection: Connection, slot_id: int) -> Movement:
    """The movement that a gig's wallet sends in this slot: one transaction carries one."""
    return Movement(*connection.execute(_CARRIED, {"slot_id": slot_id}).one())


_COLUMNS = ("id", "kind", "subject", "payee", "value", "nonce", "source_gig", "asset")


def _movement_columns() -> list[Column[Any]]:
    return [movements.c[name] for name in _COLUMNS]


def _is_misdirected() -> ColumnElement[bool]:
    """A commission that was written down before the commission address was changed."""
    address = func.coalesce(select(ledger.c.commission_address).scalar_subquery(), movements.c.payee)
    return (movements.c.kind == COMMISSION) & (movements.c.payee != address)


def _due(*conditions: ColumnElement[bool], not_in: Sequence[str] = ()) -> Select[Any]:
    wanted = (movements.c.state == "due", *conditions, _not_in_flight(*not_in), _is_backed(), ~_is_misdirected())
    return select(*_movement_columns()).where(*wanted).order_by(movements.c.id).limit(bindparam("limit"))


_NOT_HELD = movements.c.id.not_in(bindparam("held", expanding=True))
_DUE = _due(movements.c.kind == bindparam("kind"), movements.c.asset.is_(None), _NOT_HELD)
_NOT_BESIDES = movements.c.source_gig.not_in(bindparam("besides", expanding=True))
_DUE_IN_TOKENS = _due(movements.c.asset.is_not(None), _NOT_HELD, _NOT_BESIDES)
_SOURCES = _due(movements.c.source_gig.is_not(None), movements.c.asset.is_(None), _NOT_HELD)
_SOURCES = _SOURCES.with_only_columns(movements.c.source_gig)
_IS_DUE = _due(movements.c.id == bindparam("movement_id"))
_NEEDS_GAS = _due(movements.c.id == bindparam("movement_id"), not_in=(GAS,))
_CARRIED = select(*_movement_columns()).join(slot_movements).where(slot_movements.c.slot_id == bindparam("slot_id"))
_STILL_DUE = select(movements.c.id).where(
    movements.c.id.in_(bindparam("ids", expanding=True)), movements.c.state == "due", ~_is_misdirected()
)


def still_due(connection: Connection, moves: Sequence[Movement]) -> list[Movement]:
    """Those of these that are not on chain, and are to be sent again."""
    ids = [move.movement_id for move in moves]
    left = set(connection.execute(_STILL_DUE, {"ids": ids}).scalars())
    return [move for move in moves if move.movement_id in left]


# Written out: with parameters instead, a database does not know that the partial index will do.
_IS_UNCOLLECTED = text("payments.state = 'settled' and payments.commission > 0 and payments.collected = 0")
_PENDING = select(movements.c.id).where(movements.c.kind == COMMISSION, movements.c.state == "due").limit(1)
_UNCOLLECTED = select(payments.c.id, payments.c.commission).where(_IS_UNCOLLECTED)
_UNCOLLECTED = _UNCOLLECTED.order_by(payments.c.id).limit(bindparam("limit"))
_ANY_UNCOLLECTED = select(payments.c.id).where(_IS_UNCOLLECTED).limit(1)
_ANY_DUE = select(movements.c.id).where(text("movements.state = 'due' and movements.asset is null")).limit(1)
_INSERT_COMMISSIONS = insert(commissions)
_COLLECT = update(payments).where(payments.c.id.in_(bindparam("ids", expanding=True)))
_COLLECT = _COLLECT.values(collected=bindparam("is_collected"))
_INSERT_ALL = insert(movements)
_INSERT = _INSERT_ALL.returning(movements.c.id)
_ENTER_SLOT = insert(slot_movements)
_NEXT_SUBJECT = select(func.coalesce(func.max(movements.c.subject), 0) + 1).where(movements.c.kind == bindparam("kind"))


def is_idle(connection: Connection) -> bool:
    """Is there nothing to move, and no commission to collect?"""
    return all(connection.execute(query).first() is None for query in (_ANY_DUE, _ANY_UNCOLLECTED))


def write_commission(connection: Connection, payee: str, nonce_of: Callable[[int], str], limit: int = 1000) -> None:
    """Write the next commission row down, unless one is still on its way: k+1 never before k is on chain."""
    if connection.execute(_PENDING).first() is not None:
        return
    rows = connection.execute(_UNCOLLECTED, {"limit": limit}).all()
    if not rows:
        return
    number = next_subject(connection, COMMISSION)
    value = sum(row.commission for row in rows)
    movement_id = add(connection, due_row(COMMISSION, number, payee, value, nonce_of(number)))
    connection.execute(_INSERT_COMMISSIONS, [{"payment_id": row.id, "movement_id": movement_id} for row in rows])
    connection.execute(_COLLECT, {"ids": [row.id for row in rows], "is_collected": 1})


Row = dict[str, Any]


def add(connection: Connection, new: Row) -> int:
    """Note a movement that is due, made by `due_row`; its id."""
    return int(connection.execute(_INSERT, new).scalar_one())


def add_all(connection: Connection, new: Sequence[Row]) -> None:
    """Note any number of them."""
    connection.execute(_INSERT_ALL, new)


def due_row(
    kind: str,
    subject: int,
    payee: str,
    value: int,
    nonce: str,
    *,
    source_gig: int | None = None,
    asset: str | None = None,
) -> Row:
    """A movement that is due."""
    return {
        "source_gig": source_gig,
        "asset": asset,
        "kind": kind,
        "subject": subject,
        "payee": payee,
        "value": value,
        "nonce": nonce,
        "state": "due",
        "created_at": int(time.time()),
    }


def enter_slot(connection: Connection, slot_id: int, moves: Sequence[Movement], valid_before: int) -> None:
    rows = [{"slot_id": slot_id, "movement_id": m.movement_id, "valid_before": valid_before} for m in moves]
    connection.execute(_ENTER_SLOT, rows)


def _awaited() -> Any:
    wanted = (movements.c.nonce.in_(bindparam("nonces", expanding=True)), movements.c.state != "done")
    rewards = select(gigs.c.payment_id, movements.c.kind).where(
        *wanted, movements.c.kind == REWARD, gigs.c.id == movements.c.subject
    )
    return union_all(rewards, select(commissions.c.payment_id, movements.c.kind).join(movements).where(*wanted))


_AWAITED = _awaited()
# A nonce is its payer's own (EIP-3009): anybody may sign an authorization of his own with the number of ours.
# One that is written down but was never signed here was signed by somebody else with this seed.
_COMPLETE = (
    update(movements)
    .where(
        movements.c.nonce == bindparam("its_nonce"),
        movements.c.value == bindparam("its_value"),
        func.lower(movements.c.payee) == bindparam("its_payee"),
        # Not IN, which cannot be run for many rows at once.
        or_(*(movements.c.state == state for state in (*states.before("movement", "done"), "done"))),
        exists(literal(1)).where(slot_movements.c.movement_id == movements.c.id),
    )
    .values(
        state="done",
        transaction=bindparam("its_transaction"),
        block_number=bindparam("its_block_number"),
        block_hash=bindparam("its_block_hash"),
        done_at=func.coalesce(movements.c.done_at, bindparam("now")),
    )
)
_OF_THE_INTAKE = _COMPLETE.where(movements.c.source_gig.is_(None))
_OF_A_GIG = _COMPLETE.where(
    exists(literal(1)).where(gigs.c.id == movements.c.source_gig, gigs.c.wallet == bindparam("its_payer"))
)


def awaited(connection: Connection, nonces: Sequence[str | None]) -> dict[int, list[str]]:
    """Of the movements with these nonces those not done yet: the payments that they are part of, and their kinds."""
    kinds: dict[int, list[str]] = {}
    if nonces:
        for payment_id, kind in connection.execute(_AWAITED, {"nonces": list(nonces)}):
            kinds.setdefault(payment_id, []).append(kind)
    return kinds


def complete(connection: Connection, transfers: Iterable[TokenTransfer]) -> list[TokenTransfer]:
    """Note the movements that these transfers of the intake carried out; returns the transfers that we never signed."""
    wanted = [(transfer, _completion(transfer)) for transfer in transfers]
    if not wanted or connection.execute(_OF_THE_INTAKE, [values for _, values in wanted]).rowcount == len(wanted):
        return []
    # One by one, which changes nothing for those that are done.
    return [transfer for transfer, values in wanted if connection.execute(_OF_THE_INTAKE, values).rowcount != 1]


def complete_from_gigs(connection: Connection, transfers: Iterable[TokenTransfer]) -> None:
    """Note the movements that these transfers carried out, where they are of the wallets of the movements' gigs."""
    for transfer in transfers:
        connection.execute(_OF_A_GIG, _completion(transfer) | {"its_payer": transfer.payer})


def _completion(transfer: TokenTransfer) -> dict[str, Any]:
    return {
        "its_nonce": transfer.nonce,
        "its_value": transfer.value,
        "its_payee": transfer.payee,
        "its_transaction": transfer.transaction,
        "its_block_number": transfer.block_number,
        "its_block_hash": transfer.block_hash,
        "now": int(time.time()),
    }


def complete_slot(connection: Connection, slot_id: int, end: End) -> None:
    """What a gig's wallet sent by itself is on chain."""
    carried = select(slot_movements.c.movement_id).where(slot_movements.c.slot_id == slot_id)
    done = update(movements).where(
        movements.c.id.in_(carried), movements.c.state.in_(states.before("movement", "done"))
    )
    place = {"transaction": end.transaction, "block_number": end.block_number, "block_hash": end.block_hash}
    connection.execute(done.values(state="done", **place, done_at=int(time.time())))


def next_subject(connection: Connection, kind: str) -> int:
    """The number of the next row of a kind that counts its rows."""
    return int(connection.execute(_NEXT_SUBJECT, {"kind": kind}).scalar_one())


def forget_block(connection: Connection, number: int, block_hash: str) -> None:
    """What was done in another block of this height is due again."""
    replaced = update(movements).where(
        movements.c.block_number == number,
        movements.c.block_hash != block_hash,
        movements.c.state.in_(states.before("movement", "due")),
    )
    nowhere = {"transaction": None, "block_number": None, "block_hash": None, "done_at": None}
    connection.execute(replaced.values(state="due", **nowhere))


def _is_orphan() -> ColumnElement[bool]:
    rejected = payments.c.state == "rejected"
    gone = exists().where(gigs.c.id == movements.c.subject, gigs.c.payment_id == payments.c.id, rejected)
    partly = exists().where(
        commissions.c.movement_id == movements.c.id, commissions.c.payment_id == payments.c.id, rejected
    )
    # Not the bare column, whose index leads to all that ever moved: what may be void is due.
    kind = func.coalesce(movements.c.kind, "")
    [due] = states.before("movement", "void")
    may_be_void = movements.c.state == due
    return may_be_void & (((kind == REWARD) & gone) | ((kind == COMMISSION) & partly))


def has_orphans(connection: Connection) -> bool:
    """Are there movements that can never be paid, because a payment they rely on ended as rejected?"""
    return connection.execute(select(movements.c.id).where(_is_orphan()).limit(1)).first() is not None


def void_orphans(connection: Connection, final_s: int) -> list[Movement]:
    """Give those up of which no signature was alive in the last block that is final.

    A commission's other payments are in the next one.
    """
    return _void(connection, _is_orphan(), final_s)


# Written out, so that the index of what is due will do.
_MISDIRECTED = select(movements.c.id).where(text("movements.state = 'due'"), _is_misdirected()).limit(1)


def has_misdirected(connection: Connection) -> bool:
    """Is there a commission due to an address that is not the ledger's any more?"""
    return connection.execute(_MISDIRECTED).first() is not None


def void_misdirected(connection: Connection, final_s: int) -> list[Movement]:
    """Give it up when no signature was alive in the last block that is final: the next one carries its payments."""
    return _void(connection, (movements.c.state == "due") & _is_misdirected(), final_s)


def _void(connection: Connection, is_wanted: ColumnElement[bool], final_s: int) -> list[Movement]:
    alive = exists().where(slot_movements.c.movement_id == movements.c.id, slot_movements.c.valid_before >= final_s)
    statement = update(movements).where(is_wanted, ~alive, _not_in_flight()).values(state="void")
    found = [Movement(*row) for row in connection.execute(statement.returning(*_movement_columns()))]
    released = update(commissions).where(commissions.c.movement_id.in_([move.movement_id for move in found]))
    ids = connection.execute(released.values(is_void=1).returning(commissions.c.payment_id)).scalars().all()
    connection.execute(_COLLECT, {"ids": ids, "is_collected": 0})
    return found
