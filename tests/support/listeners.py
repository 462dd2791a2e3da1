"""A real listener around an application that says what it was asked, and raw sockets to ask it."""

import asyncio
import re
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import uvloop
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from x402_gig.server.http import bind, listening

# More than the kernel keeps for a client that reads nothing.
LONG = "x" * 30_000_000


@dataclass
class Listener:
    """An application that answers with the body it got, `/wait` when it is `released`, `/early` without reading it."""

    port: int = 0
    asked: list[tuple[str, str, bytes]] = field(default_factory=list)
    headers: list[list[str]] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    loop: asyncio.AbstractEventLoop | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            body = await request.body() if request.url.path != "/early" else b""
        except ClientDisconnect:
            body = b"(disconnected)"
        self.asked.append((request.method, request.url.path, body))
        self.headers.append([name.lower() for name in request.headers])
        if request.url.path == "/wait":
            await self.released.wait()
        text = LONG if request.url.path == "/long" else f"{request.method} {request.url.path} {body.decode('latin-1')}"
        await PlainTextResponse(text)(scope, receive, send)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def release(self) -> None:
        assert self.loop is not None
        self.loop.call_soon_threadsafe(self.released.set)

    def answers(self, *pieces: bytes) -> list[tuple[int, str]]:
        """Status and body of all answers until the server closes the connection."""
        with self.connect() as client:
            send(client, pieces)
            return read(client)


def send(client: socket.socket, pieces: Sequence[bytes]) -> None:
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        try:
            client.sendall(piece)
        except OSError:  # it has had enough
            return


def read(client: socket.socket) -> list[tuple[int, str]]:
    received = client.makefile("rb").read()
    found, answers = received, []
    while found:
        head, _, rest = found.partition(b"\r\n\r\n")
        [length] = re.findall(rb"content-length: (\d+)", head)
        answers.append((int(head.split()[1]), rest[: int(length)].decode("latin-1")))
        found = rest[int(length) :]
    return answers


@contextmanager
def started(keep_alive_s: int = 75) -> Iterator[Listener]:
    listener, ready, ended = Listener(), threading.Event(), threading.Event()

    async def serve() -> None:
        listener.loop = asyncio.get_running_loop()
        with bind("127.0.0.1", 0) as bound:
            listener.port = bound.getsockname()[1]
            async with listening(listener, bound, keep_alive_s=keep_alive_s):
                ready.set()
                await asyncio.to_thread(ended.wait)

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(20)
    try:
        yield listener
    finally:
        listener.release()
        ended.set()
        thread.join(20)
