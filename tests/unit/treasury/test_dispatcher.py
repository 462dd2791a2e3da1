"""What a worker does after a batch that failed."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from x402_gig.errors import Unavailable
from x402_gig.settlement.work import Work
from x402_gig.treasury import dispatcher
from x402_gig.treasury.dispatcher import Dispatcher


@pytest.mark.parametrize("error", [Unavailable("the ledger was away"), RuntimeError("a bug")])
def test_a_relayer_finishes_what_a_failed_batch_left_before_it_takes_the_next(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slot may be written down and not sent: with the next nonce first, everything behind it would wait for ever."""
    monkeypatch.setattr(dispatcher, "AFTER_ERROR_S", 0)
    happened: list[str] = []
    done = asyncio.Event()

    class Relayer:
        wallet = SimpleNamespace(address="0x1")

        async def start(self) -> None:
            happened.append("start")

        async def has_gas(self) -> bool:
            return True

        async def finish_left_overs(self) -> bool:
            return False

    class Queue:
        def __init__(self) -> None:
            self.gathers: Callable[[], bool] = lambda: False
            self.refuse: Callable[[], None] = lambda: None

        def waits(self) -> bool:
            return not done.is_set()

        async def leave(self) -> None:
            raise AssertionError("there is a relayer")

        async def run(self, relayer: Any) -> None:
            happened.append("batch")
            if happened.count("batch") == 1:
                raise error
            done.set()

    funding = SimpleNamespace(is_wanted=lambda others_wait: False)
    leases = SimpleNamespace(fence=lambda name: 1, has_too_many=False, can_send=True, processes=1, out_of_gas=set())

    async def main() -> None:
        working = asyncio.ensure_future(
            Dispatcher([cast(Any, Relayer())], cast(Any, leases), [Queue()], cast(Any, funding), Work()).run()
        )
        async with asyncio.timeout(10):
            await done.wait()
        working.cancel()
        await asyncio.wait({working})

    asyncio.run(main())
    assert happened == ["start", "batch", "start", "batch"]
