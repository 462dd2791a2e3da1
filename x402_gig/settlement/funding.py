"""Moves deposits on: rewards to the gigs' wallets, commissions to the operator, in the background.

A funding transaction names a block it relies on and the batcher refuses it on any other chain, so a deposit that a
reorganisation drops cannot be paid on out of its neighbours'.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from x402_gig.chain import batcher, eip3009
from x402_gig.chain.node import Block, Node
from x402_gig.chain.wallets import Wallets
from x402_gig.payments.payment import Authorization
from x402_gig.settlement.relayer import Batch, Relayer
from x402_gig.store import binding, deposits, funding
from x402_gig.store.engine import Connection, Ledger
from x402_gig.store.funding import Movement

log = logging.getLogger(__name__)

LIFETIME_S = 600
PATIENCE_S = 10
BACKOFF_S = 30
MAX_REWARDS = 120


@dataclass
class Funding:
    """One batch at a time. `problem` says why nothing moves; empty when all is well."""

    ledger: Ledger
    node: Node
    wallets: Wallets
    commission_address: str
    problem: str = ""
    _due_since: float | None = field(default=0.0, init=False)
    _busy: bool = field(default=False, init=False)
    _not_before: float = field(default=0.0, init=False)

    def due(self) -> None:
        """There may be money to move."""
        if self._due_since is None:
            self._due_since = time.monotonic()

    def is_wanted(self, deposits_wait: bool) -> bool:
        """Deposits go first, but for ten seconds only."""
        now = time.monotonic()
        if self._busy or self._due_since is None or now < self._not_before:
            return False
        return not deposits_wait or now - self._due_since > PATIENCE_S

    async def run(self, relayer: Relayer) -> None:
        """Send one funding batch; `problem` and a pause when the chain refuses it."""
        self._busy = True
        # Work that comes up from here on makes it due again; what does not fit this batch has waited since then.
        waiting_since, self._due_since = self._due_since, None
        try:
            problem = await self._send_batch(relayer, waiting_since)
        except BaseException:
            self.due()
            raise
        finally:
            self._busy = False
        if problem:
            self.due()
            self._not_before = time.monotonic() + BACKOFF_S
            log.error("funding: %s", problem)
        self.problem = problem

    async def _send_batch(self, relayer: Relayer, waiting_since: float | None) -> str:
        if halt := await self.ledger.read(binding.funding_halt):
            return halt
        anchor = await self.node.head()
        balance = await self.node.balance_of(self.wallets.intake.address, hex(anchor.number))
        sent: list[Movement] = []
        slot = await relayer.write_down("funding", lambda c: self._plan(c, anchor, balance, sent))
        if slot is None:
            return await self._idle(anchor, balance)
        receipt = await relayer.finish(slot)
        if receipt is not None and relayer.confirmations > 1:
            # Its transfers are written down when they are deep enough, and are not to be signed again before.
            await relayer.watcher.passed(receipt.block_number)
        if len(sent) >= MAX_REWARDS:
            self._due_since = waiting_since
        self.due()
        if receipt is None or receipt.success:
            left = await self.ledger.read(lambda c: funding.still_due(c, sent))
            return f"{left} of {len(sent)} transfers failed in {receipt.transaction}" if left and receipt else ""
        return "" if await self._was_reorganised(anchor) else f"transaction {receipt.transaction} reverted"

    async def _was_reorganised(self, anchor: Block) -> bool:
        now = await self.node.block(anchor.number)
        return now is None or now.hash != anchor.hash

    async def _idle(self, anchor: Block, balance: int) -> str:
        """Nothing was sent: because nothing is due, or because the intake does not hold what it should."""
        expected = await self.ledger.read(lambda c: deposits.expected_balance(c, anchor.number))
        if balance < expected:
            return f"the intake holds {balance} base units and should hold {expected}"
        return ""

    def _plan(self, connection: Connection, anchor: Block, balance: int, sent: list[Movement]) -> Batch | None:
        if deposits.newest_block(connection) > anchor.number:
            self.due()  # a node behind the one that told us of the deposit
            return None
        if balance < deposits.expected_balance(connection, anchor.number):
            return None
        funding.write_commission(connection, self.commission_address, self.wallets.commission_nonce)
        sent += funding.due(connection, "reward", MAX_REWARDS) + funding.due(connection, "commission", 1)
        if not sent:
            return None
        valid_before = int(time.time()) + LIFETIME_S
        data = self._calldata(anchor, sent, valid_before)
        gas = batcher.batch_gas(data, batcher.PLAIN_CALL_GAS, len(sent))
        return Batch(data, gas, movements=sent, valid_before=valid_before)

    def _calldata(self, anchor: Block, moves: Sequence[Movement], valid_before: int) -> bytes:
        calls = [self._signed_call(move, valid_before) for move in moves]
        token = self.node.token.address
        return batcher.execute_on_data(anchor.number, anchor.hash, token, batcher.PLAIN_CALL_GAS, calls)

    def _signed_call(self, move: Movement, valid_before: int) -> bytes:
        intake = self.wallets.intake
        authorization = Authorization(intake.address, move.payee, move.value, 0, valid_before, move.nonce)
        signature = self.node.token.sign(authorization, intake.key)
        return eip3009.transfer_call(authorization, signature, ecdsa=True)
