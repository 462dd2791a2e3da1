"""One payment, one order, one outcome: look up → check → settle → answer.

known payment? ──yes──→ its outcome from the ledger, or wait for it
      │ no
checks without chain → mark of an abandoned payment? → facilitator (which simulates, writes down, sends)

The chain is asked of an authorization that is out of its time: it may have been executed in a block not read yet.
"""

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from msgspec import Struct

from x402_gig.errors import GigError, PaymentConflict, Unavailable, ValidationFailed
from x402_gig.payments.checks import check_identity, check_terms, check_times, payment_key
from x402_gig.payments.order import Order, Seller
from x402_gig.payments.outcome import Outcome, Rejected, Settled, Unknown
from x402_gig.payments.payment import Authorization, Payment, PaymentKey

STILL_SETTLING = "The payment is being settled: repeat the request with the same payment header"


class Known(Struct, frozen=True):
    """What the ledger says of a payment. `outcome` is None while it is open; `terms` are JSON."""

    payment_id: int
    fingerprint: str
    signature: bytes
    outcome: Settled | Rejected | None
    abandoned: bool
    terms: str = "{}"

    def check_terms(self, order: Order) -> None:
        """Raises PaymentConflict when it is the payment of something else."""
        if self.fingerprint == order.fingerprint:
            return
        if self.fingerprint != order.old_fingerprint(json.loads(self.terms)):
            raise PaymentConflict(f"This payment already belongs to other terms (payment {self.payment_id})")


class Book(Protocol):
    """The ledger, as the checkout needs it. Implemented in `ledger`."""

    async def find_payment(self, key: PaymentKey) -> Known | None: ...
    async def is_paid(self, key: PaymentKey) -> bool:
        """Is there a deposit by this authorization, though no payment is known?"""
        ...

    async def look_up(self, key: PaymentKey, order: Order, now_s: int) -> tuple[Known | None, int | None]:
        """The payment, and an abandoned one of this payer for these terms whose mark can still be taken.

        A mark that is about to be set may be missed: whoever writes the payment down sees it there.
        """
        ...

    async def take_abandoned(self, key: PaymentKey, payment_id: int, signature: bytes) -> bool:
        """Make `key` another name of that payment; False when somebody else took the mark first."""
        ...

    async def forget_abandoned(self, payment_id: int) -> None:
        """Its buyer came back and has the answer: the mark is gone."""
        ...


class Facilitator(Protocol):
    """Who has a buyer's authorization executed. Implementations: `local` and `remote`."""

    async def settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        """Simulate, write down, send, and wait for the evidence.

        Cancelling the caller does not stop the settlement: it marks the payment as abandoned. Raises Unavailable
        when nothing was sent and PaymentConflict when the payment bought other terms.
        """
        ...

    async def resume(self, payment_id: int) -> Outcome:
        """The outcome of a payment that is written down and open; it is sent again where that is needed."""
        ...

    async def abandon(self, payment_id: int) -> None:
        """Its buyer stopped waiting."""
        ...


class Prover(Protocol):
    """Knows whether a signature is the payer's."""

    def recovers(self, authorization: Authorization, signature: bytes) -> bool:
        """Offline: an ECDSA signature of the payer's own key, with a low s."""
        ...

    async def proves(self, authorization: Authorization, signature: bytes) -> bool:
        """`recovers`, or the payer is a contract that says yes (ERC-1271). Raises ChainUnavailable."""
        ...

    async def is_used(self, authorization: Authorization) -> bool:
        """Was this authorization executed or cancelled? Raises ChainUnavailable."""
        ...


class Observer(Protocol):
    """Counts."""

    def answered(self, outcome: str, reason: str) -> None:
        """A buyer gets this outcome: `settled`, `rejected`, `unknown` or `error`. There are few reasons."""
        ...

    def settled(self, seconds: float) -> None:
        """A new payment was settled while its buyer waited."""
        ...


