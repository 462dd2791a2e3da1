import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.servers import Redis, redis
from x402_gig.errors import TooManyRequests, Unavailable
from x402_gig.settings import Rate
from x402_gig.web.api import counting
from x402_gig.web.api.counting import Limiter, MemoryCounts
from x402_gig.web.api.redis_counts import RedisCounts

NOBODY_LISTENS = "redis://:secret@127.0.0.1:1/0"


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def counts(clock: Clock) -> MemoryCounts:
    return MemoryCounts(clock)


@pytest.fixture(scope="module")
def server() -> Iterator[Redis]:
    with redis() as running:
        yield running


TEN = Rate(10, 60)


def taken(counts: MemoryCounts, name: str = "a") -> int:
    """So many requests there is room for now."""
    for number in range(1000):
        if counts.wait_s(TEN, name) is not None:
            return number
    raise AssertionError("there is no limit")


def test_so_many_are_counted_and_no_more(counts: MemoryCounts) -> None:
    assert taken(counts) == 10
    assert taken(counts, "b") == 10


def test_the_edge_of_a_window_brings_no_burst(counts: MemoryCounts, clock: Clock) -> None:
    clock.now = 60 * 1000 - 0.001
    assert taken(counts) == 10
    clock.now = 60 * 1000 + 0.001
    assert taken(counts) <= 1
    clock.now += 30
    assert taken(counts) in (4, 5)


def test_whoever_never_stops_is_let_through_at_the_rate_and_evenly(counts: MemoryCounts, clock: Clock) -> None:
    let_through = []
    for _ in range(1200):
        clock.now += 0.5
        let_through += [clock.now] * (counts.wait_s(TEN, "a") is None)
    assert 95 <= len(let_through) <= 110
    later = let_through[10:]
    assert max(sum(start <= at < start + 10 for at in later) for start in later) <= 3


def test_whoever_waits_as_long_as_told_is_let_through_and_not_before(counts: MemoryCounts, clock: Clock) -> None:
    for passed in (0, 3, 31, 59.5, 17):
        clock.now += passed
        taken(counts)
        wait_s = counts.wait_s(TEN, "a")
        assert wait_s is not None
        assert 0 < wait_s <= 60
        clock.now += wait_s - 0.01
        assert counts.wait_s(TEN, "a") is not None
        clock.now += 0.02
        assert counts.wait_s(TEN, "a") is None


def test_after_two_windows_everything_is_forgotten(counts: MemoryCounts, clock: Clock) -> None:
    assert taken(counts) == 10
    clock.now += 120
    assert taken(counts) == 10


def test_strangers_with_many_addresses_fill_no_memory(counts: MemoryCounts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MAX_COUNTED", 100)
    assert taken(counts, "busy") == 10
    for number in range(1000):
        assert counts.wait_s(TEN, f"stranger {number}") is None
        counts.wait_s(TEN, "busy")
    assert len(counts._counts) == 100


async def requests(limiter: Limiter, number: int, address: str = "a") -> int:
    """How many of them are refused."""
    refused = 0
    for _ in range(number):
        try:
            await limiter.count(None, address)
        except TooManyRequests as exc:
            assert 1 <= exc.retry_after_s <= 60
            refused += 1
    return refused


def test_the_count_in_redis_is_one_for_all_who_share_its_name(server: Redis) -> None:
    async def check() -> None:
        first, second, other = (Limiter(TEN, None, RedisCounts(server.url, name)) for name in ("x", "x", "y"))
        assert await requests(first, 6) == 0
        assert await requests(second, 6) == 2
        assert await requests(first, 1) == 1
        assert await requests(other, 10) == 0
        assert [limiter.problem for limiter in (first, second)] == ["", ""]
        await asyncio.gather(first.close(), second.close(), other.close())

    asyncio.run(check())


def test_hundreds_at_once_share_a_few_connections(server: Redis) -> None:
    async def check() -> None:
        limiter = Limiter(Rate(150, 60), None, RedisCounts(server.url, "crowd"))
        refused = await asyncio.gather(*(requests(limiter, 1) for _ in range(400)))
        assert (sum(refused), limiter.problem) == (250, "")
        await limiter.close()

    asyncio.run(check())


def test_without_redis_each_process_counts_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        limiter = Limiter(TEN, None, RedisCounts(NOBODY_LISTENS, "x"))
        assert await requests(limiter, 15) == 5
        assert "each process counts requests by itself" in limiter.problem
        assert await limiter.look() == limiter.problem
        await limiter.close()

    with caplog.at_level(logging.INFO):
        asyncio.run(check())
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "secret" not in caplog.text


def test_when_redis_is_back_it_counts_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, server: Redis
) -> None:
    async def check() -> None:
        limiter = Limiter(TEN, None, RedisCounts(server.url, "back"))
        assert await requests(limiter, 5) == 0
        server.stop()
        assert await requests(limiter, 12) == 2
        server.start()
        assert await requests(limiter, 12) == 2
        assert (await limiter.look(), limiter.problem) == ("", "")
        await limiter.close()

    monkeypatch.setattr(counting, "REDIS_PAUSE_S", 0)
    with caplog.at_level(logging.INFO):
        asyncio.run(check())
    assert [record.message.partition(":")[0] for record in caplog.records] == [
        "Redis does not answer", "Redis answers again",
    ]  # fmt: skip


def test_while_redis_is_gone_nobody_waits_for_it() -> None:
    class Slow(RedisCounts):
        asked = 0

        async def wait_s(self, *_: Any) -> float:
            self.asked += 1
            raise Unavailable("OSError")

    async def check() -> None:
        slow = Slow(NOBODY_LISTENS, "x")
        assert await requests(Limiter(TEN, None, slow), 10) == 0
        assert slow.asked == 1

    asyncio.run(check())


def test_a_key_has_its_own_count_and_its_own_limit() -> None:
    async def check() -> None:
        limiter = Limiter(Rate(1, 60), Rate(3, 60))
        for _ in range(3):
            await limiter.count(1, "a")
        with pytest.raises(TooManyRequests):
            await limiter.count(1, "b")
        await limiter.count(2, "a")
        await limiter.count(None, "a")
        with pytest.raises(TooManyRequests):
            await limiter.count(None, "a")

    asyncio.run(check())
