"""Deposits: written down once, owned once. Where a deposit meets its open payment, the order is delivered.

A reorganisation may take a deposit off the chain: then it has no owner and counts for nothing until it is seen again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    RowMapping,
    ScalarSelect,
    Select,
    String,
    Table,
    and_,
    bindparam,
    cast,
    func,
    literal,
    literal_column,
    select,
    union,
    update,
)

from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.ledger import payments
from x402_gig.ledger.engine import InsertIgnore, InsertOrReplace
from x402_gig.ledger.payments import Delivery
from x402_gig.ledger.tables import deposits, gig_deposits, ledger, movements, slots
from x402_gig.ledger.tables import payments as payment_rows
from x402_gig.payments.order import Product, Purchase
from x402_gig.payments.outcome import Settled

# Their rows say in which block they were seen.
SEEN_IN_BLOCKS = (deposits, movements, slots, gig_deposits)


class Shop(Struct, frozen=True):
    """The products on sale by name, and the book for so many of them, written to within a transaction.

    `network`: the one that they are paid on, as x402 names it.
    """

    network: str
    products: Mapping[str, Product]
    open_book: Callable[[Connection, int], AbstractContextManager[Any]]


_PLACE = ["value", "transaction", "log_index", "block_number", "block_hash", "on_chain"]
_ADD_AUTHORIZED = InsertIgnore(deposits, deposits.c.id)
_PUT_AUTHORIZED = InsertOrReplace(deposits, ["asset", "payer", "nonce"], _PLACE)
_PUT_PLAIN = InsertOrReplace(deposits, ["transaction", "log_index"], ["payer", *_PLACE], deposits.c.nonce.is_(None))


def record(connection: Connection, asset: str, transfers: Iterable[TokenTransfer], now: int) -> None:
    """Write deposits down. One that a reorganisation moved to another block takes its new place."""
    rows = [{**asdict(t), "asset": asset, "on_chain": 1, "created_at": now} for t in transfers]
    for row in rows:
        del row["payee"]
    authorized = [row for row in rows if row["nonce"] is not None]
    plain = [row for row in rows if row["nonce"] is None]
    # Nearly always they are new, and then there is nothing to look for.
    if authorized and len(_ADD_AUTHORIZED(connection, authorized).all()) < len(authorized):
        _release_changed(connection, authorized)
        _PUT_AUTHORIZED(connection, authorized)
    if plain:
        _PUT_PLAIN(connection, plain)


_WITH_NONCES = select(deposits.c.id, deposits.c.payer, deposits.c.nonce, deposits.c.value).where(
    deposits.c.nonce.in_(bindparam("nonces", expanding=True)), deposits.c.on_chain == 1
)


def _release_changed(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """A payer may sign two authorizations with one nonce, and a reorganisation execute the other one."""
    values = {(row["payer"], row["nonce"]): row["value"] for row in rows}
    known = connection.execute(_WITH_NONCES, {"nonces": [row["nonce"] for row in rows]})
    changed = [i for i, payer, nonce, value in known if values.get((payer, nonce), value) != value]
    if changed:
        _take_off(connection, changed)


def forget_block(connection: Connection, number: int, block_hash: str) -> list[int]:
    """What the ledger saw in another block of this height is not on chain; ids of the payments that are open again."""
    replaced = (deposits.c.block_number == number, deposits.c.block_hash != block_hash, deposits.c.on_chain == 1)
    return _take_off(connection, connection.execute(select(deposits.c.id).where(*replaced)).scalars().all())


def _take_off(connection: Connection, ids: Sequence[int]) -> list[int]:
    gone = deposits.c.id.in_(ids)
    recount(connection)
    owners = connection.execute(select(deposits.c.payment_id).where(gone)).scalars().all()
    connection.execute(update(deposits).where(gone).values(on_chain=0, payment_id=None))
    return payments.reopen(connection, [i for i in owners if i is not None], "the block of its deposit was replaced")


def _standing(table: Table) -> tuple[ColumnElement[bool], ...]:
    """Nothing that was replaced; the others keep no block then."""
    return (table.c.on_chain == 1,) if "on_chain" in table.c else ()


_REPLACED = [
    select(literal(1)).where(
        table.c.block_number == bindparam("number"), table.c.block_hash != bindparam("hash"), *_standing(table)
    )
    for table in SEEN_IN_BLOCKS
]


_RECORDED = union(
    select(deposits.c.block_hash, deposits.c.transaction, deposits.c.nonce).where(
        deposits.c.block_number.between(bindparam("first"), bindparam("last")), deposits.c.on_chain == 1
    ),
    select(movements.c.block_hash, movements.c.transaction, movements.c.nonce).where(
        movements.c.block_number.between(bindparam("first"), bindparam("last")), movements.c.state == "done"
    ),
)


def unrecorded(connection: Connection, transfers: Sequence[TokenTransfer]) -> list[TokenTransfer]:
    """Those of these that the ledger does not have in their very place; plain transfers are always among them."""
    if not transfers:
        return []
    heights = [t.block_number for t in transfers]
    known = {tuple(row) for row in connection.execute(_RECORDED, {"first": min(heights), "last": max(heights)})}
    return [t for t in transfers if t.nonce is None or (t.block_hash, t.transaction, t.nonce) not in known]


def is_replaced(connection: Connection, number: int, block_hash: str) -> bool:
    """Does the ledger know something of another block at this height?"""
    return any(connection.execute(query, {"number": number, "hash": block_hash}).first() for query in _REPLACED)


def _places(table: Table) -> Select[Any]:
    is_there = table.c.block_number.between(bindparam("first"), bindparam("last")), table.c.block_hash.is_not(None)
    return select(table.c.block_number, table.c.block_hash).where(*is_there, *_standing(table))


_PLACES = union(*map(_places, SEEN_IN_BLOCKS))


def known_places(connection: Connection, first: int, last: int) -> set[tuple[int, str]]:
    """Height and hash of the blocks of a range, both ends included, of which the ledger knows something."""
    return {(number, block_hash) for number, block_hash in connection.execute(_PLACES, {"first": first, "last": last})}


def known_blocks(connection: Connection, first: int, last: int) -> set[int]:
    """Their heights."""
    return {number for number, _ in known_places(connection, first, last)}


def is_free() -> tuple[ColumnElement[bool], ...]:
    """On chain, and neither an order nor a refund owns it."""
    return deposits.c.on_chain == 1, deposits.c.payment_id.is_(None), deposits.c.refund_id.is_(None)


_SAME_AUTHORIZATION = [deposits.c[name] == payment_rows.c[name] for name in ("asset", "payer", "nonce", "value")]
_WANTED = [payment_rows.c[name] for name in ("id", "payer", "value", "network", "product", "terms", "answer")]
_TO_SETTLE = (
    select(*_WANTED, deposits.c.transaction.label("deposit_transaction"), deposits.c.id.label("deposit_id"))
    .join(deposits, and_(*_SAME_AUTHORIZATION))
    .where(
        deposits.c.nonce.in_(bindparam("nonces", expanding=True)),
        # As `is_free`, but found by the nonce: IS NULL has an index of its own that leads to nearly all rows.
        deposits.c.on_chain == 1,
        func.coalesce(deposits.c.payment_id, deposits.c.refund_id, 0) == 0,
        # The whole key of the payment, and not found by the network alone: it is the same for all.
        payment_rows.c.network == func.coalesce(bindparam("network", type_=String), deposits.c.asset),
        # Written out: see `payments`.
        payment_rows.c.state == literal_column("'open'"),
    )
    .order_by(payment_rows.c.id)
)
_OWN = update(deposits).where(deposits.c.id == bindparam("deposit_id"), *is_free())
_OWN = _OWN.values(payment_id=bindparam("owner"))


def settle(connection: Connection, shop: Shop, nonces: Iterable[str]) -> dict[int, Settled]:
    """Give each unowned deposit with one of these nonces to its open payment, and deliver the order.

    A deposit of another value than the payment's is not its deposit: the payer signed two authorizations.
    """
    wanted = {"nonces": list(nonces), "network": shop.network}
    if not wanted["nonces"]:
        return {}
    found = connection.execute(_TO_SETTLE, wanted).mappings()
    # One whose product is not on sale here stays open: nothing else can deliver it.
    rows = [row for row in found if row["product"] in shop.products]
    if not rows:
        return {}
    owners = [{"deposit_id": row["deposit_id"], "owner": row["id"]} for row in rows]
    if connection.execute(_OWN, owners).rowcount != len(rows):
        raise AssertionError("a deposit has two owners")
    with shop.open_book(connection, len(rows)) as book:
        deliveries = [_deliver(shop, book, row) for row in rows]
    payments.settle(connection, deliveries)
    return {
        row["id"]: Settled(row["id"], row["payer"], done.transaction, json.loads(done.answer or row["answer"]))
        for row, done in zip(rows, deliveries, strict=True)
    }


def _deliver(shop: Shop, book: Any, row: RowMapping) -> Delivery:
    transaction = row["deposit_transaction"]
    if row["answer"] is not None:  # delivered before a reorganisation
        return Delivery(row["id"], transaction)
    purchase = Purchase(row["id"], row["payer"], row["value"], transaction, row["network"], json.loads(row["terms"]))
    done = shop.products[row["product"]].fulfil(book, purchase)
    return Delivery(row["id"], transaction, json.dumps(done.answer), done.commission_units)


def find(connection: Connection, asset: str, payer: str, nonce: str) -> RowMapping | None:
    """The deposit that this authorization made; None while it is not on chain."""
    same = (deposits.c.asset == asset, deposits.c.payer == payer, deposits.c.nonce == nonce)
    query = select(deposits).where(*same, deposits.c.on_chain == 1)
    return connection.execute(query).mappings().first()


def _sum(column: ColumnElement[int], *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return select(func.coalesce(func.sum(column), 0)).where(*conditions).scalar_subquery()


def _change() -> Select[Any]:
    after: Any = bindparam("after")
    number: Any = bindparam("number")
    came = (deposits.c.on_chain == 1, deposits.c.block_number > after, deposits.c.block_number <= number)
    left = (
        # Not IS NULL, which has an index of its own that leads to nearly all rows.
        func.coalesce(movements.c.source_gig, 0) == 0,
        movements.c.state == "done",
        movements.c.block_number > after,
        movements.c.block_number <= number,
    )
    # USDC of the intake always fits.
    return select(_sum(deposits.c.value, *came) - _sum(cast(movements.c.value, BigInteger), *left))


_BASE = select(ledger.c.base_number, ledger.c.base_balance, ledger.c.start_balance)
_CHANGE = _change()
_SET_BASE = update(ledger).values(base_number=bindparam("number"), base_balance=bindparam("balance"))
_RECOUNT = update(ledger).values(base_number=0, base_balance=ledger.c.start_balance)
_NEWEST_BLOCKS = [
    select(func.max(table.c.block_number)).where(table.c.on_chain == 1) for table in (deposits, gig_deposits)
]


def expected_balance(connection: Connection, block_number: int) -> int:
    """What the intake holds at this block, by the ledger, in base units."""
    base_number, balance, start_balance = connection.execute(_BASE).first() or (0, 0, 0)
    if block_number < base_number:
        base_number, balance = 0, start_balance
    change = connection.execute(_CHANGE, {"after": base_number, "number": block_number}).scalar_one()
    return int(balance + change)


def count_from(connection: Connection, block_number: int) -> None:
    """So far back nothing changes any more: sums begin there, until `recount`."""
    balance = expected_balance(connection, block_number)
    connection.execute(_SET_BASE, {"number": block_number, "balance": balance})


def recount(connection: Connection) -> None:
    """Something has changed up to any block: sums begin with the ledger."""
    connection.execute(_RECOUNT)


def will_change(connection: Connection, transfers: Iterable[TokenTransfer]) -> None:
    """These are about to be written: sums begin with the ledger if one of them is older than the base."""
    base = connection.execute(_BASE).first()
    if base is not None and any(t.block_number <= base.base_number for t in transfers):
        recount(connection)


def newest_block(connection: Connection) -> int:
    """The highest block that holds a deposit of ours or of a gig; 0 when there is none."""
    return max(connection.execute(query).scalar_one() or 0 for query in _NEWEST_BLOCKS)
