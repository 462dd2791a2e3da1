"""When what nobody waits for ends: payments at their last second, deposits without an order two hours later."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from tests.unit.payments.examples import INTAKE, NOW, PRICE
from tests.unit.store.examples import ASSET, SHOP, reserved, transfer, word
from x402_gig.chain.batcher import Call, Result
from x402_gig.chain.eip3009 import Token
from x402_gig.chain.node import Block
from x402_gig.chain.wallets import Wallets
from x402_gig.metrics import Metrics
from x402_gig.settlement.reconciler import Reconciler
from x402_gig.settlement.settling import Settling
from x402_gig.store import deposits, tables
from x402_gig.store.engine import Ledger

WALLETS = Wallets("test test test test test test test test test test test junk")
VALID_BEFORE = NOW + 60
DEPTH, TWO_HOURS = 64, 7200


class Unused:
    """A chain on which no authorization was executed; `asked_of` is the block of the last question."""

    token = Token(ASSET, "USD Coin", "2", 8453)
    asked_of: Block | None = None

    async def simulate(self, calls: Sequence[Call], block: Block | None = None) -> tuple[int, list[Result]]:
        self.asked_of = block
        return 0, [Result(True, True, 0, bytes(32)) for _ in calls]


def block(number: int, timestamp: int) -> Block:
    return Block(number, word(number), word(number - 1), timestamp, 7, 30_000_000)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


def reconciler(ledger: Ledger, cursor: Block, now_s: int = NOW) -> Reconciler:
    """One that has read everything up to `cursor`."""
    settling = Settling(ledger, SHOP, intake=INTAKE.lower(), asset=ASSET)
    watcher: Any = SimpleNamespace(cursor=cursor, doubts=0)
    node: Any = Unused()
    nothing: Any = None
    return Reconciler(
        node, ledger, settling, watcher, nothing, WALLETS.refund_nonce, lambda: None, lambda: now_s, DEPTH, PRICE,
        Metrics(), nothing,
    )  # fmt: skip


def states(ledger: Ledger, table: Any) -> list[str]:
    return list(asyncio.run(ledger.read(lambda c: c.execute(select(table.c.state)).scalars().all())))


@pytest.mark.parametrize(("timestamp", "state"), [(VALID_BEFORE - 1, "open"), (VALID_BEFORE, "rejected")])
def test_a_payment_is_rejected_when_a_block_is_there_that_cannot_have_it(
    ledger: Ledger, timestamp: int, state: str
) -> None:
    asyncio.run(ledger.write(lambda c: reserved(c, 1)))
    cursor = block(7, timestamp)
    it = reconciler(ledger, cursor)

    asyncio.run(it.reconcile())

    assert states(ledger, tables.payments) == [state]
    # Of a later block nobody has read yet whether the deposit is in it.
    assert isinstance(it.node, Unused)
    assert it.node.asked_of == cursor


@pytest.mark.parametrize(
    ("blocks", "seconds", "refunds"),
    [
        pytest.param(DEPTH, TWO_HOURS, ["due"], id="final and old"),
        pytest.param(DEPTH - 1, TWO_HOURS, [], id="a reorganisation may take it away"),
        pytest.param(DEPTH, TWO_HOURS - 1, [], id="its order may still come"),
    ],
)
def test_a_deposit_goes_back_when_it_is_final_and_no_order_can_come(
    ledger: Ledger, blocks: int, seconds: int, refunds: list[str]
) -> None:
    came = transfer(1)
    asyncio.run(ledger.write(lambda c: deposits.record(c, ASSET, [came], NOW)))
    it = reconciler(ledger, block(came.block_number + blocks, NOW), NOW + seconds)

    asyncio.run(it.refund())

    assert states(ledger, tables.movements) == refunds
