"""Follows the chain block by block: deposits whoever sent them, our own movements, and the head."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Protocol

from x402_gig.chainsync.head import Head
from x402_gig.errors import ChainRefused, GigError
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block, Node
from x402_gig.ledger import chain_state, deposits
from x402_gig.ledger.chain_state import Cursor
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.logs import Trouble

log = logging.getLogger(__name__)

# The cursor is kept this often; what it has passed since is read again after a restart.
PERSIST_S = 2
PERSIST_EVERY = 50
# Five blocks of Base without reading up to where the ledger is.
BLIND_S = 10
RANGE = 500
# From here on, new blocks are read together.
SEVERAL = 2
LAST_BLOCK = 2**62


class Recorder(Protocol):
    """Writes down what blocks prove, and undoes what replaced blocks proved: `settlement.settling`."""

    async def record(self, transfers: Sequence[TokenTransfer]) -> object: ...

    async def forget(self, blocks: Sequence[Block]) -> int:
        """Undo every row recorded from a block that one of `blocks` has replaced; the new `ledger.doubts`."""


class Watcher:
    """Reads every block up to `confirmations` deep; `cursor` is the last one read.

    When a block it has read was replaced, or what it has read was undone by another server, which may have seen blocks
    of another chain, it reads again from `reorg_depth` blocks below. Where blocks come fast, new ones are read every
    `pause_s`, and at once when somebody waits for them.
    """

    def __init__(
        self,
        node: Node,
        head: Head,
        ledger: Ledger,
        recorder: Recorder,
        *,
        intake: str,
        confirmations: int,
        reorg_depth: int,
        pause_s: float,
    ) -> None:
        self._node = node
        self._head = head
        self._ledger = ledger
        self._recorder = recorder
        self._intake = intake
        self._behind = confirmations - 1
        self._pause_s = pause_s
        self._depth = reorg_depth
        self._cursor: Block | None = None
        # Of the ledger, when what is read had been read again for each of them.
        self.doubts = 0
        self._persisted, self._persisted_at = -1, 0.0
        self._read_at = 0.0
        self._moved = asyncio.Condition()
        self._woken = asyncio.Event()
        # Somebody waits until this block is read.
        self._wanted = 0
        # The head when blocks were read last, and up to where that was.
        self._read_head: Block | None = None
        self._read_to: Block | None = None
        # When blocks were read last, or there were none to read and the ledger knows of none above.
        self.up_to_date_at = 0.0
        self.problem: GigError | None = None

    @property
    def cursor(self) -> Block:
        """Every deposit up to this block is in the ledger."""
        if self._cursor is None:
            raise RuntimeError("the watcher has not caught up yet")
        return self._cursor

    @property
    def read_to(self) -> Block:
        """The ledger has what this block's chain has, and of other blocks up to its height nothing any more."""
        if self._read_to is None:
            raise RuntimeError("the watcher has not caught up yet")
        return self._read_to

    @property
    def is_blind(self) -> bool:
        """The node has not answered for a while, or does not know blocks that other servers have written down."""
        return time.monotonic() > self.up_to_date_at + BLIND_S

    async def run(self, interval_s: float) -> None:
        """Follow the chain until cancelled."""
        trouble = Trouble(log, "watcher")
        while True:
            is_wanted = self._woken.is_set()
            self._woken.clear()
            try:
                # Whoever else has looked meanwhile has looked for us too.
                head = await (self._head.look() if is_wanted else self._head.newest(interval_s))
                if is_wanted or self._is_due():
                    await self._read_up_to(head)
                self.problem = None
            except GigError as exc:
                self.problem = exc
            trouble.is_now(self.problem.detail if self.problem else "")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), interval_s)

    def _is_due(self) -> bool:
        is_waited_for = self._read_to is None or self._wanted > self._read_to.number
        return is_waited_for or bool(self.problem) or time.monotonic() >= self._read_at + self._pause_s

    def wake(self) -> None:
        """Look again now: there may be something new."""
        self._woken.set()

    async def catch_up(self) -> None:
        """Read all confirmed blocks that are not read yet, and write down that they are. Raises Unavailable."""
        await self._read_up_to(await self._head.look())
        if self.cursor.number != self._persisted:
            await self._persist(self.cursor)

    async def _read_up_to(self, head: Block) -> None:
        before = self._cursor
        doubts, newest = await self._ledger.read(lambda c: (chain_state.doubts(c), deposits.newest_block(c)))
        if newest > head.number:  # another server has seen it since; or our node is behind
            head = await self._head.look()
        if self._cursor is None:
            self._cursor = await self._resume()
            self.doubts = doubts
        elif doubts != self.doubts and newest <= head.number:  # a node that is behind would undo it once more
            self._cursor = await self._below(self._cursor.number)
            self.doubts = doubts
        elif await self._was_replaced(head):
            self._cursor = await self._before(self._cursor.number)
        last = head.number - self._behind
        await self._read_what_was_missed(last)
        if last - self._cursor.number >= SEVERAL:
            await self._read_together(head if last == head.number else await self._node.existing(last))
        await self._read_blocks(last)
        if self._cursor.number != self._persisted and time.monotonic() > self._persisted_at + PERSIST_S:
            await self._persist(self._cursor)
        self._read_head, self._read_to = head, self._cursor
        if has_moved := self._cursor != before:
            self._read_at = time.monotonic()
        if (has_moved or self._cursor.number >= last) and newest <= head.number:
            self.up_to_date_at = time.monotonic()
        async with self._moved:
            self._moved.notify_all()

    async def _resume(self) -> Block:
        stored = await self._ledger.read(chain_state.cursor)
        block = await self._node.block(stored.number)
        return block if block is not None and block.hash == stored.hash else await self._before(stored.number)

    async def _was_replaced(self, head: Block) -> bool:
        """Another head of the same height: without a next block, no parent hash tells."""
        known = self._read_head
        if known is None or head.number != known.number or head.hash == known.hash:
            return False
        block = await self._node.block(self.cursor.number)
        return block is not None and block.hash != self.cursor.hash

    async def _before(self, number: int) -> Block:
        """A block safely below a reorganisation at `number`."""
        log.warning("watcher: block %d was replaced, reading again from %d blocks below", number, self._depth)
        return await self._below(number)

    async def _below(self, number: int) -> Block:
        """From where to read again; what is read again changes nothing."""
        # What moved before the ledger began is in its first balance.
        first = max(await self._ledger.read(chain_state.start_number), number - self._depth)
        block = await self._node.existing(first)
        if self._read_to is not None:  # before anything is undone
            self._read_to = block
        await self._roll_back(first)
        return block

    async def _roll_back(self, first: int) -> None:
        """Forget at once what was replaced from `first` on, before anything new is sent: emptied slots come first."""
        known = await self._ledger.read(partial(deposits.known_blocks, first=first, last=LAST_BLOCK))
        now = [await self._node.block(height) for height in sorted(known)]
        await self._forget([block for block in now if block is not None])

    async def _forget(self, blocks: Sequence[Block]) -> None:
        before = self.doubts
        doubts = await self._recorder.forget(blocks)
        if doubts == before + 1:  # our own; another server's are not known here
            self.doubts = doubts

    async def _read_blocks(self, last: int) -> None:
        while self.cursor.number < last:
            block = await self._node.block(self.cursor.number + 1)
            if block is None:  # a node behind the one that told us the head
                break
            if block.parent_hash != self.cursor.hash:
                self._cursor = await self._before(self.cursor.number)
                continue
            await self._read(block)

    async def _read_what_was_missed(self, last: int) -> None:
        start = self.cursor
        if not await self._read_ranges(last):
            return
        await self._read_blocks(last)
        if not await self._adds_up(self.cursor):
            log.warning("watcher: the node left logs out, reading all blocks from %d one by one", start.number)
            self._cursor = start

    async def _read_ranges(self, last: int) -> bool:
        """Catch up after a long absence, many blocks at a time; False when there was none."""
        has_read, size = False, RANGE
        # Only blocks so old that they are not replaced any more.
        while self.cursor.number + size < last - self._depth:
            try:
                await self._read_range(size)
                has_read = True
            except ChainRefused:  # more blocks or logs than the node gives at once
                if size == 1:
                    raise
                size //= 2
        return has_read

    async def _read_range(self, size: int) -> None:
        first, end = self.cursor.number + 1, await self._node.existing(self.cursor.number + size)
        busy = await self._node.busy_blocks(first, end.number, self._intake)
        known = await self._ledger.read(partial(deposits.known_blocks, first=first, last=end.number))
        for number in sorted({*busy, *known}):
            await self._read(await self._node.existing(number))
        self._cursor = end
        await self._persist(end)

    async def _read_together(self, last: Block) -> None:
        """Read several new blocks, up to this one, for the calls that one takes; one by one where anything is odd.

        Odd is another block at the cursor, a block of ours that shows no transfers, a balance that is not the ledger's,
        and more blocks or logs than the node gives at once.
        """
        first = self.cursor.number + 1
        block = await self._node.block(self.cursor.number)
        if block is None or block.hash != self.cursor.hash:
            return
        try:
            transfers = [t for t in await self._node.history(first, last.number, self._intake) if t.value]
        except ChainRefused:
            return
        await self._record(transfers)
        # Asked again: Anvil tells of the newest block what it is about to mine.
        if not (await self._adds_up(last) or await self._adds_up(last)):
            return
        self._cursor = last
        # After the cursor has moved, as in `_read`.
        known = await self._ledger.read(partial(deposits.known_places, first=first, last=last.number))
        if known - {(t.block_number, t.block_hash) for t in transfers}:
            await self._roll_back(first)

    async def _record(self, transfers: Sequence[TokenTransfer]) -> None:
        """Most are our own, and written down by their receipts."""
        if new := await self._ledger.read(lambda c: deposits.unrecorded(c, transfers)):
            await self._recorder.record(new)

    async def _adds_up(self, block: Block) -> bool:
        """Does the intake hold what the ledger says? A node may answer for blocks that it does not have."""
        expected = await self._ledger.read(lambda c: deposits.expected_balance(c, block.number))
        return await self._node.balance_of(self._intake, block) == expected

    async def _read(self, block: Block) -> None:
        await self._record(await self._node.transfers(block, self._intake))
        self._cursor = block
        # Receipts tell of blocks that are not read yet, and those may be replaced as well. Looked for after the cursor
        # has moved: whoever writes a receipt down later than this finds it there, see `confirm`.
        if await self._ledger.read(lambda c: deposits.is_replaced(c, block.number, block.hash)):
            await self._roll_back(block.number)
        if block.number % PERSIST_EVERY == 0:
            await self._persist(block)

    async def confirm(self, number: int, block_hash: str) -> None:
        """A receipt of this block is in the ledger: undo it if the block was replaced, and its height read, meanwhile.

        Raises ChainUnavailable.
        """
        if self._cursor is not None and self._cursor.number >= number:
            block = await self._node.block(number)
            if block is not None and block.hash != block_hash:
                await self._forget([block])

    async def _persist(self, block: Block) -> None:
        def persist(connection: Connection) -> None:
            if chain_state.doubts(connection) != self.doubts:
                return
            chain_state.move_cursor(connection, Cursor(block.number, block.hash))
            deposits.count_from(connection, max(0, block.number - self._depth))

        await self._ledger.write(persist)
        self._persisted, self._persisted_at = block.number, time.monotonic()

    async def passed(self, block_number: int) -> None:
        """Wait until every deposit up to this block is in the ledger."""
        if self.read_to.number < block_number:
            self._wanted = max(self._wanted, block_number)
            self.wake()
        async with self._moved:
            await self._moved.wait_for(lambda: self.read_to.number >= block_number)
