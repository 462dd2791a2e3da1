"""All that came to the intake and left it, from the chain's logs alone, and whether that is all."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from x402_gig.errors import ChainRefused, Unavailable
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Node

T = TypeVar("T")

LARGEST_RANGE = 5000
PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6, 2, 2, 2, 2, 2, 2, 2)


@dataclass
class History:
    """What moved after block `begin`, up to block `last`. `progress` is told how many blocks were read.

    `singly`: the blocks that were read one by one.
    """

    node: Node
    intake: str
    begin: int
    progress: Callable[[int], None] = lambda _: None
    last: int = field(default=0, init=False)
    singly: set[int] = field(default_factory=set, init=False)
    _blocks: dict[int, list[TokenTransfer]] = field(default_factory=lambda: defaultdict(list), init=False)
    _balances: dict[int, int | None] = field(default_factory=dict, init=False)
    _size: int = field(default=LARGEST_RANGE, init=False)

    def __post_init__(self) -> None:
        self.last = self.begin

    @property
    def received(self) -> list[TokenTransfer]:
        return [t for t in self._transfers() if t.payee == self.intake != t.payer]

    @property
    def sent(self) -> list[TokenTransfer]:
        return [t for t in self._transfers() if t.payer == self.intake]

    def _transfers(self) -> Iterator[TokenTransfer]:
        return (transfer for transfers in self._blocks.values() for transfer in transfers)

    async def read_to(self, last: int) -> None:
        """Read on, as many blocks at a time as the node gives. Raises Unavailable."""
        while self.last < last:
            end, found = await self._read_range(self.last + 1, last)
            for transfer in found:
                self._blocks[transfer.block_number].append(transfer)
            self.progress(end - self.last)
            self.last = end
            self._size = min(LARGEST_RANGE, self._size + self._size // 8 + 1)

    async def _read_range(self, first: int, last: int) -> tuple[int, list[TokenTransfer]]:
        """The first of these blocks: which is the last of them, and what moved in them."""
        pauses = iter(PAUSES_S)
        while True:
            end = min(first + self._size - 1, last)
            try:
                return end, await self.node.history(first, end, self.intake)
            except Unavailable as exc:
                # Too much at once, or too often: providers say it in many ways.
                if self._size == 1 or not isinstance(exc, ChainRefused):
                    await _pause(pauses, exc)
            self._size = max(1, self._size // 2)

    async def read_block(self, number: int) -> None:
        """Read one block again, by its hash: no node answers for one that it does not have. Raises Unavailable."""
        found = await insist(lambda: self._moved_in(number))
        # Authorizations of nothing are only in the ranges.
        self._blocks[number] = [*found, *(t for t in self._blocks[number] if not t.value)]
        self.singly.add(number)

    async def _moved_in(self, number: int) -> list[TokenTransfer]:
        return await self.node.transfers(await self.node.existing(number), self.intake)

    def forget_after(self, number: int) -> None:
        """What was read beyond this block may have been reorganised since."""
        self.last = max(self.begin, min(self.last, number))
        self._blocks = defaultdict(list, {n: found for n, found in self._blocks.items() if n <= self.last})
        self._balances = {n: held for n, held in self._balances.items() if n <= self.last}
        self.singly = {n for n in self.singly if n <= self.last}

    async def balance(self) -> int:
        """What the intake holds in the last block that was read. Raises Unavailable."""
        return await insist(lambda: self._balance_in(self.last))

    async def _balance_in(self, number: int) -> int:
        return await self.node.balance_of(self.intake, await self.node.existing(number))

    async def doubtful(self) -> list[int]:
        """The blocks in which the balance moved otherwise than the logs say; all, where the node kept no balances."""
        return await self._doubtful(self.begin, self.last)

    async def _doubtful(self, before: int, last: int) -> list[int]:
        held, holds = await self.balance_at(before), await self.balance_at(last)
        if held is not None and holds is not None and holds - held == self._net(before, last):
            return []
        if last - before <= 1:
            return [last]
        middle = (before + last) // 2
        return [*await self._doubtful(before, middle), *await self._doubtful(middle, last)]

    async def balance_at(self, number: int) -> int | None:
        """None where the node has none: only archives keep those of old blocks, and there may be no token yet."""
        if number not in self._balances:
            try:
                self._balances[number] = await self._balance_in(number)
            except Unavailable:
                self._balances[number] = None
        return self._balances[number]

    def _net(self, before: int, last: int) -> int:
        moved = [t for t in self._transfers() if before < t.block_number <= last]
        return sum(t.value * ((t.payee == self.intake) - (t.payer == self.intake)) for t in moved)


async def in_ranges(ask: Callable[[int, int], Awaitable[list[T]]], first: int, last: int) -> list[T]:
    """What is found in these blocks, both ends included; fewer at a time where the node finds it too much.

    Raises Unavailable.
    """
    found, size = list[T](), LARGEST_RANGE
    while first <= last:
        end = min(first + size - 1, last)
        try:
            found += await insist(partial(ask, first, end))
        except ChainRefused:
            if size == 1:
                raise
            size = max(1, size // 2)
        else:
            first = end + 1
    return found


async def insist(question: Callable[[], Awaitable[T]]) -> T:
    """Ask until there is an answer: behind a balancer, the next node may have it. Raises Unavailable in the end."""
    pauses = iter(PAUSES_S)
    while True:
        try:
            return await question()
        except Unavailable as exc:
            await _pause(pauses, exc)


async def _pause(pauses: Iterator[float], failure: Unavailable) -> None:
    if (pause_s := next(pauses, None)) is None:
        raise failure
    await asyncio.sleep(pause_s)
