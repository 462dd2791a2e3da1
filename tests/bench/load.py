"""Many buyers at once: keep-alive connections that each send the next request as soon as their last one is answered.

Plain sockets and one selector: an HTTP client would be the bottleneck. This takes some 25 µs for a request.
"""

import re
import selectors
import socket
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median, quantiles
from typing import NamedTuple

# What is not answered so long after the end, or after the last answer to anybody, is not answered.
PATIENCE_S = 60
KEPT = 5
_STATUS = slice(len("HTTP/1.1 "), len("HTTP/1.1 200"))
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"

# Host and port.
Address = tuple[str, int]


@dataclass
class Tally:
    """What a load came to. `answers` counts by status, 0 for a connection that was closed instead.

    The first answers are `kept`, the wanted ones and the `odd` ones. Whoever pays fills in what it cost the servers,
    `cpu_s`, how many `calls` they made of their node until the last answer, and how many payments moved money and were
    not answered with what they bought, `unserved`.
    """

    wanted: int
    seconds: float = 0
    in_time: int = 0
    cpu_s: float = 0
    calls: int = 0
    unserved: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    latencies_s: list[float] = field(default_factory=list)
    kept: list[bytes] = field(default_factory=list)
    odd: list[bytes] = field(default_factory=list)

    @property
    def good(self) -> int:
        return self.answers[self.wanted]

    @property
    def errors(self) -> int:
        return self.answers.total() - self.good

    @property
    def rate(self) -> float:
        """Good answers a second."""
        return self.in_time / self.seconds

    @property
    def cpu_ms(self) -> float:
        """Of an answer."""
        return 1000 * self.cpu_s / max(self.answers.total(), 1)

    @property
    def p50_ms(self) -> float:
        return 1000 * median(self.latencies_s or [0])

    @property
    def p95_ms(self) -> float:
        return 1000 * (quantiles(self.latencies_s, n=20)[-1] if len(self.latencies_s) > 1 else sum(self.latencies_s))


class _Buyer:
    """One connection."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.socket = socket.create_connection(address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent_at = 0.0
        self.received = b""

    def send(self, request: bytes) -> None:
        self.received = b""
        self.sent_at = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bytes | None:
        """The whole answer, None while there is more to come; empty when the server has closed the connection."""
        try:
            chunk = self.socket.recv(65536)
        except ConnectionError:
            return b""
        self.received = self.received + chunk if self.received else chunk
        return self.received if not chunk or _is_whole(self.received) else None


class _End(NamedTuple):
    """When no more requests are sent, and whether answers after that count for the rate."""

    at: float
    is_by_clock: bool


def _is_whole(answer: bytes) -> bool:
    head = answer.find(b"\r\n\r\n")
    if head < 0:
        return False
    length = _LENGTH.search(answer, 0, head)
    return len(answer) >= head + 4 + int(length[1]) if length else answer.endswith(_LAST_CHUNK)


def run(
    addresses: Sequence[Address],
    requests: Iterable[bytes],
    *,
    buyers: int,
    wanted: int,
    seconds: float | None = None,
) -> Tally:
    """Send `requests`, from so many buyers spread over `addresses`, until they or the seconds are over.

    With `seconds` the rate is that of the answers within them; those under way are waited for all the same, a minute.
    """
    tally, left = Tally(wanted), iter(requests)
    everybody = [_Buyer(addresses[number % len(addresses)]) for number in range(buyers)]
    with selectors.DefaultSelector() as selector:
        started = time.perf_counter()
        end = _End(started + (seconds or float("inf")), seconds is not None)
        for buyer in everybody:
            selector.register(buyer.socket, selectors.EVENT_READ, buyer)
            _next(buyer, left, end, selector)
        while selector.get_map() and time.perf_counter() < end.at + PATIENCE_S:
            if not _step(selector, tally, left, end):
                break
        tally.answers[0] += _give_up(selector)
        tally.seconds = seconds or time.perf_counter() - started
    return tally


def _step(selector: selectors.BaseSelector, tally: Tally, left: Iterator[bytes], end: _End) -> bool:
    """Take the answers that are there; False when there are none for long."""
    ready = selector.select(PATIENCE_S)
    for key, _ in ready:
        buyer: _Buyer = key.data
        answer = buyer.receive()
        if answer is not None:
            _count(tally, buyer, answer, end)
            _next(buyer if answer else _again(buyer, selector), left, end, selector)
    return bool(ready)


def _count(tally: Tally, buyer: _Buyer, answer: bytes, end: _End) -> None:
    now = time.perf_counter()
    status = int(answer[_STATUS]) if answer else 0
    tally.answers[status] += 1
    if status == tally.wanted:
        tally.latencies_s.append(now - buyer.sent_at)
        tally.in_time += not end.is_by_clock or now <= end.at
    kept = tally.kept if status == tally.wanted else tally.odd
    if len(kept) < KEPT:
        kept.append(answer)


def _again(buyer: _Buyer, selector: selectors.BaseSelector) -> _Buyer:
    """In place of a connection that was closed."""
    _leave(buyer, selector)
    new = _Buyer(buyer.address)
    selector.register(new.socket, selectors.EVENT_READ, new)
    return new


def _give_up(selector: selectors.BaseSelector) -> int:
    """Leave everybody who still waits; how many that are."""
    waiting = [key.data for key in selector.get_map().values()]
    for buyer in waiting:
        _leave(buyer, selector)
    return len(waiting)


def _leave(buyer: _Buyer, selector: selectors.BaseSelector) -> None:
    selector.unregister(buyer.socket)
    buyer.socket.close()


def _next(buyer: _Buyer, left: Iterator[bytes], end: _End, selector: selectors.BaseSelector) -> None:
    request = next(left, None) if time.perf_counter() < end.at else None
    if request is not None:
        buyer.send(request)
    else:
        _leave(buyer, selector)


def post(address: Address, path: str, body: bytes, headers: str = "") -> bytes:
    """A request as it goes over the wire; `headers` are whole lines."""
    host, port = address
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def get(address: Address, path: str) -> bytes:
    host, port = address
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
