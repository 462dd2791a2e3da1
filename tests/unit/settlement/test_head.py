"""How often the chain is asked for its newest block."""

import asyncio
from typing import Any, cast

from tests.unit.store.examples import word
from x402_gig.chain.node import Block
from x402_gig.settlement.clock import ChainClock
from x402_gig.settlement.head import Head


class Stream:
    """A chain with ten new blocks at each look."""

    looks = 0

    async def head(self) -> Block:
        self.looks += 1
        return await self.block(10 * self.looks)

    async def block(self, number: int) -> Block:
        return Block(number, word(number), word(number - 1), 0, 7, 30_000_000)


def test_one_look_serves_everybody() -> None:
    async def main() -> None:
        chain = Stream()
        head = Head(cast(Any, chain), ChainClock())
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
