"""Hands work to free relayers: a deposit batch is whatever waits when a relayer is free."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from x402_gig.errors import GigError, Unavailable
from x402_gig.settlement.funding import Funding
from x402_gig.settlement.relayer import Relayer

log = logging.getLogger(__name__)

IDLE_S = 0.5
AFTER_ERROR_S = 1.0
NO_GAS_S = 5.0

Job = Callable[[Relayer], Awaitable[None]]


class Queue(Protocol):
    """What waits for a relayer: buyers' payments, wallets without gas. It calls `wake` when something does."""

    wake: Callable[[], None]

    def waits(self) -> bool: ...
    async def run(self, relayer: Relayer) -> None:
        """Take a batch of what waits and see it through."""
        ...


class Dispatcher:
    """One worker for each relayer. `wake` tells them that something may have come up; the first queue goes first."""

    def __init__(self, relayers: Sequence[Relayer], queues: Sequence[Queue], funding: Funding) -> None:
        self._relayers = relayers
        self._queues = queues
        self._funding = funding
        self._work = asyncio.Event()
        # Counts reorganisations: after each, every relayer looks for slots that are open again.
        self._round = 0
        self._without_gas: set[str] = set()

    def wake(self) -> None:
        self._work.set()

    def start_again(self) -> None:
        """Slots that were closed are open again: they come first."""
        self._round += 1
        self.wake()

    @property
    def is_out_of_gas(self) -> bool:
        """No relayer can pay for gas."""
        return len(self._without_gas) == len(self._relayers)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for relayer in self._relayers:
                group.create_task(self._serve(relayer), name=f"relayer {relayer.wallet.address}")

    async def _serve(self, relayer: Relayer) -> None:
        started = -1
        while True:
            try:
                if started != (now := self._round):
                    await relayer.start()
                    started = now
                    # What a left-over slot carried in vain is due again.
                    self._funding.due()
                await self._work_once(relayer)
            # Start again after either: a slot that was written down must be finished before the next one.
            except GigError as exc:
                log.warning("relayer %s: %s", relayer.wallet.address, exc.detail)
                started = -1
                await asyncio.sleep(AFTER_ERROR_S)
            except Exception:  # one batch's bug must not stop the relayer for the batches after it
                log.exception("relayer %s: a batch failed unexpectedly", relayer.wallet.address)
                started = -1
                await asyncio.sleep(AFTER_ERROR_S)

    async def _work_once(self, relayer: Relayer) -> None:
        # Asked first: what cannot be paid for is not written down, and is left to a relayer that can pay.
        if await _is_out_of_gas(relayer):
            self._without_gas.add(relayer.wallet.address)
            log.error("out of gas: %s", await relayer.gas_report())
            await asyncio.sleep(NO_GAS_S)
            return
        self._without_gas.discard(relayer.wallet.address)
        job = self._next_job()
        await (job(relayer) if job is not None else self._idle(relayer))

    def _next_job(self) -> Job | None:
        waiting = next((queue for queue in self._queues if queue.waits()), None)
        if self._funding.is_wanted(others_wait=waiting is not None):
            return self._funding.run
        return waiting.run if waiting is not None else None

    async def _idle(self, relayer: Relayer) -> None:
        self._work.clear()
        await relayer.take_over()
        try:
            async with asyncio.timeout(IDLE_S):
                await self._work.wait()
        except TimeoutError:
            pass


async def _is_out_of_gas(relayer: Relayer) -> bool:
    """False also when the chain does not answer: then the job fails, and its buyers are told at once."""
    try:
        return not await relayer.has_gas()
    except Unavailable:
        return False
