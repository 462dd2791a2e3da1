"""The count of requests that several processes share. A module of its own: importing Redis is for those who use it."""

import time

from limits import RateLimitItemPerSecond
from limits.aio.storage import RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from redis.asyncio import BlockingConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as Disconnected
from redis.exceptions import RedisError

from x402_gig.errors import Unavailable
from x402_gig.settings import Rate

REDIS_CONNECTIONS = 16
REDIS_TIMEOUT_S = 1


class RedisCounts:
    """`counting.SharedCounts` of all processes with one `name`."""

    def __init__(self, url: str, name: str) -> None:
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=REDIS_CONNECTIONS,
            timeout=REDIS_TIMEOUT_S,
            socket_timeout=REDIS_TIMEOUT_S,
            socket_connect_timeout=REDIS_TIMEOUT_S,
            # Once: a connection that Redis closed long ago is noticed when it is used.
            retry=Retry(NoBackoff(), 1, (Disconnected,)),
        )
        self._storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix=f"x402-gig:limit:{name}",
            connection_pool=self._pool,  # type: ignore[arg-type] # the library's annotation knows plain values only
        )
        self._windows = SlidingWindowCounterRateLimiter(self._storage)

    async def wait_s(self, rate: Rate, name: str) -> float | None:
        item = RateLimitItemPerSecond(rate.amount, rate.seconds)
        try:
            if await self._windows.hit(item, name):
                return None
            return (await self._windows.get_window_stats(item, name)).reset_time - time.time()
        except (RedisError, OSError) as exc:
            raise Unavailable(type(exc).__name__) from None

    async def answers(self) -> bool:
        return await self._storage.check()

    async def close(self) -> None:
        await self._pool.aclose()
