"""A crowd shares transactions where blocks take long."""

import asyncio
import time
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.ledger.examples import reservation
from x402_gig.facilitators.local import BLOCK_S, GATHERING, MANY, NO_MORE_COME, Item, LocalFacilitator
from x402_gig.facilitators.simulation import Lane
from x402_gig.settlement.work import Work


def gathers(waiting: int, *, block_s: float, oldest_s: float = 0.0, newest_s: float = 0.0) -> bool:
    """With so many payments in the queue, the first and the last of which came so long ago."""

    async def ask() -> bool:
        anything: Any = None
        head: Any = SimpleNamespace(inclusion_s=block_s)
        facilitator = LocalFacilitator(anything, anything, anything, anything, Work(), head, anything)
        now = time.monotonic()
        for number in range(waiting):
            wanted = reservation(number + 1)
            future = asyncio.get_running_loop().create_future()
            item = Item(wanted.key, wanted.payment, wanted.order, Lane.PLAIN, future)
            item.queued_at = now - (newest_s if number == waiting - 1 else oldest_s)
            facilitator._queues[Lane.PLAIN].append(item)
        return facilitator.gathers()

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("waiting", "block_s", "expected"),
    [
        pytest.param(1, 2.0, False, id="one payment never waits"),
        pytest.param(MANY - 1, 2.0, False, id="nor do a few"),
        pytest.param(MANY, 0.1, False, id="blocks are quick"),
        pytest.param(MANY, 2.0, True, id="a crowd and slow blocks"),
        pytest.param(200, 2.0, False, id="they fill a transaction"),
    ],
)
def test_a_crowd_waits_for_more_where_blocks_are_slow_and_nobody_else_does(
    waiting: int, block_s: float, expected: bool
) -> None:
    assert gathers(waiting, block_s=block_s) is expected


def test_it_ends_when_no_more_come() -> None:
    assert gathers(MANY, block_s=2.0, oldest_s=0.5, newest_s=2 * NO_MORE_COME - 0.1)
    assert not gathers(MANY, block_s=2.0, oldest_s=0.5, newest_s=2 * NO_MORE_COME)


def test_it_ends_while_more_and_more_come() -> None:
    assert gathers(MANY, block_s=2.0, oldest_s=2 * GATHERING - 0.1)
    assert not gathers(MANY, block_s=2.0, oldest_s=2 * GATHERING)


def test_a_transaction_that_was_stuck_makes_nobody_wait_longer() -> None:
    assert not gathers(MANY, block_s=600.0, oldest_s=BLOCK_S * GATHERING)
