"""Raw sockets at a real listener: one answer for each request, and an end for all that is no request."""

import asyncio
import json
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.harness import until
from tests.support.listeners import LONG, Listener, read, started
from x402_gig.web import connection
from x402_gig.web.connection import MAX_FIELDS, MAX_HEAD_BYTES, MAX_QUEUED

OFFERS = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABk\r\n",
    "websocket": "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
    "several": "Upgrade: h2c, TLS/1.0\r\nUpgrade: foo/2\r\nConnection: upgrade\r\n",
    "through a proxy": "Proxy-Connection: upgrade\r\nUPGRADE: h2c\r\n",
    "without a connection header": "Upgrade: h2c\r\n",
    "none": "",
}
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: gigs.example\r\n\r\n"
CHUNKED = b"%x\r\n%b\r\n4;note=x\r\nmore\r\n0\r\nX-Trailer: %b\r\n\r\n"
LONG_ANSWER = b"GET /long HTTP/1.1\r\nHost: gigs.example\r\nConnection: close\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: gigs.example\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def shared() -> Iterator[Listener]:
    with started() as running:
        yield running


@pytest.fixture
def listener(shared: Listener) -> Listener:
    shared.asked, shared.headers, shared.released = [], [], asyncio.Event()
    return shared


def pieces(request: bytes, size: int) -> list[bytes]:
    return [request[start : start + size] for start in range(0, len(request), size)]


def with_offer(offer: str, framing: str, path: str = "/first") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: gigs.example\r\n{offer}{framing}\r\n".encode()


# An offer to upgrade


@pytest.mark.parametrize("size", [1, 2, 7, 41, 64, 1000, 100_000])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_an_offer_to_upgrade_is_ignored_and_the_body_is_a_body(listener: Listener, offer: str, size: int) -> None:
    request = with_offer(offer, f"Content-Length: {len(SMUGGLED)}\r\n") + SMUGGLED
    answers = listener.answers(*pieces(request + LAST, size))
    assert answers == [(200, f"POST /first {SMUGGLED.decode()}"), (200, "GET /last ")]
    assert listener.asked == [("POST", "/first", SMUGGLED), ("GET", "/last", b"")]


@pytest.mark.parametrize("size", [1, 7, 41, 100_000])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_a_chunked_body_behind_an_offer_is_a_body(listener: Listener, offer: str, size: int) -> None:
    body = CHUNKED % (len(SMUGGLED), SMUGGLED, b"x")
    request = with_offer(offer, "Transfer-Encoding: chunked\r\n") + body
    assert [status for status, _ in listener.answers(*pieces(request + LAST, size))] == [200, 200]
    assert listener.asked == [("POST", "/first", SMUGGLED + b"more"), ("GET", "/last", b"")]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_requests_behind_one_another_that_all_offer_an_upgrade_are_answered_in_turn(
    listener: Listener, offer: str
) -> None:
    requests = [with_offer(offer, f"Content-Length: {n}\r\n", f"/{n}") + b"x" * n for n in range(20)]
    answers = listener.answers(*requests[:10], b"".join(requests[10:]), LAST)
    assert answers == [*((200, f"POST /{n} {'x' * n}") for n in range(20)), (200, "GET /last ")]


def test_a_body_that_comes_later_than_its_offer_is_waited_for(listener: Listener) -> None:
    with listener.connect() as client:
        client.sendall(with_offer(OFFERS["h2c"], "Expect: 100-continue\r\nContent-Length: 4\r\n"))
        assert client.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert listener.asked == []
        client.sendall(b"body" + LAST)
        assert read(client) == [(200, "POST /first body"), (200, "GET /last ")]


def test_an_offer_that_closes_is_the_last_request(listener: Listener) -> None:
    closing = OFFERS["h2c"].replace("Upgrade,", "close, Upgrade,")
    request = with_offer(closing, "Content-Length: 4\r\n") + b"body"
    assert listener.answers(request, SMUGGLED) == [(200, "POST /first body")]
    old = with_offer(OFFERS["h2c"], "Content-Length: 4\r\n").replace(b"HTTP/1.1", b"HTTP/1.0") + b"body"
    assert listener.answers(old, SMUGGLED) == [(200, "POST /first body")]
    assert [path for _, path, _ in listener.asked] == ["/first"] * 2


def test_the_application_sees_every_header_but_the_offer(listener: Listener) -> None:
    listener.answers(with_offer(OFFERS["h2c"] + "X-Api-Key: k\r\n", "Connection: close\r\nContent-Length: 0\r\n"))
    assert listener.headers == [["host", "connection", "http2-settings", "x-api-key", "connection", "content-length"]]


# What is no request


