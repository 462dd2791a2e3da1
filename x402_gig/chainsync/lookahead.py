"""Looks at the wallets of the next gigs ahead of their sale, so that none is given out that was used already.

A ledger that was restored from an old copy has forgotten gigs, and would give their wallets to others. Ids are given
out in order, so those below a used wallet belong to forgotten gigs as well: they are skipped together.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from x402_gig.errors import ChainRefused, GigError, Unavailable
from x402_gig.evm.node import Block, Node
from x402_gig.evm.used_wallets import MAX_ASKED, Trace
from x402_gig.evm.wallets import MAX_GIG_ID, Wallets
from x402_gig.ledger import chain_state, gig_ids
from x402_gig.ledger.engine import Ledger
from x402_gig.logs import Trouble

log = logging.getLogger(__name__)

# Before anything is sold, and every ten seconds: a creator may fund a forgotten gig at any time.
NEAR = 100
AGAIN_S = 10
# While it sells: five seconds of sales as fast as they come, looked at again when half of them are gone.
FAR = 2000
ENOUGH = FAR // 2
PAUSE_S = 0.5
# Of blocks asked for logs at once; halved when the node finds it too much.
RANGE = 5_000


@dataclass
class LookAhead:
    """`problem`: what the operator should know; empty when all is well."""

    ledger: Ledger
    node: Node
    wallets: Wallets
    reorg_depth: int
    problem: str = field(default="", init=False)
    # A wallet that was used and looks unused by its state was paid in this block or later.
    _since: int = field(default=0, init=False)
    _skipped: list[str] = field(default_factory=list, init=False)

    async def begin(self) -> None:
        """Before the first sale: what was looked at before the ledger was copied does not count. Raises Unavailable."""
        cursor = await self.ledger.read(chain_state.cursor)
        self._since = max(0, cursor.number - self.reorg_depth)
        await self._look(NEAR, anew=True)

    async def run(self) -> None:
        """Keep ahead of the sale until cancelled."""
        trouble, size = Trouble(log, "wallets"), FAR
        while True:
            try:
                head = await self._look(size)
                self._since = max(0, head.number - self.reorg_depth)
                self._report()
                size = await self._next_size()
            except GigError as exc:
                self._report(f"the wallets of the next gigs cannot be looked at: {exc.detail}")
                await asyncio.sleep(PAUSE_S)
            trouble.is_now(self.problem)

    async def _next_size(self) -> int:
        """How far to look next, when it is time for that."""
        for _ in range(int(AGAIN_S / PAUSE_S)):
            await asyncio.sleep(PAUSE_S)
            if await self.ledger.read(gig_ids.room) < ENOUGH:
                return FAR
        return NEAR

    def _report(self, *problems: str) -> None:
        self.problem = "; ".join([*problems, *self._skipped])

    async def _look(self, size: int, *, anew: bool = False) -> Block:
        """Look so far beyond the ids that are reserved, and on until none was used. The block that was looked at."""
        while True:
            head, ids = await self.node.head(), await self.ledger.read(gig_ids.standing)
            wanted = range(ids.next, min(ids.next + ids.reserved + size, MAX_GIG_ID + 1))
            used = await used_wallets(self.node, self.wallets, wanted, head, self._since)
            last = max(used, default=0)
            skip = await self.ledger.write(
                partial(gig_ids.note_looked, last=wanted[-1], skipped_to=last, wallet=used.get(last, ""), anew=anew)
            )
            if skip is None:
                return head
            log.critical("%s: an old backup?", skip)
            self._skipped.append(str(skip))
            self._report()


async def used_wallets(node: Node, wallets: Wallets, ids: Sequence[int], head: Block, since: int) -> dict[int, str]:
    """Those of these gigs' wallets that were used, by id. `since`: where to begin looking for transfers of any token.

    Used is: it sent a transaction, holds USDC or gas money, its reward or its fee was paid, or any token came to it.
    """
    found: dict[int, str] = {}
    for start in range(0, len(ids), MAX_ASKED):
        asked = {gig_id: _trace(wallets, gig_id) for gig_id in ids[start : start + MAX_ASKED]}
        answers = await node.used_wallets(wallets.intake.address, list(asked.values()), head)
        paid = await _paid(node, [trace.wallet for trace in asked.values()], since, head.number)
        for (gig_id, trace), is_used in zip(asked.items(), answers, strict=True):
            if is_used or trace.wallet in paid:
                found[gig_id] = trace.wallet
    return found


def _trace(wallets: Wallets, gig_id: int) -> Trace:
    return Trace(wallets.gig_address(gig_id), wallets.reward_nonce(gig_id), wallets.fee_nonce(gig_id))


async def _paid(node: Node, accounts: Sequence[str], first: int, last: int) -> set[str]:
    """Raises Unavailable."""
    found: set[str] = set()
    size = RANGE
    while first <= last:
        end = min(first + size - 1, last)
        try:
            found |= await node.paid_accounts(accounts, first, end)
            first = end + 1
        except ChainRefused as refused:
            if size == 1:
                raise Unavailable(refused.detail) from refused
            size = max(1, size // 2)
    return found
