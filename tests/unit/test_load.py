"""The bench's own buyers: every answer is counted for what it was."""

import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.bench import load
from tests.bench.load import Address, get, post


class Handler(BaseHTTPRequestHandler):
    """`/200` is answered with 200, and `/0` not at all."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        status = int(self.path[1:])
        if not status:
            self.close_connection = True
            return
        body = b"x" * 200_000
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[Address]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield "127.0.0.1", server.server_address[1]
        server.shutdown()


def test_wanted_answers_others_and_hang_ups_are_told_apart(address: Address) -> None:
    asked = [post(address, f"/{status}", b"{}") for status in (200, 500, 0, 200, 402, 200)]
    tally = load.run([address], asked, buyers=2, wanted=200)
    assert +tally.answers == Counter({200: 3, 500: 1, 402: 1, 0: 1})
    assert (tally.good, tally.errors, len(tally.latencies_s), len(tally.odd)) == (3, 3, 3, 3)
    assert tally.rate == pytest.approx(3 / tally.seconds)


def test_with_seconds_it_ends_by_the_clock(address: Address) -> None:
    tally = load.run([address], iter(lambda: get(address, "/200"), b""), buyers=3, wanted=200, seconds=0.3)
    assert tally.seconds == 0.3
    # What was under way at the end is waited for, and not in the rate.
    assert tally.good - 3 <= tally.in_time <= tally.good
    assert tally.errors == 0
