"""HTTP around a running server."""

import asyncio
import contextlib
import gc
import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from x402_gig import logs, settings
from x402_gig.errors import CannotStart
from x402_gig.server.lifecycle import open_server
from x402_gig.settings import KEEP_ALIVE_S, Settings
from x402_gig.web.connection import Connection, raise_descriptors

log = logging.getLogger(__name__)

GRACE_S = 10
BACKLOG = 2048
# Objects made before garbage is looked for. Hardly any of ours refer to each other in circles, and at Python's 700 a
# busy server spends 8 % of its time on looking.
GARBAGE = 10_000
PROTOCOL = "x402_gig.serving:Connection"
CLOSING = JSONResponse({"error": "An upgrade is not possible", "reason": "bad_request"}, 400, {"Connection": "close"})


class _Http(uvicorn.Server):
    """Uvicorn without signal handlers of its own: the command line cancels us, and all is closed in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotStart when the address cannot be had."""
    try:
        listener = socket.create_server((host, port), backlog=BACKLOG)
    except OSError as exc:
        raise CannotStart([f"HOST and PORT: cannot listen on {host}:{port} ({exc.strerror})"]) from None
    # Connections inherit it. uvloop sets it anyway; asyncio's own loop does not for a socket like this, and then an
    # answer's second packet waits 40 ms until the client has acknowledged the first.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def listening(
    app: ASGIApp, listener: socket.socket, proxies: Sequence[str] = (), keep_alive_s: int = KEEP_ALIVE_S
) -> AsyncIterator[None]:
    """Serve HTTP until the context ends; requests under way have ten seconds to finish.

    A client's address is what its connection says, but for `proxies`: of these, the last hop of `X-Forwarded-For`
    that is none of them.
    """
    raise_descriptors()
    config = uvicorn.Config(
        app,
        http=Connection,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_keep_alive=keep_alive_s,
        timeout_graceful_shutdown=GRACE_S,
        server_header=False,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
    )
    http = _Http(config)
    task = asyncio.create_task(http.serve([listener]), name="http")
    try:
        yield
    finally:
        http.should_exit = True
        await task


async def serve(load: Callable[[], Settings]) -> None:
    """Serve until cancelled. Raises CannotStart."""
    gc.set_threshold(GARBAGE)
    loaded = load()
    with bind(loaded.host, loaded.port) as listener:
        async with (
            open_server(loaded) as server,
            listening(server.app, listener, loaded.proxies, loaded.keep_alive_s),
        ):
            network, intake = server.settings.network, server.seller.pay_to
            log.info("network %s, intake %s, listening on %s", network, intake, url_of(listener))
            print(f"ready {url_of(listener)}", flush=True)
            await asyncio.Event().wait()


def app() -> ASGIApp:
    """The application of one worker among several: see `x402_gig.serving`."""
    gc.set_threshold(GARBAGE)
    raise_descriptors()
    logs.configure(logging.INFO, as_json=True)
    return Worker()


def _offers_upgrade(scope: Scope) -> bool:
    """`Connection` lets no such request through; uvicorn's own class takes its body for another request."""
    if all(name != b"upgrade" for name, _ in scope["headers"]):
        return False
    return any(name.endswith(b"connection") and b"upgrade" in value.lower() for name, value in scope["headers"])


class Worker:
    """A server that lives as long as ASGI's lifespan says."""

    def __init__(self) -> None:
        self._app: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif _offers_upgrade(scope):
            log.warning("a request was refused that offers an upgrade: start uvicorn with --http %s", PROTOCOL)
            await CLOSING(scope, receive, send)
        elif self._app is not None:
            await self._app(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._serve(receive, send)
        except CannotStart as exc:
            await send({"type": "lifespan.startup.failed", "message": "\n".join(["Cannot start:", *exc.problems])})
        except BaseException:
            # What works in the background has failed, and whoever serves HTTP must not go on without it.
            signal.raise_signal(signal.SIGTERM)
            raise
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _serve(self, receive: Receive, send: Send) -> None:
        loaded = settings.load()
        async with open_server(loaded) as server:
            self._app = cast(ASGIApp, ProxyHeadersMiddleware(cast(Any, server.app), loaded.proxies))
            log.info("network %s, intake %s", server.settings.network, server.seller.pay_to)
            await send({"type": "lifespan.startup.complete"})
            await receive()
