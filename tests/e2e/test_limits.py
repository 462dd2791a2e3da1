"""Rate limits as clients and proxies meet them: a real server, raw requests, a real Redis."""

import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from eth_account import Account

from tests.support.harness import Chain, gig_terms, until
from tests.support.operator import PRICE, Shop, operated
from tests.support.servers import Postgres, Redis, redis

TOO_MANY = {"error": "Too many requests", "reason": "rate_limited"}
NO_GIG = "/api/gigs/1"
# Nothing of these tests waits for a window to pass.
FOUR = "4/day"


@pytest.fixture(scope="module")
def shop(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Behind a proxy on this machine; another one is somewhere else."""
    limits = {"rate_limit_address": FOUR, "rate_limit_key": "6/day", "trusted_proxies": "127.0.0.1,10.9.0.0/16"}
    with operated(chain, tmp_path_factory.mktemp("shop"), **limits) as running:
        yield running


def raw(url: str, *headers: str, path: str = NO_GIG) -> int:
    """The status of a request that is sent as it is."""
    host, port = url.removeprefix("http://").split(":")
    lines = [f"GET {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", ""]
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall("\r\n".join(lines).encode("latin-1"))
        status = connection.makefile("rb").readline()
    return int(status.split()[1])


def forwarded(*hops: str) -> str:
    return f"X-Forwarded-For: {', '.join(hops)}"


def used_up(url: str, *headers: str) -> None:
    assert [raw(url, *headers) for _ in range(5)] == [404] * 4 + [429]


def test_a_client_behind_the_proxy_has_a_count_of_its_own(shop: Shop) -> None:
    used_up(shop.url, forwarded("198.51.100.1"))
    assert raw(shop.url, forwarded("198.51.100.2")) == 404


def test_a_client_who_makes_up_hops_before_the_proxys_is_counted_by_the_proxys(shop: Shop) -> None:
    used_up(shop.url, forwarded("198.51.100.3"))
    for made_up in ("203.0.113.1", "127.0.0.1", "10.9.0.1", "garbage", "", "::1", "203.0.113.1, 203.0.113.2"):
        assert raw(shop.url, forwarded(made_up, "198.51.100.3")) == 429
    assert raw(shop.url, forwarded("203.0.113.7"), forwarded("198.51.100.3")) == 429
    assert raw(shop.url, forwarded("198.51.100.3:4711")) == 429


def test_a_chain_of_trusted_proxies_is_followed_to_the_first_stranger(shop: Shop) -> None:
    used_up(shop.url, forwarded("198.51.100.4"))
    assert raw(shop.url, forwarded("203.0.113.1", "198.51.100.4", "10.9.3.3", "127.0.0.1")) == 429
    assert raw(shop.url, forwarded("198.51.100.4", "203.0.113.5")) == 404


def test_a_subscriber_of_ipv6_is_one_client_with_all_of_his_addresses(shop: Shop) -> None:
    assert [raw(shop.url, forwarded(f"2001:db8:5:5::{n:x}")) for n in range(1, 6)] == [404] * 4 + [429]
    assert raw(shop.url, forwarded("[2001:db8:5:5::99]:4711")) == 429
    assert raw(shop.url, forwarded("2001:db8:5:6::1")) == 404


def test_what_is_no_address_is_one_client_however_it_is_spelled(shop: Shop) -> None:
    statuses = [raw(shop.url, forwarded(word)) for word in ("unknown", "x" * 9000, "\xff\xfe", "1.2.3.4.5", "%00")]
    assert statuses == [404] * 4 + [429]


def test_without_trusted_proxies_the_header_is_ignored(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")  # uvicorn's own, which nobody means for us
    with operated(chain, tmp_path, rate_limit_address="5/day") as shop:
        # Its price was asked for once, by the same address.
        statuses = [raw(shop.url, forwarded(f"198.51.100.{n}"), f"Forwarded: for=198.51.100.{n}") for n in range(5)]
        assert statuses == [404] * 4 + [429]
        assert [raw(shop.url, path=path) for path in ("/healthz", "/readyz", "/metrics")] == [200] * 3


def test_whoever_asks_too_often_is_told_so_and_charged_nothing(shop: Shop) -> None:
    proxied = {"X-Forwarded-For": "198.51.100.20", "Origin": "https://agent.example"}
    buyer = shop.buyer(PRICE)
    answers = [shop.post(gig_terms(), proxied) for _ in range(5)]
    assert [answer.status_code for answer in answers] == [402] * 4 + [429]
    refused = answers[-1]
    assert refused.json() == TOO_MANY
    assert 1 <= int(refused.headers["Retry-After"]) <= 24 * 3600
    assert refused.headers["Access-Control-Allow-Origin"] == "*"
    assert shop.usdc(buyer.address) == PRICE


def test_a_key_is_counted_by_itself_and_guesses_by_their_address(shop: Shop) -> None:
    key = shop.desk.run("keys", "create", "Agent").stdout.strip()
    client = forwarded("198.51.100.30")
    guesses = [raw(shop.url, client, f"x-api-key: {key[:-4]}{n:04}") for n in range(5)]
    assert guesses == [404] * 4 + [429]
    assert [raw(shop.url, client, f"x-api-key: {key}") for _ in range(7)] == [404] * 6 + [429]
    assert raw(shop.url, forwarded("198.51.100.31"), f"x-api-key: {key}") == 429
    shop.desk.run("keys", "revoke", key[:12], "--yes")
    assert raw(shop.url, forwarded("198.51.100.31"), f"x-api-key: {key}") == 404


@pytest.fixture(scope="module")
def shared(
    chain: Chain, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Redis, list[Shop]]]:
    """Two processes with one ledger and one Redis, behind the same proxy."""
    settings = {
        "database_url": postgres.database(),
        "seed": Account.create_with_mnemonic()[1],
        "commission_address": Account.create().address,
        "rate_limit_address": "20/day",
        "trusted_proxies": "127.0.0.1",
        "relayers": 1,
    }
    folder = tmp_path_factory.mktemp("shared")
    with redis() as counts, ExitStack() as stack:
        yield (
            counts,
            [stack.enter_context(operated(chain, folder, redis_url=counts.url, **settings)) for _ in range(2)],
        )


def refusals(shops: list[Shop], client: str, number: int) -> int:
    with ThreadPoolExecutor(8) as threads:
        urls = [shops[n % len(shops)].url for n in range(number)]
        return list(threads.map(lambda url: raw(url, forwarded(client)), urls)).count(429)


def warning(shop: Shop) -> str:
    return str(httpx.get(f"{shop.url}/readyz").json()["warnings"].get("redis", ""))


def test_two_processes_share_the_count_and_do_without_redis(shared: tuple[Redis, list[Shop]]) -> None:
    counts, shops = shared
    assert refusals(shops, "198.51.100.1", 50) == 30
    assert refusals(shops, "198.51.100.2", 20) == 0
    counts.stop(signal.SIGKILL)
    assert refusals(shops, "198.51.100.3", 50) == 10
    until(lambda: all(warning(shop) for shop in shops))
    assert warning(shops[0]).startswith("Redis does not answer: each process counts requests by itself")
    counts.start()
    until(lambda: not any(warning(shop) for shop in shops))
    assert refusals(shops, "198.51.100.4", 50) == 30


def test_a_redis_that_hangs_holds_nobody_up_for_long(shared: tuple[Redis, list[Shop]]) -> None:
    counts, [shop, _] = shared
    assert counts.process is not None
    counts.process.send_signal(signal.SIGSTOP)
    try:
        assert refusals([shop], "198.51.100.6", 30) == 10
        answered = httpx.get(f"{shop.url}{NO_GIG}", headers={"X-Forwarded-For": "198.51.100.5"}, timeout=5)
        assert answered.elapsed.total_seconds() < 3
        assert until(lambda: warning(shop)).startswith("Redis does not answer")
    finally:
        counts.process.send_signal(signal.SIGCONT)
    until(lambda: not warning(shop))
