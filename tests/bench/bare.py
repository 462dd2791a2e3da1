"""The limits of HTTP: the same request, read and parsed, answered with ready-made bytes of a 402's size.

`uvicorn --factory tests.bench.bare:bare_starlette` and `…:bare_asgi`.
"""

import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

CREATE = "/api/gigs/create/x402"
# What one of the server's own 402s weighs.
HEADER = "e" * 800
BODY = b'{"x402Version": 1, "error": "' + b"e" * 800 + b'"}'


async def _sell(request: Request) -> Response:
    json.loads(await request.body())
    return Response(BODY, 402, {"PAYMENT-REQUIRED": HEADER, "Cache-Control": "no-store"}, "application/json")


def bare_starlette() -> Starlette:
    return Starlette(routes=[Route(CREATE, _sell, methods=["POST"])])


def bare_asgi() -> ASGIApp:
    return _answer


_START = {
    "type": "http.response.start",
    "status": 402,
    "headers": [
        (b"payment-required", HEADER.encode()),
        (b"cache-control", b"no-store"),
        (b"content-type", b"application/json"),
        (b"content-length", str(len(BODY)).encode()),
    ],
}
_BODY = {"type": "http.response.body", "body": BODY}


async def _answer(_: Scope, receive: Receive, send: Send) -> None:
    """Reads the body and does not look at it."""
    while (await receive()).get("more_body"):
        pass
    await send(_START)
    await send(_BODY)
