"""Follows the chain block by block: deposits whoever sent them, our own movements, and the head."""

import asyncio
import contextlib
import logging
import time

from x402_gig.chain.node import Block, Node
from x402_gig.errors import ChainUnavailable, GigError
from x402_gig.settlement.settling import Settling
from x402_gig.store import binding
from x402_gig.store.binding import Cursor
from x402_gig.store.engine import Ledger

log = logging.getLogger(__name__)

REREAD_DEPTH = 64
PERSIST_EVERY = 50
RANGE = 500


class Watcher:
    """Reads every block up to `confirmations` deep once; `cursor` is the last one read."""

    def __init__(self, node: Node, ledger: Ledger, settling: Settling, *, intake: str, confirmations: int) -> None:
        self._node = node
        self._ledger = ledger
        self._settling = settling
        self._intake = intake
        self._behind = confirmations - 1
        self._cursor: Block | None = None
        self._moved = asyncio.Condition()
        self._woken = asyncio.Event()
        self._head: Block | None = None
        self.seen_at = 0.0
        self.problem = ""

    async def newest(self) -> Block:
        """The newest block seen; asked for where none was. Raises ChainUnavailable."""
        return self._head or await self._node.head()

    @property
    def cursor(self) -> Block:
        """Every deposit up to this block is in the ledger."""
        if self._cursor is None:
            raise RuntimeError("the watcher has not caught up yet")
        return self._cursor

    async def run(self, interval_s: float) -> None:
        """Follow the chain until cancelled."""
        while True:
            self._woken.clear()
            try:
                await self.catch_up()
            except GigError as exc:
                self._report(exc.detail)
            else:
                self._report("")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), interval_s)

    def _report(self, problem: str) -> None:
        """Log a problem when it begins and when it is over, not twice a second."""
        if problem and not self.problem:
            log.warning("watcher: %s", problem)
        elif self.problem and not problem:
            log.warning("watcher: the chain can be read again")
        self.problem = problem

    def wake(self) -> None:
        """Look again now: there may be something new."""
        self._woken.set()

    async def catch_up(self) -> None:
        """Read all confirmed blocks that are not read yet. Raises ChainUnavailable or ChainRefused."""
        head = await self._node.head()
        if self._cursor is None:
            self._cursor = await self._resume()
        start = self._cursor.number
        while self._cursor.number < head.number - self._behind - RANGE:
            await self._read_range(self._cursor.number + 1)
        while self._cursor.number < head.number - self._behind:
            block = await self._node.block(self._cursor.number + 1)
            if block is None:  # a node behind the one that told us the head
                break
            if block.parent_hash != self._cursor.hash:
                self._cursor = await self._before(self._cursor.number)
                continue
            await self._read(block)
        if self._cursor.number != start:
            await self._persist(self._cursor)
        self._head = head
        self.seen_at = time.monotonic()
        async with self._moved:
            self._moved.notify_all()

    async def _resume(self) -> Block:
        stored = await self._ledger.read(binding.cursor)
        block = await self._node.block(stored.number)
        return block if block is not None and block.hash == stored.hash else await self._before(stored.number)

    async def _before(self, number: int) -> Block:
        """A block safely below a reorganisation at `number`; what is read again changes nothing."""
        log.warning("watcher: block %d was replaced, reading again from %d blocks below", number, REREAD_DEPTH)
        return await self._existing(max(0, number - REREAD_DEPTH))

    async def _read_range(self, first: int) -> None:
        """Catch up after a long absence: blocks so old that they are not replaced any more, many at a time."""
        last = await self._existing(first + RANGE - REREAD_DEPTH)
        for number in await self._node.busy_blocks(first, last.number, self._intake):
            await self._read(await self._existing(number))
        self._cursor = last
        await self._persist(last)

    async def _existing(self, number: int) -> Block:
        block = await self._node.block(number)
        if block is None:
            raise ChainUnavailable(f"the chain node has no block {number}")
        return block

    async def _read(self, block: Block) -> None:
        transfers = await self._node.transfers(block, self._intake)
        if transfers:
            await self._settling.record(transfers)
        self._cursor = block
        if block.number % PERSIST_EVERY == 0:
            await self._persist(block)

    async def _persist(self, block: Block) -> None:
        await self._ledger.write(lambda c: binding.move_cursor(c, Cursor(block.number, block.hash)))

    async def passed(self, block_number: int) -> None:
        """Wait until every deposit up to this block is in the ledger."""
        async with self._moved:
            await self._moved.wait_for(lambda: self.cursor.number >= block_number)