NO_REQUESTS = {
    "content-length and transfer-encoding": "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "transfer-encoding and content-length": "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
    "two lengths": "Content-Length: 3\r\nContent-Length: 0\r\n",
    "two encodings": "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
    "an encoding that does not end": "Transfer-Encoding: gzip\r\n",
    "a folded field": "X-Note: a\r\n b\r\n",
    "a folded encoding": "Transfer-Encoding:\r\n chunked\r\n",
    "a space before the colon": "Content-Length : 3\r\n",
    "a bare line feed": "X-Note: a\nContent-Length: 3\r\n",
    "a bare carriage return": "X-Note: a\rContent-Length: 3\r\n",
    "a zero byte": "X-Note: a\0b\r\n",
    "a signed length": "Content-Length: +3\r\n",
}


@pytest.mark.parametrize("offer", ["none", "h2c"])
@pytest.mark.parametrize("fields", NO_REQUESTS.values(), ids=NO_REQUESTS.keys())
def test_a_request_that_two_readers_may_read_differently_is_refused_and_nothing_after_it_is_read(
    listener: Listener, fields: str, offer: str
) -> None:
    request = with_offer(OFFERS[offer], fields)
    assert [status for status, _ in listener.answers(request + SMUGGLED, SMUGGLED)] == [400]
    assert [path for _, path, _ in listener.asked if path != "/first"] == []


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"CONNECT gigs.example:443 HTTP/1.1\r\nHost: gigs.example\r\nContent-Length: 4\r\n\r\n", 405),
        (b"CONNECT / HTTP/1.1\r\nHost: gigs.example\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n", 405),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
    ids=["CONNECT", "CONNECT with an offer", "HTTP/2", "TLS"],
)
def test_another_protocol_is_refused_and_nothing_of_it_is_a_request(
    listener: Listener, first: bytes, status: int
) -> None:
    assert [answer[0] for answer in listener.answers(first + SMUGGLED, SMUGGLED)] == [status]
    assert listener.asked == []


def test_what_follows_a_request_and_is_none_takes_no_answer_away(listener: Listener) -> None:
    request = with_offer("", "Content-Length: 4\r\n", "/wait") + b"body"
    with listener.connect() as client:
        client.sendall(request + b"} no request\r\n\r\n" + SMUGGLED)
        listener.release()
        assert read(client) == [(200, "POST /wait body")]


def test_a_body_that_breaks_off_is_no_body(listener: Listener) -> None:
    request = with_offer("", "Transfer-Encoding: chunked\r\n") + b"4\r\nbody\r\nnot a size\r\n"
    assert [status for status, _ in listener.answers(request, SMUGGLED)] == [400]
    # One of the test before may still be heard of.
    assert set(listener.asked) <= {("POST", "/first", b"(disconnected)")}


def test_a_trailer_field_is_no_header(listener: Listener) -> None:
    request = with_offer("", "Transfer-Encoding: chunked\r\nConnection: close\r\n")
    listener.answers(request + b"0\r\nX-Forwarded-For: 203.0.113.1\r\nX-Api-Key: k\r\n\r\n")
    # One of the test before may still be answered.
    assert ["host", "transfer-encoding", "connection"] in listener.headers
    assert not {"x-forwarded-for", "x-api-key"} & {name for names in listener.headers for name in names}


def test_requests_that_wait_behind_another_are_so_long(listener: Listener) -> None:
    long = with_offer("", f"Content-Length: {MAX_HEAD_BYTES}\r\n") + b"x" * MAX_HEAD_BYTES
    with listener.connect() as client:
        client.sendall(with_offer("", "Content-Length: 0\r\n", "/wait") + SMUGGLED + long * 3 + SMUGGLED)
        until(lambda: listener.asked and not unread(listener.port))
        listener.release()
        answers = read(client)
    assert [text for _, text in answers if "x" not in text] == ["POST /wait ", "GET /smuggled "]
    assert len(answers) == 4


def test_requests_that_wait_behind_another_are_so_many(listener: Listener) -> None:
    with listener.connect() as client:
        client.sendall(with_offer("", "Content-Length: 0\r\n", "/wait") + SMUGGLED * 3 * MAX_QUEUED)
        listener.release()
        answers = read(client)
    assert [status for status, _ in answers] == [200] * (1 + MAX_QUEUED)


# Limits


def head(size: int) -> bytes:
    """A request whose target and fields are that long."""
    fields = [("Host", "gigs.example"), ("Connection", "close")]
    used = len("/first") + sum(len(name + value) for name, value in fields)
    pads = 4
    each, rest = divmod(size - used, pads)
    fields += [(f"X-Pad-{n}", "x" * (each - 7 + (rest if n == 0 else 0))) for n in range(pads)]
    assert len("/first") + sum(len(name + value) for name, value in fields) == size
    return "\r\n".join(["GET /first HTTP/1.1", *(f"{n}: {v}" for n, v in fields), "", ""]).encode()


