"""The middleware in front of an application that says what it was given."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from x402_gig.ledger import api_keys
from x402_gig.ledger.api_keys import ApiKey
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.tables import api_keys as table
from x402_gig.settings import Rate
from x402_gig.web.api.counting import Limiter
from x402_gig.web.api.errors import HANDLERS
from x402_gig.web.api.keys import Keys, key_of
from x402_gig.web.api.limits import Limits, networks_of
from x402_gig.web.cors import Cors

TOO_MANY = {"error": "Too many requests", "reason": "rate_limited"}
UNAUTHORIZED = {"error": "Invalid API key"}


async def whoami(request: Request) -> Response:
    key: ApiKey | None = request.state.api_key
    return JSONResponse(key.id if key else None)


async def members_only(request: Request) -> Response:
    return JSONResponse(key_of(request).id)


async def healthz(request: Request) -> Response:
    return JSONResponse("ok")


class Client:
    """Sends requests from any address. `address` and `key` are how many of each are let through in a minute."""

    def __init__(self, ledger: Ledger, address: int = 3, key: int = 5) -> None:
        self.ledger = ledger
        routes = [Route("/api/whoami", whoami), Route("/api/members", members_only), Route("/healthz", healthz)]
        limiter = Limiter(Rate(address, 60), Rate(key, 60))
        app = Starlette(routes=routes, exception_handlers=HANDLERS)
        self.app = Cors(Limits(app, keys=Keys(ledger), limiter=limiter))

    def get(self, path: str = "/api/whoami", *, address: Any = "192.0.2.1", headers: Any = None) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app, client=(address, 1))
            async with httpx.AsyncClient(transport=transport, base_url="http://gigs.example") as http:
                return await http.get(path, headers=headers)

        return asyncio.run(ask())

    def statuses(self, number: int, **request: Any) -> list[int]:
        return [self.get(**request).status_code for _ in range(number)]

    def new_key(self, name: str = "A creator", expires_at: int | None = None) -> tuple[ApiKey, str]:
        return asyncio.run(self.ledger.write(lambda c: api_keys.create(c, name, expires_at)))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def client(ledger: Ledger) -> Client:
    return Client(ledger)


def test_an_address_that_asks_too_often_is_told_when_to_come_back(client: Client) -> None:
    assert client.statuses(3) == [200, 200, 200]
    refused = client.get(headers={"Origin": "https://agent.example"})
    assert (refused.status_code, refused.json()) == (429, TOO_MANY)
    assert 1 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.headers["Access-Control-Allow-Origin"] == "*"
    assert "Retry-After" in refused.headers["Access-Control-Expose-Headers"]
    assert refused.headers["Cache-Control"] == "no-store"
    assert client.statuses(1, address="192.0.2.2") == [200]


def test_only_the_api_is_limited(client: Client) -> None:
    assert client.statuses(4)[-1] == 429
    assert client.statuses(5, path="/healthz") == [200] * 5


def test_a_key_has_a_count_of_its_own_wherever_it_comes_from(client: Client) -> None:
    row, key = client.new_key()
    assert client.statuses(4)[-1] == 429
    assert client.get(headers={"x-api-key": key}).json() == row.id
    assert client.statuses(4, headers={"x-api-key": key}, address="192.0.2.9") == [200] * 4
    assert client.statuses(1, headers={"x-api-key": key}, address="192.0.2.10") == [429]
    assert client.statuses(3, address="192.0.2.9") == [200] * 3


def test_whoever_guesses_keys_is_counted_by_address(client: Client) -> None:
    _, key = client.new_key()
    for number in range(3):
        guess = {"x-api-key": f"{key[:-3]}{number:03}"}
        assert client.get("/api/members", headers=guess).json() == UNAUTHORIZED
    assert client.get("/api/members", headers={"x-api-key": key[:13] + "A" * 43}).status_code == 429
    assert client.get("/api/members", headers={"x-api-key": key}).status_code == 200


ODD = {
    "none": [],
    "empty": [("x-api-key", "")],
    "only the prefix": [("x-api-key", "gig_00000000")],
    "unknown": [("x-api-key", "gig_00000000_" + "A" * 43)],
    "huge": [("x-api-key", "gig_" + "A" * 60_000)],
    "not ASCII": [("x-api-key", "gig_00000000_ä".encode())],
    "not UTF-8": [("x-api-key", b"gig_\xff\xfe")],
    "quoted": [("x-api-key", "' OR 1=1 --")],
    "as a bearer": [("Authorization", "Bearer gig_00000000_x")],
}


@pytest.mark.parametrize("headers", ODD.values(), ids=ODD.keys())
def test_what_is_no_key_is_refused_with_one_sentence(client: Client, headers: Any) -> None:
    answer = client.get("/api/members", headers=headers)
    assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)


def test_a_request_with_two_keys_has_none(client: Client) -> None:
    _, key = client.new_key()
    answer = client.get("/api/members", headers=[("x-api-key", key), ("x-api-key", key)])
    assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)


def test_a_revoked_key_is_refused_by_the_next_request(client: Client) -> None:
    row, key = client.new_key()
    assert client.get("/api/members", headers={"x-api-key": key}).status_code == 200
    asyncio.run(client.ledger.write(lambda c: api_keys.revoke(c, row)))
    assert client.get("/api/members", headers={"x-api-key": key}).json() == UNAUTHORIZED


def test_the_use_of_a_key_is_written_down_at_most_once_a_minute(client: Client) -> None:
    def writes() -> list[int | None]:
        client.get(headers={"x-api-key": key})
        return [row.last_used_at for row in asyncio.run(client.ledger.read(api_keys.listed))]

    _, key = client.new_key()
    first = writes()
    assert first != [None]
    a_while_ago = update(table).values(last_used_at=first[0] - 50)  # type: ignore[operator]
    asyncio.run(client.ledger.write(lambda c: c.execute(a_while_ago)))
    assert writes() == [first[0] - 50]  # type: ignore[operator]
    long_ago = update(table).values(last_used_at=first[0] - 70)  # type: ignore[operator]
    asyncio.run(client.ledger.write(lambda c: c.execute(long_ago)))
    assert writes() != [first[0] - 70]  # type: ignore[operator]


def test_without_its_ledger_a_key_is_neither_right_nor_wrong(client: Client) -> None:
    _, key = client.new_key()
    asyncio.run(client.ledger.write(lambda c: c.exec_driver_sql("DROP TABLE api_keys")))
    answer = client.get("/api/members", headers={"x-api-key": key})
    assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
    assert client.get().status_code == 200


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("2001:db8::1", "2001:db8:0:0:ffff::2"),
        ("2001:DB8::1", "2001:0db8:0000::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::2"),
        ("unknown", "x" * 10_000),
        ("", "192.0.2.01"),
    ],
)
def test_these_addresses_are_counted_as_one(one: str, other: str) -> None:
    assert networks_of({"client": (one, 1)}) == networks_of({"client": (other, 2)})


@pytest.mark.parametrize(
    ("one", "other"),
    [("2001:db8::1", "2001:db8:0:1::1"), ("192.0.2.1", "192.0.2.2"), ("::ffff:192.0.2.1", "::ffff:192.0.2.2")],
)
def test_these_addresses_are_counted_as_two(one: str, other: str) -> None:
    assert networks_of({"client": (one, 1)}) != networks_of({"client": (other, 1)})


def test_a_site_of_ipv6_may_do_what_sixteen_subscribers_may(client: Client) -> None:
    """Those who ask more often than a subscriber may take nothing from their neighbours."""
    assert client.statuses(50, address="2001:db8:5:ffff::1").count(429) == 47
    statuses = [client.get(address=f"2001:db8:5:{n:x}::1").status_code for n in range(50)]
    assert statuses == [200] * (16 * 3 - 3) + [429] * 5
    assert client.statuses(1, address="2001:db8:6::1") == [200]


def test_who_has_no_address_is_counted_too() -> None:
    assert networks_of({"client": None}) == networks_of({}) == networks_of({"client": ("", 0)})
