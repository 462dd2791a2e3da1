"""What is taken for one transaction fits it: a node refuses one that asks for more gas, however often it is sent."""

import asyncio
import os
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.ledger.examples import reservation
from x402_gig.evm import batcher
from x402_gig.facilitators.local import BATCH_GAS, Item, LocalFacilitator
from x402_gig.facilitators.simulation import Lane, transfer_call
from x402_gig.settlement.work import Work

BLOCKS = [*range(1_000_000, 17_000_000, 500_000), batcher.MAX_TRANSACTION_GAS]


def taken(lane: Lane, max_gas: int, signature: bytes, valid_before: int) -> list[Item]:
    """Of a crowd that no transaction holds."""

    async def take() -> list[Item]:
        anything: Any = None
        facilitator = LocalFacilitator(anything, anything, anything, anything, Work(), anything, anything)
        for number in range(batcher.MAX_BATCH + 1):
            wanted = reservation(number + 1)
            authorization = replace(
                wanted.payment.authorization,
                payer="0x" + os.urandom(20).hex(),
                nonce="0x" + os.urandom(32).hex(),
                valid_before=valid_before,
            )
            payment = replace(wanted.payment, authorization=authorization, signature=signature)
            future = asyncio.get_running_loop().create_future()
            facilitator._queues[lane].append(Item(wanted.key, payment, wanted.order, lane, future, waiters=1))
        return facilitator._take(lane, max_gas - BATCH_GAS)

    return asyncio.run(take())


@pytest.mark.parametrize(("lane", "length"), [(Lane.PLAIN, 65), (Lane.CONTRACT, 65), (Lane.CONTRACT, 1_000)])
@pytest.mark.parametrize("valid_before", [2**32 - 1, 2**256 - 1])
def test_a_batch_fits_its_block(lane: Lane, length: int, valid_before: int) -> None:
    signature = os.urandom(length - 1) + b"\x1b"
    for max_gas in BLOCKS:
        calls = [transfer_call(item.payment, lane) for item in taken(lane, max_gas, signature, valid_before)]
        data = batcher.execute_data("0x" + "aa" * 20, lane.call_gas, calls)
        assert batcher.batch_gas(data, lane.call_gas, len(calls)) <= max_gas


def test_a_crowd_of_usual_payments_fills_a_transaction() -> None:
    crowd = taken(Lane.PLAIN, batcher.MAX_TRANSACTION_GAS, os.urandom(64) + b"\x1b", 2**31)
    assert len(crowd) == batcher.MAX_BATCH
