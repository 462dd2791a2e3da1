"""The listening socket, and the application for an ASGI server of one's own."""

import asyncio
import socket
from typing import Any

import httpx
import pytest
from starlette.responses import PlainTextResponse

from x402_gig.server.http import Worker, bind


def test_a_connection_sends_at_once_whatever_the_event_loop() -> None:
    with (
        bind("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c"}, 400),
        ({"Proxy-Connection": "upgrade", "Upgrade": "websocket"}, 400),
        ({"Upgrade": "h2c", "Connection": "keep-alive"}, 200),
        ({"Connection": "upgrade"}, 200),
    ],
)
def test_a_worker_behind_another_parser_ends_the_connection_of_an_upgrade(headers: Any, status: int) -> None:
    async def ask() -> httpx.Response:
        worker = Worker()
        worker._app = PlainTextResponse("answered")
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=worker), base_url="http://gigs.example") as http:
            return await http.post("/", headers=headers)

    answer = asyncio.run(ask())
    assert (answer.status_code, answer.headers.get("Connection")) == (status, "close" if status == 400 else None)