@pytest.mark.parametrize("size", [500, 16_384, 100_000])
def test_headers_may_be_as_long_as_the_limit_and_no_byte_longer(listener: Listener, size: int) -> None:
    assert listener.answers(*pieces(head(MAX_HEAD_BYTES), size)) == [(200, "GET /first ")]
    assert [status for status, _ in listener.answers(*pieces(head(MAX_HEAD_BYTES + 1), size))] == [431]


def test_headers_without_end_are_refused_while_they_come(listener: Listener) -> None:
    endless = b"GET / HTTP/1.1\r\nX-Endless: " + b"x" * 2 * MAX_HEAD_BYTES
    assert [status for status, _ in listener.answers(endless)] == [431]
    many = b"GET / HTTP/1.1\r\n" + b"".join(b"X-%d:\r\n" % n for n in range(4 * MAX_FIELDS))
    assert [status for status, _ in listener.answers(many)] == [431]


def test_there_may_be_so_many_headers(listener: Listener) -> None:
    for count, status in ((MAX_FIELDS, 200), (MAX_FIELDS + 1, 431)):
        fields = ["Connection: close", *(f"X-{n}: " for n in range(count - 1))]
        request = "\r\n".join(["GET /first HTTP/1.1", *fields, "", ""]).encode()
        assert [found for found, _ in listener.answers(request)] == [status]


@pytest.mark.parametrize("rest", [b"0\r\nX: " + b"x" * 200_000, b"4;" + b"x" * 200_000], ids=["trailer", "extension"])
def test_what_comes_with_a_body_and_is_none_has_the_same_limit(listener: Listener, rest: bytes) -> None:
    request = with_offer("", "Transfer-Encoding: chunked\r\n")
    assert [status for status, _ in listener.answers(request, rest)] == [431]
    # One of the test before may still be heard of.
    assert set(listener.asked) <= {("POST", "/first", b"(disconnected)")}


def test_headers_that_do_not_end_are_refused_after_a_while(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.2)
    for beginning in (b"G", b"GET / HTTP/1.1\r\nHost: gigs.example\r\n"):
        assert [status for status, _ in listener.answers(beginning)] == [408]


