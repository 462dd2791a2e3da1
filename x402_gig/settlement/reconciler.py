"""Finishes open payments that no transaction of ours carries any more, on evidence from the chain alone."""

import asyncio
import logging

from x402_gig.chain import eip3009
from x402_gig.chain.batcher import Call
from x402_gig.chain.node import Node
from x402_gig.errors import GigError
from x402_gig.payments.outcome import Rejected
from x402_gig.settlement.claims import NONCE_USED
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.simulation import READ_GAS
from x402_gig.settlement.watcher import Watcher
from x402_gig.store import payments
from x402_gig.store.engine import Ledger
from x402_gig.store.payments import OpenPayment

log = logging.getLogger(__name__)

BATCH = 100
EXPIRED = Rejected(
    "invalid_exact_evm_payload_authorization_valid_before",
    "The authorization expired unused and nothing was charged: sign a new one",
)


class Reconciler:
    """An open payment ends as settled (its deposit came), or rejected: cancelled, or expired with its nonce unused."""

    def __init__(self, node: Node, ledger: Ledger, settling: Settling, watcher: Watcher) -> None:
        self._node = node
        self._ledger = ledger
        self._settling = settling
        self._watcher = watcher
        self._after = 0

    async def run(self, interval_s: float) -> None:
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.reconcile()
            except GigError as exc:
                log.warning("reconciler: %s", exc.detail)

    async def reconcile(self) -> None:
        """Look at the next `BATCH` payments; the round begins again after the last. Raises Unavailable."""
        after = self._after
        unsettled = await self._ledger.read(lambda c: payments.unsettled(c, after, BATCH))
        self._after = unsettled[-1].payment_id if len(unsettled) == BATCH else 0
        if not unsettled:
            return
        # Asked of the block that the ledger has read: a deposit up to there is written down.
        cursor = self._watcher.cursor
        _, results = await self._node.simulate([self._state_call(p) for p in unsettled], hex(cursor.number))
        for payment, used in zip(unsettled, results, strict=True):
            if not used.success:
                continue
            if used.number:
                await self._close(payment, NONCE_USED)
            elif cursor.timestamp >= payment.authorization.valid_before:
                await self._close(payment, EXPIRED)

    def _state_call(self, payment: OpenPayment) -> Call:
        authorization = payment.authorization
        data = eip3009.authorization_state_call(authorization.payer, authorization.nonce)
        return Call(self._node.token.address, READ_GAS, data)

    async def _close(self, payment: OpenPayment, rejected: Rejected) -> None:
        await self._settling.close(payment.payment_id, payment.authorization.nonce, rejected)
