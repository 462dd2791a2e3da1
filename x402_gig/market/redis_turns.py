"""`turns.Turns` by a lock in Redis. A module of its own, because importing Redis is for those who use it."""

import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis
from redis.exceptions import LockError, RedisError

from x402_gig.errors import BeingProcessed, Unavailable
from x402_gig.ledger.engine import Ledger
from x402_gig.market.turns import LEASE_S, take_number

log = logging.getLogger(__name__)

REDIS_TIMEOUT_S = 3


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
            yield await take_number(self._ledger, gig_id, 0)
        finally:
            with contextlib.suppress(LockError, RedisError):  # then it ends by itself
                await lock.release()

    async def close(self) -> None:
        await self._redis.aclose()
