"""Deposits: written down once, owned once. Where a deposit meets its open payment, the order is delivered."""

import json
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, func, select, update

from x402_gig.chain.eip3009 import AuthorizedTransfer
from x402_gig.payments.order import Product, Purchase
from x402_gig.payments.outcome import Settled
from x402_gig.store.engine import insert_or_replace
from x402_gig.store.tables import deposits, movements, payments


@dataclass(frozen=True)
class Shop:
    """The products on sale by name, and the book that they write to within a transaction."""

    products: Mapping[str, Product]
    open_book: Callable[[Connection], Any]


def record(connection: Connection, asset: str, transfers: Iterable[AuthorizedTransfer]) -> None:
    """Write deposits down. One that a reorganisation moved to another block takes its new place."""
    now = int(time.time())
    rows = [
        {
            "asset": asset,
            "payer": transfer.payer,
            "nonce": transfer.nonce,
            "value": transfer.value,
            "transaction": transfer.transaction,
            "log_index": transfer.log_index,
            "block_number": transfer.block_number,
            "block_hash": transfer.block_hash,
            "created_at": now,
        }
        for transfer in transfers
    ]
    place = ["transaction", "log_index", "block_number", "block_hash"]
    if rows:
        connection.execute(insert_or_replace(connection, deposits, rows, ["asset", "payer", "nonce"], place))


def settle(connection: Connection, shop: Shop, nonces: Iterable[str]) -> dict[int, Settled]:
    """Give each unowned deposit with one of these nonces to its open payment, and deliver the order.

    A deposit of another value than the payment's is not its deposit: the payer signed two authorizations.
    """
    query = (
        select(payments, deposits.c.transaction.label("deposit_transaction"), deposits.c.id.label("deposit_id"))
        .join(
            deposits,
            and_(
                deposits.c.asset == payments.c.asset,
                deposits.c.payer == payments.c.payer,
                deposits.c.nonce == payments.c.nonce,
                deposits.c.value == payments.c.value,
            ),
        )
        .where(
            deposits.c.nonce.in_(list(nonces)),
            deposits.c.payment_id.is_(None),
            payments.c.state == "open",
            # One whose product is not on sale here stays open: nothing else can deliver it.
            payments.c.product.in_(list(shop.products)),
        )
        .order_by(payments.c.id)
    )
    rows = connection.execute(query).mappings().all()
    return {row["id"]: _deliver(connection, shop, row) for row in rows}


def _deliver(connection: Connection, shop: Shop, row: RowMapping) -> Settled:
    transaction = row["deposit_transaction"]
    purchase = Purchase(row["id"], row["payer"], row["value"], transaction, row["network"], json.loads(row["terms"]))
    owned = update(deposits).where(deposits.c.id == row["deposit_id"], deposits.c.payment_id.is_(None))
    if connection.execute(owned.values(payment_id=row["id"])).rowcount != 1:
        raise AssertionError(f"deposit {row['deposit_id']} has two owners")
    done = shop.products[row["product"]].fulfil(shop.open_book(connection), purchase)
    connection.execute(
        update(payments)
        .where(payments.c.id == row["id"], payments.c.state == "open")
        .values(
            state="settled",
            answer=json.dumps(done.answer),
            commission=done.commission_units,
            transaction=transaction,
            final_at=int(time.time()),
        )
    )
    return Settled(row["id"], row["payer"], transaction, done.answer)


def find(connection: Connection, asset: str, payer: str, nonce: str) -> RowMapping | None:
    query = select(deposits).where(deposits.c.asset == asset, deposits.c.payer == payer, deposits.c.nonce == nonce)
    return connection.execute(query).mappings().first()


def expected_balance(connection: Connection, block_number: int) -> int:
    """What the intake must hold at least at this block, by the ledger: what came in less what went out, base units."""
    received = select(func.coalesce(func.sum(deposits.c.value), 0)).where(deposits.c.block_number <= block_number)
    paid = select(func.coalesce(func.sum(movements.c.value), 0)).where(movements.c.state == "done")
    return int(connection.execute(received).scalar_one()) - int(connection.execute(paid).scalar_one())


def newest_block(connection: Connection) -> int:
    """The highest block that holds a deposit of ours; 0 when there is none."""
    return int(connection.execute(select(func.coalesce(func.max(deposits.c.block_number), 0))).scalar_one())
