"""One connection, below the application: one answer for each request, and limits for all that is no request yet.

Uvicorn's protocol class leaves both open. Its parser takes what follows an offer to upgrade for another protocol, and a
head may be as long, and come as slowly, as its sender likes.
"""

import asyncio
import json
import sys
from collections.abc import Iterator
from functools import cache
from http import HTTPStatus
from typing import cast

import httptools
from starlette.requests import Request
from starlette.types import Receive, Scope, Send
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from x402_gig.errors import BadRequest, Unavailable
from x402_gig.web.api.errors import answer_gig_error
from x402_gig.web.cors import Cors

if sys.platform != "win32":
    import resource

# Of request target and header fields; also of what comes with a body and is none (chunk extensions, trailer fields).
MAX_HEAD_BYTES = 64 * 1024
MAX_FIELDS = 128
# From its first byte to its empty line.
HEAD_S = 10
# Of answers that are not taken.
SEND_S = 60
# Bytes of answers that wait for slow clients, over all connections. A connection counts from the event loop's
# high-water mark on (64 KB), so a short answer is never given up for others.
MAX_UNSENT_BYTES = 64 * 1024 * 1024
# So long a refused client may go on sending: closing at once would take the answer away from it.
LINGER_S = 2
# Requests that wait for the answer to an earlier one of their connection.
MAX_QUEUED = 64
# Of what comes while some do.
MAX_QUEUED_BYTES = 2 * MAX_HEAD_BYTES
MAX_CONNECTIONS = 4096
# For the chain's node, the ledger, Redis, files.
OTHER_DESCRIPTORS = 256
# The parser gets no more than this at once, so that limits are looked at in between.
PIECE_BYTES = 16 * 1024

REFUSALS = {
    HTTPStatus.BAD_REQUEST: "The request is not valid HTTP",
    HTTPStatus.METHOD_NOT_ALLOWED: "Method not allowed",
    HTTPStatus.REQUEST_TIMEOUT: f"The request's headers did not arrive within {HEAD_S} s",
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE: f"The request's headers are larger than {MAX_HEAD_BYTES} bytes, "
    f"or more than {MAX_FIELDS}",
}


def raise_descriptors() -> None:
    """Allow this process the descriptors that `MAX_CONNECTIONS` take, as far as the operator's hard limit goes."""
    if sys.platform == "win32":
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_CONNECTIONS + OTHER_DESCRIPTORS
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if resource.RLIM_INFINITY != soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@cache
def most_connections() -> int:
    """How many connections may be open at once."""
    if sys.platform == "win32":
        return MAX_CONNECTIONS
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(soft - OTHER_DESCRIPTORS, soft // 2))


@cache
def most_answered() -> int:
    """How many requests are answered at once: fewer than there may be connections, so that others can be refused."""
    return most_connections() * 7 // 8


async def too_many(scope: Scope, receive: Receive, send: Send) -> None:
    """The application's place is taken by this one while `most_answered` requests are under way."""
    error = Unavailable("The server answers as many requests as it can: nothing was sent")
    await Cors(answer_gig_error(Request(scope), error))(scope, receive, send)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus) -> None:
        self.status = status


