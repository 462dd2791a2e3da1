"""CORS around everything: any page may call the API and read its answers."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from x402.http.constants import (
    PAYMENT_REQUIRED_HEADER,
    PAYMENT_RESPONSE_HEADER,
    PAYMENT_SIGNATURE_HEADER,
    X_PAYMENT_HEADER,
    X_PAYMENT_RESPONSE_HEADER,
)

EXPOSED_HEADERS = [
    PAYMENT_REQUIRED_HEADER,
    PAYMENT_SIGNATURE_HEADER,
    PAYMENT_RESPONSE_HEADER,
    X_PAYMENT_HEADER,
    X_PAYMENT_RESPONSE_HEADER,
    "Link",
    "Retry-After",
]

_VARY = (b"vary", b"Origin")
_FOR_PAGES = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-expose-headers", ", ".join(EXPOSED_HEADERS).encode()),
    _VARY,
]


class Cors:
    """Starlette answers preflights; the headers of all other answers are always the same, and ready-made here."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._preflights = CORSMiddleware(app, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        names = [name for name, _ in scope["headers"]]
        is_from_page = b"origin" in names
        if is_from_page and scope["method"] == "OPTIONS" and b"access-control-request-method" in names:
            await self._preflights(scope, receive, send)
            return
        added = _FOR_PAGES if is_from_page else [_VARY]

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self.app(scope, receive, send_with_cors)
