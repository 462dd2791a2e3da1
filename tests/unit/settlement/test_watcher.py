"""A receipt may be written down after its block was replaced and the new one read."""

import asyncio
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.payments.examples import INTAKE
from tests.unit.store.examples import ASSET, SHOP, reservation, reserved, transfer, word
from x402_gig.chain.eip3009 import TokenTransfer
from x402_gig.chain.node import Block
from x402_gig.settlement.clock import ChainClock
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.watcher import Watcher
from x402_gig.store import binding, payments
from x402_gig.store.binding import Binding, Cursor
from x402_gig.store.engine import Ledger

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
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        start = Cursor(HEIGHT - 1, word(1))
        await ledger.write(lambda c: binding.bind(c, Binding(8453, word(9), INTAKE.lower()), start, 0))
        await ledger.write(lambda c: reserved(c, 1))
        settling = Settling(ledger, SHOP, intake=INTAKE.lower(), asset=ASSET)
        node = cast(Any, OneBlockAfterTheOther(block_hash))
        depths = {"confirmations": 1, "reorg_depth": 1}
        watcher = Watcher(node, ledger, settling, ChainClock(), intake=INTAKE.lower(), **depths)
        if is_late:
            await watcher.catch_up()
        await settling.record([transfer(1)])
        await watcher.confirm(HEIGHT, transfer(1).block_hash)
        if not is_late:
            await watcher.catch_up()
        known = await ledger.read(lambda c: payments.find(c, reservation(1).key))
        ledger.close()
        assert known is not None
        return "settled" if known.outcome else "open"

    assert asyncio.run(main()) == outcome
