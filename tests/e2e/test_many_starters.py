"""Three servers on one PostgreSQL and one Redis, and creators who start the same gig at all of them at once."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis as redis_client

from tests.support import servers
from tests.support.creators import START, Creator
from tests.support.faults import RpcProxy, rpc_proxy, slow
from tests.support.harness import USDC, Dev, Json, devnet, running, serve_settings, until
from tests.support.operator import Desk
from tests.support.tokens import Erc20, deploy

STARTS = 50


@dataclass
class Fleet:
    """Servers of one ledger; `creator` has a key that all of them know."""

    shops: list[Dev]
    creator: Creator
    redis: servers.Redis
    proxy: RpcProxy

    def start_everywhere(self, made: Json) -> list[httpx.Response]:
        """Many starts at once, in turn at each server."""
        with ThreadPoolExecutor(STARTS) as threads:
            turns = zip(cycle(self.shops), range(STARTS), strict=False)
            return [*threads.map(lambda turn: self.start_at(turn[0], made), turns)]

    def start_at(self, shop: Dev, made: Json) -> httpx.Response:
        return shop.post({"gig_id": made["gig_id"]}, {"x-api-key": self.creator.key}, START)

    def locks(self) -> list[bytes]:
        with redis_client.Redis.from_url(self.redis.url) as client:
            return list(client.keys("x402-gig:start:*"))

    def expire(self, lock: bytes) -> None:
        """Let its time run out now."""
        with redis_client.Redis.from_url(self.redis.url) as client:
            assert 0 < client.ttl(lock) <= 30
            client.pexpire(lock, 1)


@contextmanager
def fleet(postgres: servers.Postgres, folder: Path, count: int) -> Iterator[Fleet]:
    with devnet() as chain, rpc_proxy(chain) as proxy, servers.redis() as redis, ExitStack() as stack:
        changes: dict[str, Any] = {"database_url": postgres.database(), "redis_url": redis.url}
        env = serve_settings(proxy.chain, folder, **changes)
        ready = [stack.enter_context(running("serve", env=env, cwd=folder))[1] for _ in range(count)]
        commission = env["X402_GIG_COMMISSION_ADDRESS"]
        shops = [Dev(chain.rpc_url, url=each["url"], commission=commission) for each in ready]
        yield Fleet(shops, Creator(shops[0], Desk(env, folder)), redis, proxy)


@pytest.fixture(scope="module")
def three(postgres: servers.Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet(postgres, tmp_path_factory.mktemp("fleet"), 3) as servers_:
        yield servers_


@pytest.mark.parametrize("token", ["USDC", "OddToken"])
def test_fifty_starts_at_three_servers_start_a_gig_once(three: Fleet, token: str) -> None:
    shop = three.shops[0]
    erc20 = Erc20(shop, USDC) if token == "USDC" else deploy(shop, token)
    made, before = three.creator.funded(erc20), erc20.balance(shop.commission)

    answers = Counter((answer.status_code, answer.text) for answer in three.start_everywhere(made))

    number = made["gig_id"]
    assert answers.pop((200, f'{{"data":{{"message":"Gig started successfully","gig_id":{number}}}}}')) == 1
    assert set(answers) <= {
        (409, f'{{"error":"Gig with id {number} is currently being processed"}}'),
        (400, '{"error":"Gig is already live"}'),
    }
    gig = three.creator.paid_up(made)
    unit = 10 ** gig["token"]["decimals"]
    assert (erc20.balance(shop.commission), erc20.balance(made["gig_wallet_address"])) == (before + unit, 10 * unit)
    assert {shop.gig(number)["status"] for shop in three.shops} == {"active"}


def test_without_redis_nothing_is_started_and_nothing_is_started_twice(three: Fleet) -> None:
    made = three.creator.funded(Erc20(three.shops[0], USDC))
    three.redis.stop()
    refused = three.start_everywhere(made)
    assert {(answer.status_code, answer.json()["reason"]) for answer in refused} == {(503, "unavailable")}
    three.redis.start()
    until(lambda: three.creator.start(made).status_code == 200)
    assert three.creator.start(made).status_code == 400


def test_the_lock_of_a_dead_server_expires_and_its_start_counts_for_nothing(
    postgres: servers.Postgres, tmp_path: Path
) -> None:
    """One server is stopped in the middle of a start by a chain that does not answer; the other one takes over."""
    with fleet(postgres, tmp_path, 2) as two:
        made = two.creator.funded(Erc20(two.shops[0], USDC))
        with ThreadPoolExecutor(1) as threads:
            with two.proxy.broken(slow(3), "eth_call"):
                first = threads.submit(two.start_at, two.shops[0], made)
                [lock] = until(two.locks)
                assert two.start_at(two.shops[1], made).status_code == 409
                two.expire(lock)
            heir = until(lambda: (a := two.start_at(two.shops[1], made)).status_code != 409 and a)
            answers = [first.result(), heir]
        assert sorted(answer.status_code for answer in answers) in ([200, 400], [200, 409])
        two.creator.paid_up(made)
        assert two.shops[0].usdc(made["gig_wallet_address"]) == 10_000_000
