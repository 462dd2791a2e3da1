"""CORS around everything: any page may call the API and read its answers."""

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_VARY = (b"vary", b"Origin")


class Cors:
    """Starlette answers preflights; the headers of all other answers are always the same, and ready-made here."""

    def __init__(self, app: ASGIApp, expose_headers: list[str]) -> None:
        self.app = app
        self._preflights = CORSMiddleware(app, allow_origins=["*"], allow_methods=["*"], allow_headers=["*"])
        self._for_pages = [
            (b"access-control-allow-origin", b"*"),
            (b"access-control-expose-headers", ", ".join(expose_headers).encode()),
            _VARY,
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        names = [name for name, _ in scope["headers"]]
        is_from_page = b"origin" in names
        if is_from_page and scope["method"] == "OPTIONS" and b"access-control-request-method" in names:
            await self._preflights(scope, receive, send)
            return
        added = self._for_pages if is_from_page else [_VARY]

        async def send_with_cors(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *added]
            await send(message)

        await self.app(scope, receive, send_with_cors)
