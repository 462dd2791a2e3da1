"""A receipt may be written down after its block was replaced and the new one read; and how often blocks are read."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.ledger.examples import ASSET, SHOP, reservation, reserved, transfer, word
from tests.unit.payments.examples import INTAKE
from x402_gig.chainsync.clock import ChainClock
from x402_gig.chainsync.head import Head
from x402_gig.chainsync.watcher import Watcher
from x402_gig.errors import ChainUnavailable
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block
from x402_gig.ledger import chain_state, payments
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.engine import Ledger
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.work import Work

HEIGHT = transfer(1).block_number


class OneBlockAfterTheOther:
    """A chain in which the block of the deposit is `block_hash`, and holds nothing of ours."""

    def __init__(self, block_hash: str) -> None:
        self._hashes = {HEIGHT - 1: word(1), HEIGHT: block_hash, HEIGHT + 1: word(3)}

    async def head(self) -> Block:
        return await self.block(HEIGHT + 1)

    async def block(self, number: int) -> Block:
        return Block(number, self._hashes[number], self._hashes.get(number - 1, word(0)), 0, 7, 30_000_000)

    async def history(self, first: int, last: int, account: str) -> list[TokenTransfer]:
        return []

    async def balance_of(self, account: str, block: Block) -> int:
        return -1  # so that the blocks are read one by one

    async def transfers(self, block: Block, account: str) -> list[TokenTransfer]:
        return []


@pytest.mark.parametrize(
    ("block_hash", "outcome"), [(transfer(1).block_hash, "settled"), (word(4242), "open")], ids=["same", "replaced"]
)
@pytest.mark.parametrize("is_late", [True, False])
def test_a_receipt_counts_while_its_block_is_part_of_the_chain(
    block_hash: str, outcome: str, is_late: bool, tmp_path: Path
) -> None:
    async def main() -> str:
        async with watching(OneBlockAfterTheOther(block_hash), tmp_path) as (watcher, _, ledger, settling):
            await ledger.write(lambda c: reserved(c, 1))
            if is_late:
                await watcher.catch_up()
            await settling.record([transfer(1)])
            await watcher.confirm(HEIGHT, transfer(1).block_hash)
            if not is_late:
                await watcher.catch_up()
            known = await ledger.read(lambda c: payments.find(c, reservation(1).key))
        assert known is not None
        return "settled" if known.outcome else "open"

    assert asyncio.run(main()) == outcome


class LeavesOut(OneBlockAfterTheOther):
    """Asked for the logs of several blocks, it forgets the deposit; asked for those of its block, it does not."""

    async def balance_of(self, account: str, block: Block) -> int:
        return transfer(1).value if block.number >= HEIGHT else 0

    async def transfers(self, block: Block, account: str) -> list[TokenTransfer]:
        return [transfer(1)] if block.number == HEIGHT else []


def test_a_deposit_that_the_node_leaves_out_is_missed_in_the_balance_and_read(tmp_path: Path) -> None:
    async def main() -> bool:
        async with watching(LeavesOut(transfer(1).block_hash), tmp_path) as (watcher, _, ledger, _):
            await ledger.write(lambda c: reserved(c, 1))
            await watcher.catch_up()
            known = await ledger.read(lambda c: payments.find(c, reservation(1).key))
        return known is not None and known.outcome is not None

    assert asyncio.run(main())


class AStreamOfBlocks:
    """A new block at each look; `looks` and `readings` are counted."""

    def __init__(self) -> None:
        self.looks = self.readings = 0
        self._looked = asyncio.Condition()

    async def head(self) -> Block:
        self.looks += 1
        async with self._looked:
            self._looked.notify_all()
        return await self.block(HEIGHT + 10 * self.looks)

    async def seen(self, condition: Callable[[], bool]) -> None:
        """Compared at each look."""
        async with asyncio.timeout(10), self._looked:
            await self._looked.wait_for(condition)

    async def block(self, number: int) -> Block:
        block_hash = word(number) if number >= HEIGHT else word(1)
        return Block(number, block_hash, word(number - 1), 0, 7, 30_000_000)

    async def history(self, first: int, last: int, account: str) -> list[TokenTransfer]:
        self.readings += 1
        return []

    async def balance_of(self, account: str, block: Block) -> int:
        return 0


def test_a_stream_of_blocks_is_read_now_and_then_and_at_once_when_somebody_waits(tmp_path: Path) -> None:
    async def main() -> None:
        chain = AStreamOfBlocks()
        async with watching(chain, tmp_path) as (watcher, head, *_):
            following = asyncio.create_task(watcher.run(0.001))
            await chain.seen(lambda: chain.looks > 20)
            assert chain.readings == 1
            await watcher.passed((await head.newest()).number)
            assert chain.readings == 2
            following.cancel()

    asyncio.run(main())


class ANodeThatIsBehind(AStreamOfBlocks):
    """It has no new blocks until it is told to; its logs cannot be had while `is_mute`, its blocks while `is_short`."""

    height, is_mute, is_short = HEIGHT + 10, False, False

    async def head(self) -> Block:
        await super().head()
        return await super().block(self.height)

    async def block(self, number: int) -> Block:
        return cast(Block, None) if self.is_short else await super().block(number)

    async def history(self, first: int, last: int, account: str) -> list[TokenTransfer]:
        if self.is_mute:
            raise ChainUnavailable("no logs")
        return await super().history(first, last, account)


def test_whoever_waits_for_a_block_that_the_node_does_not_have_yet_gets_it_as_soon_as_it_is_there(
    tmp_path: Path,
) -> None:
    async def main() -> None:
        chain = ANodeThatIsBehind()
        async with watching(chain, tmp_path) as (watcher, *_):
            await watcher.catch_up()
            following = asyncio.create_task(watcher.run(0.001))
            waiting = asyncio.create_task(watcher.passed(HEIGHT + 20))
            looks = chain.looks
            await chain.seen(lambda: chain.looks > looks + 5)
            chain.height, looks = HEIGHT + 20, chain.looks
            await waiting
            assert chain.looks < looks + 20
            following.cancel()

    asyncio.run(main())


def test_what_cannot_be_read_is_a_problem_until_it_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        chain = ANodeThatIsBehind()
        async with watching(chain, tmp_path) as (watcher, head, *_):
            await watcher.catch_up()
            following = asyncio.create_task(watcher.run(0.001))
            chain.is_mute, chain.height = True, HEIGHT + 20
            watcher.wake()
            await chain.seen(lambda: bool(watcher.problem))
            for _ in range(20):
                await head.look()
                await asyncio.sleep(0.002)
                assert watcher.problem
            chain.is_mute = False
            await chain.seen(lambda: not watcher.problem)
            assert chain.readings == 2
            following.cancel()

    asyncio.run(main())


def test_who_looks_at_the_newest_block_has_not_read_it(tmp_path: Path) -> None:
    async def main() -> None:
        chain = ANodeThatIsBehind()
        async with watching(chain, tmp_path) as (watcher, head, *_):
            await watcher.catch_up()
            chain.is_short, chain.height, before = True, HEIGHT + 11, watcher.up_to_date_at
            await head.look()
            await watcher.catch_up()
            assert watcher.up_to_date_at == before
            chain.is_short, chain.height = False, HEIGHT + 20
            await watcher.catch_up()
            assert watcher.up_to_date_at > before

    asyncio.run(main())


@asynccontextmanager
async def watching(chain: object, folder: Path) -> AsyncIterator[tuple[Watcher, Head, Ledger, Settling]]:
    """Everything up to the block before `HEIGHT` has been read."""
    ledger = Ledger(f"sqlite:///{folder}/ledger.db")
    start = Cursor(HEIGHT - 1, word(1))
    await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), start, 0))
    settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
    options: dict[str, Any] = {"intake": INTAKE.lower(), "confirmations": 1, "reorg_depth": 1, "pause_s": 2}
    head = Head(cast(Any, chain), ChainClock())
    yield Watcher(cast(Any, chain), head, ledger, settling, **options), head, ledger, settling
    ledger.close()
