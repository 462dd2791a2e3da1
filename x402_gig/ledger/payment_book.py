"""The ledger as the checkout needs it."""

from x402_gig.ledger.abandonment import look_up, mark_abandoned, take_abandoned
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.payments import find, is_paid
from x402_gig.payments.checkout import Known
from x402_gig.payments.order import Order
from x402_gig.payments.payment import PaymentKey


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
