"""Hands work to free relayers: a deposit batch is whatever waits when a relayer is free.

A process works with the relayers that it holds; one that holds none that can pay leaves its work to the others.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from x402_gig.errors import GigError, Unavailable
from x402_gig.logs import Trouble
from x402_gig.relaying.leases import Leases
from x402_gig.relaying.relayer import Relayer
from x402_gig.settlement.work import Work
from x402_gig.treasury.funding import Funding

log = logging.getLogger(__name__)

IDLE_S = 0.5
LOOK_S = 0.5
AFTER_ERROR_S = 1.0
NO_GAS_S = 5.0

Job = Callable[[Relayer], Awaitable[None]]


class Queue(Protocol):
    """What waits for a relayer: buyers' payments, wallets without gas. It notes in `Work` when something does."""

    def waits(self) -> bool: ...
    def gathers(self) -> bool:
        """More of it comes and will share the batch, so it is too early to take it."""
        ...

    async def run(self, relayer: Relayer) -> None:
        """Take a batch of what waits and see it through."""
        ...

    async def leave(self) -> None:
        """Leave what waits to the other processes."""
        ...

    def refuse(self) -> None:
        """No process can send: tell those who wait for what is not written down."""
        ...


class Dispatcher:
    """One worker for each relayer. `work` tells them that something may have come up; the first queue goes first."""

    def __init__(
        self, relayers: Sequence[Relayer], leases: Leases, queues: Sequence[Queue], funding: Funding, work: Work
    ) -> None:
        self._relayers = relayers
        self._leases = leases
        self._queues = queues
        self._funding = funding
        self._work = work
        # When each relayer's slots in the ledger are looked at again, by its address (`time.monotonic()`).
        self._look_at: dict[str, float] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._leave_to_others(), name="dispatcher without relayers")
            for relayer in self._relayers:
                group.create_task(self._serve(relayer), name=f"relayer {relayer.wallet.address}")

    async def _serve(self, relayer: Relayer) -> None:
        address = relayer.wallet.address
        trouble = Trouble(log, f"relayer {address}")
        started = None
        while True:
            fence = self._leases.fence(address)
            if fence is None:
                await self._leases.changed()
                continue
            try:
                if started != (now := (fence, self._work.reopenings)):
                    await relayer.start()
                    started = now
                    # What a left-over slot carried in vain is due again.
                    self._work.note_funding()
                if self._leases.has_too_many:
                    await self._leases.give_up(address)
                else:
                    await self._work_once(relayer)
            except GigError as exc:
                trouble.is_now(exc.detail)
            except Exception:  # one batch's bug must not stop the relayer for the batches after it
                log.exception("relayer %s: a batch failed unexpectedly", address)
            else:
                trouble.is_now("")
                continue
            # Start again after either: a slot that was written down must be finished before the next one.
            started = None
            await asyncio.sleep(AFTER_ERROR_S)

    async def _work_once(self, relayer: Relayer) -> None:
        # Asked first: what cannot be paid for is not written down, and is left to a relayer that can pay.
        if await _is_out_of_gas(relayer):
            self._leases.out_of_gas.add(relayer.wallet.address)
            log.error("out of gas: %s", await relayer.gas_report())
            await asyncio.sleep(NO_GAS_S)
            return
        self._leases.out_of_gas.discard(relayer.wallet.address)
        await self._finish_left_overs(relayer)
        job = self._next_job()
        await (job(relayer) if job is not None else self._idle())

    async def _finish_left_overs(self, relayer: Relayer) -> None:
        """Twice a second: slots may be open again and nobody here was told.

        Another process may have seen the reorganisation first, or the answer to the commit that opened them was lost.
        """
        address, now = relayer.wallet.address, time.monotonic()
        if now < self._look_at.get(address, 0):
            return
        if await relayer.finish_left_overs():
            self._work.note_funding()
        self._look_at[address] = now + LOOK_S

    def _next_job(self) -> Job | None:
        waiting = [queue for queue in self._queues if queue.waits()]
        if self._funding.is_wanted(others_wait=bool(waiting)):
            return self._funding.run
        return next((queue.run for queue in waiting if not queue.gathers()), None)

    async def _idle(self) -> None:
        self._work.begin_waiting()
        await self._work.wait(IDLE_S)

    async def _leave_to_others(self) -> None:
        """Without a relayer here that can pay, another process sends what waits; when none can, it is refused."""
        while True:
            try:
                self._work.is_out_of_gas = not self._leases.can_send and await self._is_nobody_able_to_pay()
                if self._work.is_out_of_gas:
                    for queue in self._queues:
                        queue.refuse()
                elif (left_behind := self._left_behind()) is not None:
                    await left_behind.leave()
                    continue
            except GigError as exc:
                log.warning("what waits is not left to others: %s", exc.detail)
            except Exception:  # one payment's bug must not keep those after it from being left
                log.exception("what waits is not left to others")
            await asyncio.sleep(IDLE_S)

    def _left_behind(self) -> Queue | None:
        if self._leases.can_send or self._leases.processes < 2:
            return None
        return next((queue for queue in self._queues if queue.waits()), None)

    async def _is_nobody_able_to_pay(self) -> bool:
        return all([await _is_out_of_gas(relayer) for relayer in self._relayers])


async def _is_out_of_gas(relayer: Relayer) -> bool:
    """False also when the chain does not answer: then the job fails, and its buyers are told at once."""
    try:
        return not await relayer.has_gas()
    except Unavailable:
        return False