class _Trailers(list[tuple[bytes, bytes]]):
    """In place of a list of headers while there is none: fields behind a body are no headers, and nobody wants them."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        pass


_TRAILERS = _Trailers()
_TOO_LARGE = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


class Connection(HttpToolsProtocol):
    """Uvicorn's protocol class with limits, and without upgrades.

    There is a deadline while this side waits for the client: for a request, for the rest of its headers, for the rest
    of a body that is answered already, or for the client to take its last answer.
    """

    # By the loop's clock; None while a request is being answered.
    _deadline: float | None = None
    # Since the headers began, or since they ended or the last piece of a body.
    _received = 0
    # While requests wait behind the one under way.
    _queued_bytes = 0
    # The headers that the deadline is for, while they are not complete.
    _begun: list[tuple[bytes, bytes]] | None = None
    _is_refused = False
    # The request that is answered, or was last; others may wait behind it.
    _running: RequestResponseCycle | None = None
    # While its client is slow to take what is sent: gives it up,
    _sending: asyncio.TimerHandle | None = None
    # the bytes that wait, as last counted, and when they were first counted to be so few.
    _unsent = 0
    _unsent_since = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn does
        super().connection_made(transport)
        self.headers = _TRAILERS
        self._wait(self.timeout_keep_alive)
        if len(self.connections) > most_connections():
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        # Uvicorn tells the request that was read last; a payment may be under way, and that one wait behind it.
        self.cycle = self._running or self.cycle
        self.pipeline.clear()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._is_sent()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        try:
            for piece in (data,) if len(data) <= PIECE_BYTES else _pieces(data):
                self._read(piece)
        except _Refused as refused:
            self._refuse(refused.status)
        except httptools.HttpParserError as exc:
            # What a callback raises comes as the context of the parser's own error.
            why = exc.__context__
            self._refuse(why.status if isinstance(why, _Refused) else HTTPStatus.BAD_REQUEST)
        if self.pipeline:
            # Uvicorn stops reading then, and only who reads notices that a buyer has hung up.
            self.flow.resume_reading()

    def _read(self, data: bytes) -> None:
        rest = data
        while rest:
            try:
                self.parser.feed_data(rest)
                break
            except httptools.HttpParserUpgrade as offer:
                rest = self._without_offer() + rest[offer.args[0] :]
        self._received += len(data)
        self._queued_bytes = self._queued_bytes + len(data) if self.pipeline else 0
        if self._queued_bytes > MAX_QUEUED_BYTES:
            raise _Refused(HTTPStatus.BAD_REQUEST)
        if self.headers is not _TRAILERS:
            self._wait_for_headers(len(data))
        elif self._received > MAX_HEAD_BYTES + PIECE_BYTES:
            raise _Refused(_TOO_LARGE)
        elif self._is_answering():
            self._deadline = None

    def _wait_for_headers(self, received: int) -> None:
        is_new = self._begun is not self.headers
        if is_new:
            self._begun, self._received = self.headers, received
        if self._received > MAX_HEAD_BYTES + PIECE_BYTES or len(self.headers) > MAX_FIELDS:
            raise _Refused(_TOO_LARGE)
        if self._is_answering():
            self._deadline = None
        elif is_new:
            self._wait(HEAD_S)

    def _without_offer(self) -> bytes:
        """The head that was just read, without its offer to upgrade: such an offer may be ignored (RFC 9110, 7.8).

        A new parser reads it, for this one is done with the request. It finds a body where there is one.
        """
        if self.scope["method"] == "CONNECT":
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        method, version = self.scope["method"].encode(), self.scope["http_version"].encode()
        fields = [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join([method + b" " + self.url + b" HTTP/" + version, *fields, b"", b""])

    def _should_upgrade(self) -> bool:
        # Uvicorn's callbacks then leave a request with an offer alone: it comes again without.
        return True

    # The parser's callbacks

    def on_headers_complete(self) -> None:
        if len(self.headers) > MAX_FIELDS:
            raise _Refused(_TOO_LARGE)
        if self._received > MAX_HEAD_BYTES - PIECE_BYTES and self._head_bytes() > MAX_HEAD_BYTES:
            raise _Refused(_TOO_LARGE)
        if len(self.pipeline) >= MAX_QUEUED:
            raise _Refused(HTTPStatus.BAD_REQUEST)
        self.app = too_many if len(self.tasks) >= most_answered() else self.config.loaded_app
        super().on_headers_complete()
        if not self.parser.should_upgrade():
            self._received, self.headers = 0, _TRAILERS

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) for name, value in self.headers)

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        self._received = 0

    def on_response_complete(self) -> None:
        """Answer the next request, or wait for it. Uvicorn does the same with a timer for each request."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            self._wait(SEND_S)
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        else:
            self._deadline = self.loop.time() + self.timeout_keep_alive

    # Waiting for the client

    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _in_head(self) -> bool:
        """Has a request begun whose headers are not complete?"""
        return self.headers is not _TRAILERS

    def _wait(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds
        self._look_again_at(self._deadline)

    def _look_again_at(self, when: float) -> None:
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_at(when, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """The time is over, unless the deadline was moved meanwhile."""
        now = self.loop.time()
        if self._deadline is None or self._deadline > now:
            self._look_again_at(self._deadline or now + self.timeout_keep_alive)
        elif self._in_head() and not self._is_refused:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)
        else:
            self._end()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unsent, self._unsent_since = self.transport.get_write_buffer_size(), self.loop.time()
        self._sending = self.loop.call_later(SEND_S, self.transport.abort)
        self._limit_unsent()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._is_sent()
        if self.pipeline and self._running is not None and self._running.response_complete:
            self._start_asgi_task(*self.pipeline.pop())

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Answer a request once the answers before it are taken, so that no connection has two in memory."""
        if self.flow.write_paused:
            self.pipeline.append((cycle, app))
            return
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _limit_unsent(self) -> None:
        """Give up connections until no more than `MAX_UNSENT_BYTES` wait, the longest without progress first."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one._sending is not None]
        too_many = sum(one._count_unsent() for one in waiting) - MAX_UNSENT_BYTES
        for one in sorted(waiting, key=lambda one: one._unsent_since):
            if too_many <= 0:
                break
            too_many -= one._unsent
            one._is_sent()
            one.transport.abort()

    def _count_unsent(self) -> int:
        size = self.transport.get_write_buffer_size()
        if size < self._unsent:
            self._unsent, self._unsent_since = size, self.loop.time()
        return self._unsent

    def _is_sent(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    # The end

    def _make_room(self) -> None:
        """Close a sixteenth of all connections: those that have waited longest for a request."""
        waiting = [one for one in self.connections if isinstance(one, Connection) and one._deadline is not None]
        waiting.sort(key=lambda one: (one._in_head(), one._deadline))
        for one in waiting[: max(1, len(self.connections) // 16)]:
            one._end()
            self.connections.discard(one)

    def _end(self) -> None:
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        """Read nothing more from this client, and end the connection.

        The last answer is `status`, or where requests are under way, theirs: a payment's must not be lost for what
        comes behind it.
        """
        self._is_refused = True
        if self.pipeline and self.cycle.more_body:
            # The rest of the last request's body will not come.
            self.pipeline.popleft()
            self.cycle = self.pipeline[0][0] if self.pipeline else cast(RequestResponseCycle, self._running)
        if self._is_answering():
            if self._in_head() or self.pipeline or self.cycle.response_started or not self.cycle.more_body:
                self.cycle.keep_alive = False
                return
            # The rest of this request's body will not come, and this is its answer.
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        elif not self._in_head():
            self._end()
            return
        self.transport.write(_refusal(status))
        self.transport.write_eof()
        self._wait(LINGER_S)


def _pieces(data: bytes) -> Iterator[bytes]:
    return (data[start : start + PIECE_BYTES] for start in range(0, len(data), PIECE_BYTES))


@cache
def _refusal(status: HTTPStatus) -> bytes:
    body = json.dumps({"error": REFUSALS[status], "reason": BadRequest.reason}).encode()
    head = [
        f"HTTP/1.1 {status.value} {status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        "connection: close",
    ]
    return "\r\n".join([*head, "", ""]).encode() + body
