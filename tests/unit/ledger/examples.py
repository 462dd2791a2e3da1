"""Payments, and the transfers that pay them, by number: number n has payer and nonce n."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from msgspec.structs import replace
from sqlalchemy import Connection, event, text

from tests.unit.payments.examples import INTAKE, NOW, PRICE, USDC, payment
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.ledger import reservations
from x402_gig.ledger.deposits import Shop
from x402_gig.ledger.gigs import GigShelf, open_shelf
from x402_gig.ledger.payments import Reservation
from x402_gig.ledger.slots import End
from x402_gig.payments.order import Fulfilled, Order, Purchase
from x402_gig.payments.payment import PaymentKey

ASSET = USDC.lower()
NETWORK = "eip155:8453"
REWARD, COMMISSION = 10_000_000, 1_000_000
ORDER = Order("thing", {"size": 1}, PRICE)


def address(number: int) -> str:
    return f"0x{number:040x}"


def word(number: int) -> str:
    return f"0x{number:064x}"


def key(number: int) -> PaymentKey:
    return PaymentKey(NETWORK, ASSET, address(number), word(number))


def reservation(number: int, order: Order = ORDER, **changes: Any) -> Reservation:
    wanted = Reservation(key(number), payment(payer=address(number), nonce=word(number)), order)
    return replace(wanted, **changes)


def reserved(db: Connection, *numbers: int) -> list[int]:
    """Write these payments down; their ids."""
    ids = reservations.reserve(db, [reservation(number) for number in numbers])
    return [ids[key(number)] for number in numbers]


def transfer(number: int, **changes: Any) -> TokenTransfer:
    """The deposit of payment `number`, in block 100 + number."""
    plain = TokenTransfer(
        payer=address(number),
        nonce=word(number),
        payee=INTAKE.lower(),
        value=PRICE,
        transaction=word(1000 + number),
        log_index=2 * number,
        block_number=100 + number,
        block_hash=word(2000 + number),
    )
    return replace(plain, **changes)


class Thing:
    """A product that puts itself on the shelf."""

    name = "thing"

    def order(self, body: Mapping[str, Any]) -> Order:
        return replace(ORDER, terms=body)

    def fulfil(self, book: GigShelf, purchase: Purchase) -> Fulfilled:
        reward = purchase.value_units - COMMISSION
        gig_id, wallet = book.add(
            purchase, reward_units=reward, commission_units=COMMISSION, start_at=NOW, end_at=NOW + 60
        )
        return Fulfilled({"gig_id": gig_id, "wallet": wallet, "size": purchase.terms["size"]}, COMMISSION)


END = End(7, word(7))


def wallet_of(gig_id: int) -> str:
    return address(0xA000 + gig_id)


def reward_nonce(gig_id: int) -> str:
    return word(0xB000 + gig_id)


def commission_nonce(row: int) -> str:
    return word(0xC000 + row)


def open_book(connection: Connection, most: int) -> AbstractContextManager[GigShelf]:
    return open_shelf(connection, most, wallet_of, reward_nonce)


SHOP = Shop(NETWORK, {"thing": Thing()}, open_book)


def asked(db: Connection, work: Callable[[], object]) -> list[tuple[str, Any]]:
    """The statements of `work`, with their parameters."""
    db.execute(text("select 1"))  # begun
    seen: list[tuple[str, Any]] = []

    def note(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(db, "before_cursor_execute", note)
    work()
    event.remove(db, "before_cursor_execute", note)
    return seen


def plan(db: Connection, work: Callable[[], object]) -> list[str]:
    """How SQLite goes about the last statement of `work`."""
    statement, parameters = asked(db, work)[-1]
    return [row[3] for row in db.exec_driver_sql(f"explain query plan {statement}", parameters)]
