"""The newest block: one look at it serves everybody."""

import asyncio
import contextlib
import math
import time

from x402_gig.chain.node import Block, Node
from x402_gig.settlement.clock import ChainClock

# Where many buy, somebody looks at the newest block more often than this.
OTHERS_LOOK_S = 0.15
# A block named by a pre-confirmation is there by then, or it never will be.
SEALED_WITHIN_S = 3


class Head:
    """What was seen of the end of the chain. Every look tells the clock."""

    def __init__(self, node: Node, clock: ChainClock) -> None:
        self._node = node
        self._clock = clock
        self._block: Block | None = None
        self._looked = asyncio.Condition()
        self._seen_at = 0.0
        # How long the last transaction of ours took to get into a block.
        self.inclusion_s = 0.0

    async def newest(self, max_age_s: float = math.inf) -> Block:
        """The newest block seen, if that is no longer ago; else asked for. Raises ChainUnavailable."""
        is_fresh = time.monotonic() < self._seen_at + max_age_s
        return self._block if self._block is not None and is_fresh else await self.look()

    async def look(self) -> Block:
        """The newest block, asked for now. Raises ChainUnavailable."""
        block = await self._node.head()
        self._clock.saw(block)
        self._block, self._seen_at = block, time.monotonic()
        async with self._looked:
            self._looked.notify_all()
        return block

    async def has(self, number: int, block_hash: str, *, is_urgent: bool) -> bool:
        """Is this block sealed and on the chain? One that is not there yet is waited for, for a while.

        Looks at once when it `is_urgent`, else if nobody else does soon. Raises ChainUnavailable.
        """
        if not is_urgent:
            await self._reached(number, OTHERS_LOOK_S)
        if self._block is None or self._block.number < number:
            await self.look()
        newest = await self._reached(number, SEALED_WITHIN_S)
        if newest is None:
            return False
        if (number, block_hash) in ((newest.number, newest.hash), (newest.number - 1, newest.parent_hash)):
            return True
        block = await self._node.block(number)
        return block is not None and block.hash == block_hash

    async def _reached(self, number: int, within_s: float) -> Block | None:
        """The newest block seen when it is this high; None if that takes too long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._looked:
                await self._looked.wait_for(lambda: self._block is not None and self._block.number >= number)
                return self._block
        return None
