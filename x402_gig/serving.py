"""HTTP around a running server."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import uvicorn
from starlette.types import ASGIApp

from x402_gig.app import open_server
from x402_gig.errors import CannotStart
from x402_gig.settings import Settings

log = logging.getLogger(__name__)

GRACE_S = 10
BACKLOG = 2048


class _Http(uvicorn.Server):
    """Uvicorn without signal handlers of its own: the command line cancels us, and all is closed in order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises CannotStart when the address cannot be had."""
    try:
        return socket.create_server((host, port), backlog=BACKLOG)
    except OSError as exc:
        raise CannotStart([f"HOST and PORT: cannot listen on {host}:{port} ({exc.strerror})"]) from None


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{host}:{port}"


@contextlib.asynccontextmanager
async def listening(app: ASGIApp, listener: socket.socket, proxies: Sequence[str] = ()) -> AsyncIterator[None]:
    """Serve HTTP until the context ends; requests under way have ten seconds to finish.

    A client's address is what its connection says, but for `proxies`: of these, the last hop of `X-Forwarded-For`
    that is none of them.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
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
    settings = load()
    with bind(settings.host, settings.port) as listener:
        async with open_server(settings) as server, listening(server.app, listener, settings.proxies):
            log.info("network %s, intake %s, listening on %s", settings.network, server.seller.pay_to, url_of(listener))
            print(f"ready {url_of(listener)}", flush=True)
            await asyncio.Event().wait()