def test_headers_that_come_drop_by_drop_get_no_more_time(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_S", 0.3)
    with listener.connect() as client:
        client.settimeout(0.05)
        answer = b""
        for drop in b"GET / HTTP/1.1\r\nX-Endless: " + b"x" * 200:
            try:
                client.sendall(bytes([drop]))
                if answer := client.recv(1000):
                    break
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize("sent", [b"", b"\r\n\r\n", LAST.replace(b"Connection: close\r\n", b"")])
def test_a_connection_that_asks_for_nothing_is_closed_after_a_while(sent: bytes) -> None:
    with started(keep_alive_s=1) as listener:
        answers = listener.answers(sent)
    assert [status for status, _ in answers] == ([200] if b"GET" in sent else [])


def test_a_request_that_comes_as_its_connection_is_closed_is_answered_or_not_run() -> None:
    request = with_offer("", "Content-Length: 0\r\n")
    with started(keep_alive_s=1) as listener, ExitStack() as stack:
        clients = [stack.enter_context(listener.connect()) for _ in range(60)]
        due = time.monotonic() + 0.97
        with ThreadPoolExecutor(len(clients)) as pool:
            found = list(pool.map(lambda n: late(clients[n], request, due + n / 1000), range(len(clients))))
    assert found.count(True) == len(listener.asked)


def late(client: socket.socket, request: bytes, when: float) -> bool:
    """Is there an answer to a request that is sent at this time, before the connection is closed?"""
    time.sleep(max(0, when - time.monotonic()))
    try:
        client.sendall(request)
        return client.recv(1000).startswith(b"HTTP/1.1 200")
    except ConnectionError:
        return False


def test_a_body_that_is_answered_already_is_not_waited_for_for_ever() -> None:
    """The client goes on sending."""
    with started(keep_alive_s=1) as listener, listener.connect() as client:
        request = with_offer("", "Transfer-Encoding: chunked\r\n", "/early")
        client.sendall(request)
        client.settimeout(0.05)
        closed = False
        while not closed:
            try:
                client.sendall(b"1\r\nx\r\n")
                closed = client.recv(1000) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
    assert closed


# Answers that nobody takes


@pytest.mark.parametrize("requests", [1, 3])
@pytest.mark.parametrize("closing", ["Connection: close\r\n", ""])
def test_a_client_that_does_not_take_its_answers_is_left_after_a_while(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, closing: str, requests: int
) -> None:
    monkeypatch.setattr(connection, "SEND_S", 0.2)
    with listener.connect() as client:
        client.sendall(f"GET /long HTTP/1.1\r\nHost: gigs.example\r\n{closing}\r\n".encode() * requests)
        until(lambda: listener.asked)
        until(lambda: not established(listener.port))


def test_answers_that_nobody_takes_are_given_up_when_they_are_too_much_and_slow_readers_last(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_UNSENT_BYTES", 3 * len(LONG))
    with ExitStack() as stack:
        slow = stack.enter_context(listener.connect())
        slow.sendall(LONG_ANSWER)
        taken = 0
        deaf = [stack.enter_context(listener.connect()) for _ in range(6)]
        for count, client in enumerate(deaf, 1):
            client.sendall(LONG_ANSWER)
            until(lambda count=count: len(listener.asked) == count + 1)  # type: ignore[misc]
            while taken < count * 4_000_000:
                more = slow.recv(100_000)
                assert more
                taken += len(more)
            # A payment's answer is short.
            assert listener.answers(LAST) == [(200, "GET /last ")]
            listener.asked.pop()
        until(lambda: len(established(listener.port)) <= 4)
        while more := slow.recv(1_000_000):
            taken += len(more)
    assert taken > len(LONG)


def test_a_request_waits_until_the_answer_before_it_is_taken(listener: Listener) -> None:
    with listener.connect() as client:
        client.sendall(LONG_ANSWER.replace(b"Connection: close\r\n", b""))
        until(lambda: listener.asked)
        assert select.select([client], [], [], 20)[0]
        for _ in range(2):
            client.sendall(SMUGGLED)
            # Read after that request.
            assert listener.answers(LAST) == [(200, "GET /last ")]
        client.sendall(LAST)
        assert [path for _, path, _ in listener.asked] == ["/long", "/last", "/last"]
        lengths = [len(text) for _, text in read(client)]
    assert lengths == [len(LONG), len("GET /smuggled "), len("GET /smuggled "), len("GET /last ")]


def established(port: int) -> list[str]:
    """The server's ends of open connections to this port (proc(5): state 01)."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[1] for row in rows if int(row[1].split(":")[1], 16) == port and row[3] == "01"]


def unread(port: int) -> int:
    """Bytes that came to this port and wait to be read."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(int(row[4].split(":")[1], 16) for row in rows if int(row[1].split(":")[1], 16) == port)


# Many connections


@contextmanager
def crowded(monkeypatch: pytest.MonkeyPatch, most: int) -> Iterator[Listener]:
    """A server that may have so many connections."""
    limits = (connection.most_connections, connection.most_answered)
    with monkeypatch.context() as patched:
        patched.setattr(connection, "MAX_CONNECTIONS", most)
        for limit in limits:
            limit.cache_clear()
        with started() as running:
            yield running
    for limit in limits:
        limit.cache_clear()


def test_the_connections_that_wait_longest_make_room_for_new_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    with crowded(monkeypatch, most=16) as listener, ExitStack() as stack:
        waiting = stack.enter_context(listener.connect())
        waiting.sendall(b"POST /wait HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        until(lambda: listener.asked)
        idle = [stack.enter_context(listener.connect()) for _ in range(15)]
        until(lambda: len(established(listener.port)) == 16)
        for _ in range(10):
            assert listener.answers(LAST) == [(200, "GET /last ")]
        readable, _, _ = select.select(idle, [], [], 0)
        assert {client.recv(1) for client in readable} == {b""}
        listener.release()
        assert read(waiting) == [(200, "POST /wait ")]


def test_more_requests_than_can_be_answered_are_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with crowded(monkeypatch, most=16) as listener, ExitStack() as stack:
        clients = [stack.enter_context(listener.connect()) for _ in range(15)]
        for client in clients[:14]:
            client.sendall(with_offer("", "Content-Length: 0\r\nConnection: close\r\n", "/wait"))
        until(lambda: len(listener.asked) == 14)
        clients[14].sendall(LAST)
        refused = clients[14].makefile("rb").read()
        head, _, body = refused.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 5" in head
        assert json.loads(body)["reason"] == "unavailable"
        listener.release()
        assert [read(client) for client in clients[:14]] == [[(200, "POST /wait ")]] * 14
    assert len(listener.asked) == 14


def test_ten_thousand_connections_that_open_and_close_leave_nothing_behind(listener: Listener) -> None:
    for _ in range(100):
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(listener.connect())
    assert listener.answers(LAST) == [(200, "GET /last ")]
    until(lambda: not established(listener.port))
