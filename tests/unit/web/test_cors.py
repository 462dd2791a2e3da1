"""Ours against Starlette's own, which it stands in for."""

import asyncio
import itertools
from typing import Any

import pytest
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message

from x402_gig.web.cors import EXPOSED_HEADERS, Cors

ANSWER = JSONResponse({"error": "Not found"}, 404, {"Cache-Control": "no-store"})
STARLETTES = CORSMiddleware(
    ANSWER, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"], expose_headers=EXPOSED_HEADERS
)
HEADERS = [
    (b"origin", b"https://agent.example"),
    (b"access-control-request-method", b"POST"),
    (b"access-control-request-headers", b"content-type, payment-signature"),
    (b"access-control-request-private-network", b"true"),
]


def answer(app: ASGIApp, method: str, headers: Any) -> list[Message]:
    scope = {"type": "http", "method": method, "path": "/", "headers": list(headers)}
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    async def ask() -> None:
        await app(scope, receive, send)

    asyncio.run(ask())
    return sent


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "HEAD"])
@pytest.mark.parametrize("number", range(5))
def test_every_answer_is_starlettes(method: str, number: int) -> None:
    for headers in itertools.combinations(HEADERS, number):
        assert answer(Cors(ANSWER), method, headers) == answer(STARLETTES, method, headers)


def test_an_answer_that_is_sent_again_does_not_collect_headers() -> None:
    app = Cors(ANSWER)
    assert answer(app, "GET", HEADERS[:1]) == answer(app, "GET", HEADERS[:1])
