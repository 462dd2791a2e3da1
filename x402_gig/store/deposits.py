"""Deposits: written down once, owned once. Where a deposit meets its open payment, the order is delivered.

A reorganisation may take a deposit off the chain: then it has no owner and counts for nothing until it is seen again.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    RowMapping,
    ScalarSelect,
    and_,
    cast,
    func,
    select,
    union,
    update,
)

from x402_gig.chain.eip3009 import TokenTransfer
from x402_gig.payments.order import Product, Purchase
from x402_gig.payments.outcome import Settled
from x402_gig.store import payments
from x402_gig.store.engine import insert_or_replace
from x402_gig.store.tables import deposits, gig_deposits, ledger, movements, slots
from x402_gig.store.tables import payments as payment_rows

# Their rows say in which block they were seen.
SEEN_IN_BLOCKS = (deposits, movements, slots, gig_deposits)


@dataclass(frozen=True)
class Shop:
    """The products on sale by name, and the book that they write to within a transaction."""

    products: Mapping[str, Product]
    open_book: Callable[[Connection], Any]


def record(connection: Connection, asset: str, transfers: Iterable[TokenTransfer], now: int) -> None:
    """Write deposits down. One that a reorganisation moved to another block takes its new place."""
    rows = [{**asdict(t), "asset": asset, "on_chain": 1, "created_at": now} for t in transfers]
    for row in rows:
        del row["payee"]
    authorized = [row for row in rows if row["nonce"] is not None]
    plain = [row for row in rows if row["nonce"] is None]
    place = ["value", "transaction", "log_index", "block_number", "block_hash", "on_chain"]
    if authorized:
        _release_changed(connection, authorized)
        connection.execute(insert_or_replace(connection, deposits, authorized, ["asset", "payer", "nonce"], place))
    if plain:
        key, is_plain = ["transaction", "log_index"], deposits.c.nonce.is_(None)
        connection.execute(insert_or_replace(connection, deposits, plain, key, ["payer", *place], is_plain))


def _release_changed(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """A payer may sign two authorizations with one nonce, and a reorganisation execute the other one."""
    query = select(deposits.c.id, deposits.c.payer, deposits.c.nonce, deposits.c.value).where(
        deposits.c.nonce.in_([row["nonce"] for row in rows]), deposits.c.on_chain == 1
    )
    values = {(row["payer"], row["nonce"]): row["value"] for row in rows}
    changed = [i for i, payer, nonce, value in connection.execute(query) if values.get((payer, nonce), value) != value]
    _take_off(connection, changed)


def forget_block(connection: Connection, number: int, block_hash: str) -> list[int]:
    """What the ledger saw in another block of this height is not on chain; ids of the payments that are open again."""
    replaced = (deposits.c.block_number == number, deposits.c.block_hash != block_hash, deposits.c.on_chain == 1)
    return _take_off(connection, connection.execute(select(deposits.c.id).where(*replaced)).scalars().all())


def _take_off(connection: Connection, ids: Sequence[int]) -> list[int]:
    gone = deposits.c.id.in_(ids)
    owners = connection.execute(select(deposits.c.payment_id).where(gone)).scalars().all()
    connection.execute(update(deposits).where(gone).values(on_chain=0, payment_id=None))
    return payments.reopen(connection, [i for i in owners if i is not None], "the block of its deposit was replaced")


def is_replaced(connection: Connection, number: int, block_hash: str) -> bool:
    """Does the ledger know something of another block at this height?"""
    return any(
        connection.execute(select(1).where(table.c.block_number == number, table.c.block_hash != block_hash)).first()
        for table in SEEN_IN_BLOCKS
    )


def known_blocks(connection: Connection, first: int, last: int) -> set[int]:
    """The heights of a range, both ends included, at which the ledger knows something."""
    queries = [select(t.c.block_number).where(t.c.block_number.between(first, last)) for t in SEEN_IN_BLOCKS]
    return set(connection.execute(union(*queries)).scalars())


def settle(connection: Connection, shop: Shop, nonces: Iterable[str]) -> dict[int, Settled]:
    """Give each unowned deposit with one of these nonces to its open payment, and deliver the order.

    A deposit of another value than the payment's is not its deposit: the payer signed two authorizations.
    """
    query = (
        select(payment_rows, deposits.c.transaction.label("deposit_transaction"), deposits.c.id.label("deposit_id"))
        .join(
            deposits,
            and_(
                deposits.c.asset == payment_rows.c.asset,
                deposits.c.payer == payment_rows.c.payer,
                deposits.c.nonce == payment_rows.c.nonce,
                deposits.c.value == payment_rows.c.value,
            ),
        )
        .where(
            deposits.c.nonce.in_(list(nonces)),
            *is_free(),
            payment_rows.c.state == "open",
            # One whose product is not on sale here stays open: nothing else can deliver it.
            payment_rows.c.product.in_(list(shop.products)),
        )
        .order_by(payment_rows.c.id)
    )
    rows = connection.execute(query).mappings().all()
    return {row["id"]: _deliver(connection, shop, row) for row in rows}


def _deliver(connection: Connection, shop: Shop, row: RowMapping) -> Settled:
    transaction = row["deposit_transaction"]
    owned = update(deposits).where(deposits.c.id == row["deposit_id"], *is_free())
    if connection.execute(owned.values(payment_id=row["id"])).rowcount != 1:
        raise AssertionError(f"deposit {row['deposit_id']} has two owners")
    if row["answer"] is not None:  # delivered before a reorganisation
        payments.settle(connection, row["id"], transaction)
        return Settled(row["id"], row["payer"], transaction, json.loads(row["answer"]))
    purchase = Purchase(row["id"], row["payer"], row["value"], transaction, row["network"], json.loads(row["terms"]))
    done = shop.products[row["product"]].fulfil(shop.open_book(connection), purchase)
    answer = json.dumps(done.answer)
    payments.settle(connection, row["id"], transaction, answer=answer, commission=done.commission_units)
    return Settled(row["id"], row["payer"], transaction, done.answer)


def is_free() -> tuple[ColumnElement[bool], ...]:
    """On chain, and neither an order nor a refund owns it."""
    return deposits.c.on_chain == 1, deposits.c.payment_id.is_(None), deposits.c.refund_id.is_(None)


def find(connection: Connection, asset: str, payer: str, nonce: str) -> RowMapping | None:
    """The deposit that this authorization made; None while it is not on chain."""
    same = (deposits.c.asset == asset, deposits.c.payer == payer, deposits.c.nonce == nonce)
    query = select(deposits).where(*same, deposits.c.on_chain == 1)
    return connection.execute(query).mappings().first()


def expected_balance(connection: Connection, block_number: int) -> int:
    """What the intake holds at this block, by the ledger, in base units."""
    start = select(ledger.c.start_balance).scalar_subquery()
    received = _sum(deposits.c.value, deposits.c.on_chain == 1, deposits.c.block_number <= block_number)
    left = (movements.c.source_gig.is_(None), movements.c.state == "done", movements.c.block_number <= block_number)
    # USDC of the intake always fits.
    paid = _sum(cast(movements.c.value, BigInteger), *left)
    return int(connection.execute(select(func.coalesce(start, 0) + received - paid)).scalar_one())


def _sum(column: ColumnElement[int], *conditions: ColumnElement[bool]) -> ScalarSelect[int]:
    return select(func.coalesce(func.sum(column), 0)).where(*conditions).scalar_subquery()


def newest_block(connection: Connection) -> int:
    """The highest block that holds a deposit of ours or of a gig; 0 when there is none."""
    queries = [
        select(func.max(table.c.block_number)).where(table.c.on_chain == 1) for table in (deposits, gig_deposits)
    ]
    return max(connection.execute(query).scalar_one() or 0 for query in queries)
