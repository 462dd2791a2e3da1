"""Whose turn it is to start a gig: a lease in Redis where there is one, else in the ledger.

A lease only keeps two starts from doing the same work at once. That a gig is started once is the ledger's doing: a
start is written under its number (`direct.take_turn`), and only the highest counts.
"""

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from redis.asyncio import Redis
from redis.exceptions import LockError, RedisError

from x402_gig.errors import BeingProcessed, Unavailable
from x402_gig.store import direct
from x402_gig.store.engine import Ledger

log = logging.getLogger(__name__)

LEASE_S = 30
REDIS_TIMEOUT_S = 3


class Turns(Protocol):
    def take(self, gig_id: int) -> AbstractAsyncContextManager[int]:
        """Nobody else starts this gig meanwhile; gives the number to write the start under.

        Raises BeingProcessed while somebody else has the turn, and Unavailable.
        """
        ...


@dataclass(frozen=True)
class LedgerTurns:
    ledger: Ledger

    @asynccontextmanager
    async def take(self, gig_id: int) -> AsyncIterator[int]:
        fence = await _number(self.ledger, gig_id, LEASE_S)
        try:
            yield fence
        finally:
            with contextlib.suppress(Unavailable):  # then it ends by itself
                await self.ledger.write(lambda c: direct.end_turn(c, gig_id, fence))


class RedisTurns:
    """`name` is what the servers of one ledger have in common."""

    def __init__(self, url: str, name: str, ledger: Ledger) -> None:
        self._redis: Redis = Redis.from_url(url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
        self._name = name
        self._ledger = ledger

    @asynccontextmanager
    async def take(self, gig_id: int) -> AsyncIterator[int]:
        lock = self._redis.lock(f"x402-gig:start:{self._name}:{gig_id}", timeout=LEASE_S)
        try:
            is_mine = await lock.acquire(blocking=False)
        except RedisError as exc:
            # `from None`: the text of the error may hold the URL.
            log.warning("gig %d cannot be started: Redis does not answer (%s)", gig_id, type(exc).__name__)
            raise Unavailable(f"The start lock cannot be had right now ({type(exc).__name__})") from None
        if not is_mine:
            raise BeingProcessed(gig_id)
        try:
            yield await _number(self._ledger, gig_id, 0)
        finally:
            with contextlib.suppress(LockError, RedisError):  # then it ends by itself
                await lock.release()

    async def close(self) -> None:
        await self._redis.aclose()


async def _number(ledger: Ledger, gig_id: int, lease_s: int) -> int:
    number = await ledger.write(lambda c: direct.take_turn(c, gig_id, lease_s))
    if number is None:
        raise BeingProcessed(gig_id)
    return number
