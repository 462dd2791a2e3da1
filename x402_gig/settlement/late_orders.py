"""A payment whose nonce is used already: somebody else may have broadcast it, and then it is paid."""

import logging

from msgspec import Struct

from x402_gig.chainsync.watcher import Watcher
from x402_gig.errors import Unavailable
from x402_gig.evm.node import Node
from x402_gig.gigs.pricing import to_tokens
from x402_gig.ledger import chain_state, deposits, payments, reservations
from x402_gig.ledger.deposits import Shop
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.payments import Reservation
from x402_gig.logs import PaymentLog
from x402_gig.payments.checkout import STILL_SETTLING
from x402_gig.payments.outcome import Outcome, Rejected, Unknown
from x402_gig.settlement.work import Work

log = logging.getLogger(__name__)

NONCE_USED = Rejected(
    "invalid_exact_evm_nonce_already_used", "The authorization was cancelled or used for something else: sign a new one"
)


class Claims:
    """Gives a deposit that came without its order to the order that turns up later."""

    def __init__(self, node: Node, ledger: Ledger, shop: Shop, watcher: Watcher, work: Work) -> None:
        self._node = node
        self._ledger = ledger
        self._shop = shop
        self._watcher = watcher
        self._work = work

    async def claim(self, wanted: Reservation, seen_in_block: int) -> Outcome:
        """Settled when the deposit is there, Rejected when the nonce went to something else, else Unknown.

        Nothing is known before the ledger has read the block in which the nonce was seen used. That block may have
        been replaced since, so the block that was read last is asked again, by its hash.
        """
        try:
            await self._watcher.passed(seen_in_block)
            doubts, read_to = self._watcher.doubts, self._watcher.read_to
            is_used = await self._node.is_used(wanted.payment.authorization, read_to)
            evidence = Evidence(is_used, doubts)
            outcome = await self._ledger.write_surely(lambda c: decide(c, self._shop, wanted, evidence))
        except Unavailable:
            # The nonce is used, and perhaps for this.
            return Unknown(STILL_SETTLING)
        if not isinstance(outcome, Rejected):
            self._work.funding_due()
        return outcome


class Evidence(Struct, frozen=True):
    """The nonce's state in the block that was read last, when the ledger had so many `doubts`."""

    is_used: bool
    doubts: int


def decide(connection: Connection, shop: Shop, wanted: Reservation, evidence: Evidence) -> Outcome:
    """What becomes of a payment whose nonce is used; written down with it."""
    key = wanted.key
    known = payments.find(connection, key)
    if known is not None:
        known.check_terms(wanted.order)
        if known.outcome is not None:
            return known.outcome
    deposit = deposits.find(connection, key.asset, key.payer, key.nonce)
    if deposit is not None and deposit["refund_id"] is not None:
        return _refunded(deposit["value"], deposit["transaction"])
    if deposit is None or deposit["value"] != wanted.payment.authorization.value:
        if not evidence.is_used or chain_state.doubts(connection) != evidence.doubts:
            return Unknown(STILL_SETTLING)  # undone, perhaps, and not read again yet
        return NONCE_USED if known is None else _close(connection, known.payment_id)
    reservations.write_down(connection, [wanted])
    settled = deposits.settle(connection, shop, [key.nonce])
    mine = payments.find(connection, key)
    if mine is None or mine.payment_id not in settled:
        # It was not written down for want of a gig, or its deposit is another's.
        return Unknown(STILL_SETTLING)
    PaymentLog(log, mine.payment_id).info("claims the deposit in %s", deposit["transaction"])
    return settled[mine.payment_id]


def _refunded(value: int, transaction: str) -> Rejected:
    detail = (
        f"Nobody ordered with this payment in time: its {to_tokens(value)} USDC ({transaction}) go back to the payer"
    )
    return Rejected("invalid_exact_evm_nonce_already_used", f"{detail}. Sign a new one")


def _close(connection: Connection, payment_id: int) -> Rejected:
    payments.reject(connection, payment_id, NONCE_USED)
    return NONCE_USED
