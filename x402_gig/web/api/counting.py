"""How often somebody may ask: a sliding window, in memory or, where several processes share it, in Redis."""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from x402_gig.errors import TooManyRequests, Unavailable
from x402_gig.settings import Rate

log = logging.getLogger(__name__)

# Of somebody who is forgotten for newer ones, counting begins again. 50,000 of them take about 15 MB.
MAX_COUNTED = 50_000
# A /48 of IPv6 is one site or many subscribers of a mobile network: it has the limit of so many addresses.
ADDRESSES_OF_A_SITE = 16
# So long everybody is counted in memory after Redis did not answer, instead of waiting for it.
REDIS_PAUSE_S = 5


class MemoryCounts:
    """Counts of this process: what is left of the window before, and what came in this one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counts: OrderedDict[str, tuple[float, int, int]] = OrderedDict()

    def wait_s(self, rate: Rate, name: str) -> float | None:
        """None when it is counted, else the time until there is room again."""
        seconds = rate.seconds
        window, passed = divmod(self._clock(), seconds)
        last, before, count = self._counts.get(name, (window, 0, 0))
        if last != window:
            before, count = count if last == window - 1 else 0, 0
        if before * (1 - passed / seconds) + count >= rate.amount:
            return self._until_room(before, rate.amount - count, seconds) - passed
        self._counts[name] = window, before, count + 1
        self._counts.move_to_end(name)
        if len(self._counts) > MAX_COUNTED:
            self._counts.popitem(last=False)
        return None

    @staticmethod
    def _until_room(before: int, room: int, seconds: int) -> float:
        """Since the window's beginning."""
        return seconds if room <= 0 else seconds * (1 - room / before)


class SharedCounts(Protocol):
    """Counts of all processes of one shop. Implemented in `redis_counts`."""

    async def wait_s(self, rate: Rate, name: str) -> float | None:
        """As `MemoryCounts.wait_s`. Raises Unavailable, whose detail names the error and not the URL."""
        ...

    async def answers(self) -> bool: ...
    async def close(self) -> None: ...


class Limiter:
    """Counts in `shared` while it answers, else in memory: limits are no reason to sell nothing."""

    def __init__(self, by_address: Rate | None, by_key: Rate | None, shared: SharedCounts | None = None) -> None:
        by_site = by_address and Rate(by_address.amount * ADDRESSES_OF_A_SITE, by_address.seconds)
        self._by_network = (by_address, by_site)
        self._by_key = by_key
        self._shared = shared
        self._memory = MemoryCounts()
        self._shared_again_at = 0.0
        self.problem = ""

    async def count(self, key_id: int | None, *networks: str) -> None:
        """One request more: of the key where there is one, else of each network, the narrow one before the wide one.

        What a narrow network may not do does not count for the wide one. Raises TooManyRequests.
        """
        if key_id is not None:
            await self._count(self._by_key, f"key:{key_id}")
            return
        for rate, network in zip(self._by_network, networks, strict=False):
            await self._count(rate, f"address:{network}")

    async def _count(self, rate: Rate | None, name: str) -> None:
        wait_s = await self._wait_s(rate, name) if rate else None
        if wait_s is not None:
            raise TooManyRequests(max(1, math.ceil(wait_s)))

    async def _wait_s(self, rate: Rate, name: str) -> float | None:
        if self._shared is None or time.monotonic() < self._shared_again_at:
            return self._memory.wait_s(rate, name)
        if self.problem:
            # One of us tries, the others need not wait for it.
            self._shared_again_at = time.monotonic() + REDIS_PAUSE_S
        try:
            wait_s = await self._shared.wait_s(rate, name)
        except Unavailable as exc:
            self._is_lost(exc.detail)
            return self._memory.wait_s(rate, name)
        self._is_back()
        return wait_s

    async def look(self) -> str:
        """What is wrong, asked anew."""
        if self._shared is not None:
            if await self._shared.answers():
                self._is_back()
            else:
                self._is_lost("no answer")
        return self.problem

    def _is_lost(self, why: str) -> None:
        self._shared_again_at = time.monotonic() + REDIS_PAUSE_S
        if not self.problem:
            self.problem = (
                "Redis does not answer: each process counts requests by itself, and gigs of API keys cannot be started"
            )
            log.warning("%s (%s)", self.problem, why)

    def _is_back(self) -> None:
        self._shared_again_at = 0.0
        if self.problem:
            self.problem = ""
            log.warning("Redis answers again: all processes count requests together")

    async def close(self) -> None:
        if self._shared is not None:
            await self._shared.close()
