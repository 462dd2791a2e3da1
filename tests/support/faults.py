"""A bad connection to the chain: a proxy between the server and Anvil that a test tells what to break."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx

from tests.support.harness import Chain, Json


class HangUp(Exception):
    """Raised by a rule: the connection is closed without an answer."""


@dataclass
class Status(Exception):
    """Raised by a rule: an HTTP status instead of an answer."""

    code: int


@dataclass
class Then:
    """Returned by a rule: an answer, and what happens as soon as the server can read it."""

    answer: "Json | bytes"
    action: Callable[[], None]


Forward = Callable[[], Json]
# Gets the JSON-RPC request and a function that asks the chain; returns what the server is to see.
Reply = Json | bytes | Then
Rule = Callable[[Json, Forward], Reply]


@dataclass
class RpcProxy:
    """`rules` by method, `"*"` for all that have none of their own. `calls` counts what the server asked."""

    chain: Chain
    upstream: str
    rules: dict[str, Rule] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    sent: list[str] = field(default_factory=list)
    # One for all: a client of one's own for each connection takes longer to make than Anvil to answer.
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=60))

    def answer(self, body: bytes) -> Then:
        request = json.loads(body)
        method = request["method"]
        self.calls[method] += 1
        if method.startswith("eth_sendRawTransaction"):
            self.sent.append(request["params"][0])

        def forward() -> Json:
            headers = {"Content-Type": "application/json"}
            return dict(self.http.post(self.upstream, content=body, headers=headers).json())

        rule = self.rules.get(method) or self.rules.get("*")
        answer = rule(request, forward) if rule else forward()
        return answer if isinstance(answer, Then) else Then(answer, lambda: None)

    @contextmanager
    def broken(self, rule: Rule, *methods: str) -> Iterator[None]:
        """The rule holds for these methods (all, when none is named) until the context ends."""
        names = methods or ("*",)
        self.rules.update(dict.fromkeys(names, rule))
        try:
            yield
        finally:
            for name in names:
                self.rules.pop(name, None)


@contextmanager
def rpc_proxy(chain: Chain) -> Iterator[RpcProxy]:
    """`proxy.chain` is the same chain behind a connection that can be broken."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                then = proxy.answer(body)
                self._reply(200, then.answer if isinstance(then.answer, bytes) else json.dumps(then.answer).encode())
                then.action()
            except Status as status:
                self._reply(status.code, b"no")
            except (HangUp, httpx.HTTPError):
                self.close_connection = True

        def _reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body)
            except OSError:  # the server has gone
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 256

        def handle_error(self, *_: object) -> None:
            pass  # a server that was killed resets its connections

    with Server(("127.0.0.1", 0), Handler) as server:
        proxy = RpcProxy(Chain(f"http://127.0.0.1:{server.server_address[1]}"), chain.rpc_url)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield proxy
        finally:
            server.shutdown()
            proxy.http.close()


# Rules


def down(_: Json, __: Forward) -> Json:
    """Nobody answers."""
    raise HangUp


def garbage(_: Json, __: Forward) -> bytes:
    return b"<html>Bad gateway</html>"


def status(code: int) -> Rule:
    def rule(_: Json, __: Forward) -> Json:
        raise Status(code)

    return rule


def slow(seconds: float) -> Rule:
    def rule(_: Json, forward: Forward) -> Json:
        time.sleep(seconds)
        return forward()

    return rule


def lose_reply(_: Json, forward: Forward) -> Json:
    """The node does what it is asked and the answer never arrives."""
    forward()
    raise HangUp


def answers(result: object) -> Rule:
    """Always this result, whatever the truth is."""
    return lambda request, _: {"jsonrpc": "2.0", "id": request["id"], "result": result}


def refuses(code: int, message: str) -> Rule:
    return lambda request, _: {"jsonrpc": "2.0", "id": request["id"], "error": {"code": code, "message": message}}


def nothing_of_a_block(request: Json, forward: Forward) -> Reply:
    """Payments are simulated on the newest block; what is asked of a certain one, before money moves on, is lost."""
    if request["params"][1] != "latest":
        raise HangUp
    return forward()


def no_sync(request: Json, forward: Forward) -> Reply:
    """A node that does not wait for receipts (without EIP-7966)."""
    return refuses(-32601, "the method does not exist")(request, forward)


def late_receipts(seconds: float) -> Rule:
    """A node whose receipts come so long after their blocks; the nonces that they use come with the blocks."""
    known_since: dict[str, float] = {}

    def rule(request: Json, forward: Forward) -> Reply:
        answer = forward()
        if answer.get("result") is None:
            return answer
        since = known_since.setdefault(request["params"][0], time.monotonic())
        return answer if time.monotonic() >= since + seconds else answers(None)(request, forward)

    return rule


def narrow(blocks: int) -> Rule:
    """A node that tells of the logs of so many blocks at once only."""

    def rule(request: Json, forward: Forward) -> Reply:
        where = request["params"][0]
        if "fromBlock" not in where:
            return forward()
        is_open = where["toBlock"] == "latest"
        is_too_much = is_open or int(where["toBlock"], 16) - int(where["fromBlock"], 16) >= blocks
        return refuses(-32005, "range too large")(request, forward) if is_too_much else forward()

    return rule


def times(count: int, rule: Rule) -> Rule:
    """The rule for the first calls, the truth for the others."""
    left = iter(range(count))
    return lambda request, forward: rule(request, forward) if next(left, None) is not None else forward()