class Checkout:
    """Everything between a parsed payment header and its outcome; the gate adds HTTP."""

    def __init__(
        self,
        *,
        seller: Seller,
        book: Book,
        facilitator: Facilitator,
        prover: Prover,
        hold_s: float,
        clock: Callable[[], float],
        observer: Observer,
    ) -> None:
        self.seller = seller
        self._book = book
        self._facilitator = facilitator
        self._prover = prover
        self._hold_s = hold_s
        self._clock = clock
        self._observer = observer

    async def pay(self, payment: Payment, order: Order) -> Outcome:
        """The outcome of this payment for this order; `Unknown` after `hold_s` seconds.

        Raises ValidationFailed, PaymentConflict or Unavailable; in each of these cases nothing was charged.
        """
        try:
            outcome = await self._pay(payment, order)
        except GigError as exc:
            self._observer.answered("error", exc.reason)
            raise
        self._observer.answered(type(outcome).__name__.lower(), outcome.reason if isinstance(outcome, Rejected) else "")
        return outcome

    async def _pay(self, payment: Payment, order: Order) -> Outcome:
        if refusal := check_identity(payment, self.seller):
            _refuse_broken_terms(order)
            return refusal
        key = payment_key(payment, self.seller)
        known, abandoned = await self._book.look_up(key, order, int(self._clock()))
        if known is not None:
            return await self._again(known, key, payment, order)
        order = order.at_price(payment.authorization.value)
        _refuse_broken_terms(order)
        if refusal := check_terms(payment, self.seller, order.price_units):
            return refusal
        if (refusal := check_times(payment, int(self._clock()))) and not await self._is_paid(key, payment):
            return refusal
        outcome = await self._inherit(key, payment, abandoned) or await self._settle(key, payment, order)
        if isinstance(outcome, Rejected) and (known := await self._book.find_payment(key)):
            # Refused because another request with it came first: that one's outcome counts.
            return await self._again(known, key, payment, order)
        return outcome

    async def _is_paid(self, key: PaymentKey, payment: Payment) -> bool:
        """Whoever has paid already (somebody else executed it) may come later: the ledger may have yet to read that."""
        return await self._book.is_paid(key) or await self._prover.is_used(payment.authorization)

    async def _settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        began = time.monotonic()
        outcome = await self._hold(self._facilitator.settle(key, payment, order))
        if isinstance(outcome, Settled):
            self._observer.settled(time.monotonic() - began)
        return outcome

    async def _again(self, known: Known, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        if payment.signature != known.signature and not await self._proven(payment):
            return Rejected("invalid_exact_evm_payload_signature", "The signature is not the payer's")
        known.check_terms(order)
        try:
            return await self._answer(known, key)
        except Unavailable:
            # It was sent before this request, so nobody can say that nothing was.
            return Unknown(STILL_SETTLING)

    async def _answer(self, known: Known, key: PaymentKey) -> Outcome:
        outcome = known.outcome or await self._hold(self._facilitator.resume(known.payment_id))
        if isinstance(outcome, Unknown):
            return outcome
        # Asked anew: a request that was given up may have set the mark meanwhile.
        now = await self._book.find_payment(key)
        if now is not None and now.abandoned:
            await self._forget_abandoned(known.payment_id)
        return outcome

    async def _forget_abandoned(self, payment_id: int) -> None:
        try:
            await self._book.forget_abandoned(payment_id)
        except (asyncio.CancelledError, Unavailable):
            # The mark may be gone, and this buyer does not get the answer: it is there when the terms are signed anew.
            await asyncio.shield(self._facilitator.abandon(payment_id))
            raise

    async def _inherit(self, key: PaymentKey, payment: Payment, abandoned: int | None) -> Outcome | None:
        if abandoned is None or not await self._proven(payment):
            return None
        # Executed by somebody else already: it is paid itself, and the abandoned one need not be.
        if await self._prover.is_used(payment.authorization):
            return None
        try:
            if not await self._book.take_abandoned(key, abandoned, payment.signature):
                return None
            return await self._hold(self._facilitator.resume(abandoned))
        except asyncio.CancelledError:
            # The mark may be taken already, and this buyer left too: it is there for the next one.
            await asyncio.shield(self._facilitator.abandon(abandoned))
            raise
        except Unavailable:
            await self._facilitator.abandon(abandoned)
            return Unknown(STILL_SETTLING)

    async def _proven(self, payment: Payment) -> bool:
        return await self._prover.proves(payment.authorization, payment.signature)

    async def _hold(self, settling: Coroutine[Any, Any, Outcome]) -> Outcome:
        try:
            async with asyncio.timeout(self._hold_s):
                return await settling
        except TimeoutError:
            return Unknown(STILL_SETTLING)


def _refuse_broken_terms(order: Order) -> None:
    if order.problems:
        raise ValidationFailed(order.problems)
