"""How often the chain is asked for its newest block."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, cast

import pytest

from tests.unit.ledger.examples import word
from x402_gig.chainsync import head as head_module
from x402_gig.chainsync.clock import ChainClock
from x402_gig.chainsync.head import Head
from x402_gig.evm.node import Block


@dataclass
class Stream:
    """A chain with ten new blocks at each look, or at every so many."""

    every: int = 1
    looks: int = 0

    async def head(self) -> Block:
        self.looks += 1
        return await self.block(10 * (self.looks // self.every))

    async def block(self, number: int) -> Block:
        return Block(number, word(number), word(number - 1), 0, 7, 30_000_000)


def stream(every: int = 1) -> tuple[Stream, Head]:
    chain = Stream(every)
    return chain, Head(cast(Any, chain), ChainClock())


def test_one_look_serves_everybody() -> None:
    async def main() -> None:
        chain, head = stream()
        newest = await head.look()
        assert await head.has(newest.number, newest.hash, is_urgent=True)
        assert await head.has(newest.number - 1, newest.parent_hash, is_urgent=True)
        assert not await head.has(newest.number, word(4242), is_urgent=True)
        assert await head.has(newest.number - 5, word(newest.number - 5), is_urgent=True)
        assert chain.looks == 1
        higher = asyncio.create_task(head.has(newest.number + 2, word(newest.number + 2), is_urgent=False))
        await asyncio.sleep(0)
        assert chain.looks == 1
        await head.look()
        assert await higher

    asyncio.run(main())


def test_a_buyer_s_block_is_looked_for_until_it_is_there() -> None:
    async def main() -> None:
        chain, head = stream(every=4)
        assert await head.has(10, word(10), is_urgent=True)
        assert chain.looks == 4

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 1


def test_a_slow_node_is_not_looked_at_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_module, "SEALED_WITHIN_S", 0.1)

    async def main() -> None:
        chain, head = stream(every=1000)
        assert not await head.has(10, word(10), is_urgent=True)
        assert chain.looks < 6

    asyncio.run(main())


def test_the_next_block_is_waited_for_at_most_so_long() -> None:
    async def main() -> None:
        chain, head = stream(every=3)
        await head.next(1)
        assert chain.looks == 3
        await head.next(0.1)
        assert chain.looks == 3

    asyncio.run(main())
