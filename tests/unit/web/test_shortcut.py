"""Both ways to the paywall give the same answer, byte for byte."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from eth_account import Account
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import ASGIApp, Message

from tests.support.harness import CREATE, gig_terms
from x402_gig.errors import TooManyRequests
from x402_gig.gigs.shop import GigShop
from x402_gig.ledger.engine import Ledger
from x402_gig.payments.gate import MAX_BODY_BYTES
from x402_gig.server.lifecycle import close
from x402_gig.server.wiring import Server, build
from x402_gig.settings import Settings
from x402_gig.web.api.counting import Limiter
from x402_gig.web.api.shortcut import Shortcut

TERMS = gig_terms(how_to_earn="Like it")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    settings = Settings(
        network="devnet",
        rpc_url="http://127.0.0.1:1",
        seed=Account.create_with_mnemonic()[1],
        commission_address=Account.create().address,
        public_url="https://gigs.example",
        rate_limit_address="1000000/minute",
    )
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('ledger')}/ledger.db")
    opened = build(settings, ledger)
    yield opened
    asyncio.run(close(opened))
    ledger.close()


@pytest.fixture(scope="module")
def shortcut(server: Server) -> Shortcut:
    app: Any = server.app
    assert isinstance(app.app, Shortcut)
    return app.app


def answer(app: ASGIApp, body: bytes, **request: Any) -> list[Any]:
    """The messages that were sent, and what was raised beside."""
    scope = {"type": "http", "method": "POST", "path": CREATE, "query_string": b"", "headers": []} | request
    sent: list[Any] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        try:
            await app(scope, receive, send)
        except RuntimeError as exc:
            sent.append(str(exc))

    asyncio.run(ask())
    return sent


BODIES = {
    "nothing": (b"", 402),
    "terms": (json.dumps(TERMS).encode(), 402),
    "an exact price": (json.dumps(TERMS).replace('"amount": 10', '"amount": 10.000001').encode(), 402),
    "no JSON": (b"{", 400),
    "a list": (b"[]", 400),
    "a problem": (json.dumps(TERMS | {"amount": 9, "keywrod": 1}).encode(), 400),
    "another chain": (json.dumps(TERMS | {"chain": "ethereum"}).encode(), 404),
    "too large": (b" " * (MAX_BODY_BYTES + 1), 413),
}


@pytest.mark.parametrize(("body", "status"), BODIES.values(), ids=BODIES.keys())
def test_the_short_way_answers_like_the_long_one(shortcut: Shortcut, body: bytes, status: int) -> None:
    sent = answer(shortcut, body)
    assert sent[0]["status"] == status
    assert sent == answer(shortcut.app, body)


NAMES = st.sampled_from([*TERMS, "platform", "keyword", "nothing"])
VALUES = st.none() | st.integers() | st.text(max_size=5) | st.floats(allow_nan=False) | st.lists(st.integers())


@given(st.dictionaries(NAMES, VALUES, max_size=3))
def test_whatever_is_wrong_both_say_so(shortcut: Shortcut, changes: dict[str, Any]) -> None:
    body = json.dumps(TERMS | changes).encode()
    assert answer(shortcut, body) == answer(shortcut.app, body)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ({"method": "GET"}, 405),
        ({"path": CREATE + "/"}, 404),
        ({"headers": [(b"payment-signature", b"garbage!")]}, 400),
        ({"headers": [(b"x-payment", b"garbage!")]}, 400),
        ({"headers": [(b"x-api-key", b"one"), (b"x-api-key", b"another")]}, 402),
    ],
)
def test_everything_else_goes_the_long_way(shortcut: Shortcut, request_: dict[str, Any], status: int) -> None:
    sent = answer(shortcut, b"{}", **request_)
    assert sent[0]["status"] == status
    assert sent == answer(shortcut.app, b"{}", **request_)


def test_who_asks_too_often_hears_so_on_both_ways(shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(_: Limiter, key_id: int | None, address: str) -> None:
        raise TooManyRequests(7) if (key_id, address) == (None, "203.0.113.7") else AssertionError(address)

    monkeypatch.setattr(Limiter, "count", refuse)
    sent = answer(shortcut, b"{}", client=("203.0.113.7", 1234))
    assert sent[0]["status"] == 429
    assert sent == answer(shortcut.app, b"{}", client=("203.0.113.7", 1234))


def test_a_bug_is_answered_and_then_raised_for_the_log(shortcut: Shortcut, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(GigShop, "order", broken)
    sent = answer(shortcut, b"{}")
    assert sent == answer(shortcut.app, b"{}")
    assert (sent[0]["status"], json.loads(sent[1]["body"])) == (500, {"error": "Failed to create gig"})
    assert sent[2] == "a bug"
