"""Finishes what no transaction of ours carries any more, on evidence from the chain alone."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from x402_gig.chainsync.watcher import Watcher
from x402_gig.errors import GigError
from x402_gig.evm.node import Node
from x402_gig.ledger import movements, payments, refunds, shared_settings
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.movements import Movement
from x402_gig.ledger.payments import OpenPayment, Reservation
from x402_gig.ledger.refunds import Deposit
from x402_gig.logs import PaymentLog, Trouble
from x402_gig.metrics import Metrics
from x402_gig.payments.outcome import Rejected
from x402_gig.settlement.late_orders import NONCE_USED
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.work import Work

log = logging.getLogger(__name__)

BATCH = 100
RESEND_EVERY_S = 10
# As long as an authorization may be valid: until then its order may turn up.
REFUND_AFTER_S = 2 * 60 * 60
EXPIRED = Rejected(
    "invalid_exact_evm_payload_authorization_valid_before",
    "The authorization expired unused and nothing was charged: sign a new one",
)


class Resender(Protocol):
    """Has an authorization executed that nobody waits for. `facilitators` implement it."""

    def can_send(self) -> bool:
        """Or is it another process's turn?"""
        ...

    async def resend(self, payment_id: int, wanted: Reservation) -> None: ...


@dataclass
class Reconciler:
    """Looks after what nobody waits for. Any number of processes may do this on one ledger at once.

    An open payment ends as settled (its deposit came), or rejected: cancelled, or expired with its nonce unused. One
    whose deposit was reorganised away is sent again. A deposit that nobody claims is paid back.
    """

    node: Node
    ledger: Ledger
    settling: Settling
    watcher: Watcher
    resender: Resender
    refund_nonce: Callable[..., str]
    work: Work
    clock: Callable[[], float]
    reorg_depth: int
    metrics: Metrics
    # Of gigs that a reorganisation has suspended.
    recheck: Callable[[], Awaitable[None]]
    _after: int = field(default=0, init=False)
    _resent: dict[int, float] = field(default_factory=dict, init=False)
    _newest_refund: int = field(default=0, init=False)
    _trouble: Trouble = field(default_factory=lambda: Trouble(log, "reconciler"), init=False)

    async def run(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            self._trouble.is_now("; ".join(dict.fromkeys([problem async for problem in self._round()])))

    async def _round(self) -> AsyncIterator[str]:
        """Each task, and what kept it from its work; the others go on."""
        settling = self.settling
        tasks = (
            settling.tell_known,
            settling.learn_halt,
            settling.mark_left,
            self.reconcile,
            self.resend,
            self.void,
            self.refund,
            self.recheck,
        )
        for task in tasks:
            try:
                await task()
            except GigError as exc:
                yield exc.detail

    async def resend(self) -> None:
        """Send what lost its deposit, what the operator asked for, and what a process without a relayer has left."""
        if not self.resender.can_send():
            return
        now = time.monotonic()
        self._resent = {i: at for i, at in self._resent.items() if at > now - RESEND_EVERY_S}
        for payment_id, wanted in await self.ledger.read(lambda c: payments.to_resend(c, BATCH)):
            if payment_id not in self._resent:
                self._resent[payment_id] = now
                PaymentLog(log, payment_id).info("to be sent again")
                self.metrics.acted("resent")
                await self.resender.resend(payment_id, wanted)

    async def void(self) -> None:
        """Give up movements whose deposit never came back, and commissions to an address that was changed."""
        seen = self.watcher.cursor
        has_orphans, has_misdirected = await self.ledger.read(
            lambda c: (movements.has_orphans(c), movements.has_misdirected(c))
        )
        if not has_orphans and not has_misdirected:
            return
        # A reorganisation may bring back a time at which what has expired since can be executed.
        final = await self.node.existing(max(0, seen.number - self.reorg_depth))
        if has_orphans:
            for move in await self.ledger.write(lambda c: movements.void_orphans(c, final.timestamp)):
                self._voided(move, "its deposit did not come back")
        if has_misdirected:
            for move in await self.ledger.write(lambda c: movements.void_misdirected(c, final.timestamp)):
                self._voided(move, "the commission address was changed, and the next one carries its payments")

    def _voided(self, move: Movement, why: str) -> None:
        self.metrics.acted("voided")
        log.warning("%s %d is void: %s", move.kind, move.subject, why)
        self.work.funding_due()  # the next commission waited for this one

    async def refund(self) -> None:
        """Pay back deposits that are final and that nobody claimed in two hours, and what a command wrote down."""
        await self._write_ripe()
        newest = await self.ledger.read(refunds.newest_due)
        if newest > self._newest_refund:
            self._newest_refund = newest
            self.work.funding_due()

    async def _write_ripe(self) -> None:
        limits = {
            "up_to_block": self.watcher.cursor.number - self.reorg_depth,
            "before_s": int(self.clock()) - REFUND_AFTER_S,
            "minimum": await self.ledger.read(shared_settings.least_price),
        }
        if self.settling.halt or not await self.ledger.read(lambda c: refunds.ripe(c, 1, **limits)):
            return
        for deposit in await self.ledger.write(lambda c: self._write_refunds(c, limits)):
            self.metrics.acted("refunded")
            log.warning("deposit %d of %s: nobody claimed it, paying it back", deposit.id, deposit.payer)

    def _write_refunds(self, connection: Connection, limits: dict[str, int]) -> list[Deposit]:
        found = refunds.ripe(connection, BATCH, **limits)
        return [d for d in found if refunds.write_refund(connection, d, d.payer, self.refund_nonce)]

    async def reconcile(self) -> None:
        """Look at the next `BATCH` payments; the round begins again after the last. Raises Unavailable."""
        after, doubts = self._after, self.watcher.doubts
        unsettled = await self.ledger.read(lambda c: payments.unsettled(c, after, BATCH))
        self._after = unsettled[-1].payment_id if len(unsettled) == BATCH else 0
        if not unsettled:
            return
        # Asked of the block that the ledger has read: a deposit up to there is written down.
        cursor = self.watcher.cursor
        states = await self.node.are_used([payment.authorization for payment in unsettled], cursor)
        for payment, is_used in zip(unsettled, states, strict=True):
            if is_used:
                await self._close(payment, NONCE_USED, doubts)
            elif is_used is False and cursor.timestamp >= payment.authorization.valid_before:
                await self._close(payment, EXPIRED, doubts)

    async def _close(self, payment: OpenPayment, rejected: Rejected, doubts: int) -> None:
        self.metrics.acted("closed")
        await self.settling.close(payment.payment_id, payment.authorization.nonce, rejected, doubts)
