"""The listening socket."""

import socket

from x402_gig.serving import bind


def test_a_connection_sends_at_once_whatever_the_event_loop() -> None:
    with (
        bind("127.0.0.1", 0) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
