"""The newest block: one look at it serves everybody."""

import asyncio
import contextlib
import math
import time
from collections.abc import Iterable

from x402_gig.chainsync.clock import ChainClock
from x402_gig.evm.node import Block, Node

# Where many buy, somebody looks at the newest block more often than this.
OTHERS_LOOK_S = 0.15
# A block named by a pre-confirmation is there by then, or it never will be.
SEALED_WITHIN_S = 3
# Between two looks: a buyer waits for it, and a node may be a moment behind what it has said itself.
URGENT_S = (0.02, 0.05, 0.1, *[0.2] * 14)
PATIENT_S = (SEALED_WITHIN_S,)


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

        Looks at once and often when it `is_urgent`, else if nobody else does soon. Raises ChainUnavailable.
        """
        if not is_urgent:
            await self._reached(number, OTHERS_LOOK_S)
        newest = await self._sealed(number, URGENT_S if is_urgent else PATIENT_S)
        if newest.number < number:
            return False
        if (number, block_hash) in ((newest.number, newest.hash), (newest.number - 1, newest.parent_hash)):
            return True
        block = await self._node.block(number)
        return block is not None and block.hash == block_hash

    async def next(self, within_s: float) -> None:
        """Wait for a newer block than the newest seen, at most so long. Raises ChainUnavailable."""
        seen, until = await self.newest(), time.monotonic() + within_s
        pause_s = max(OTHERS_LOOK_S, within_s / 8)
        while (left_s := until - time.monotonic()) > 0 and (await self.newest(pause_s)).number <= seen.number:
            await self._reached(seen.number + 1, min(pause_s, left_s))

    async def _sealed(self, number: int, pauses: Iterable[float]) -> Block:
        """The newest block when it is this high, or after all pauses; whoever looks meanwhile looks for everybody."""
        newest, until = self._block, time.monotonic() + SEALED_WITHIN_S
        if newest is None or newest.number < number:
            newest = await self.look()
        for pause_s in pauses:
            if newest.number >= number or time.monotonic() > until:  # a look may take long
                break
            await self._reached(number, pause_s)
            newest = await self.newest(pause_s)
        return newest

    async def _reached(self, number: int, within_s: float) -> None:
        """Wait until a block is seen that is this high, at most so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s), self._looked:
                await self._looked.wait_for(lambda: self._block is not None and self._block.number >= number)
