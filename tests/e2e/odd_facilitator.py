"""A facilitator over HTTP that does what a test tells it to, and remembers what it was asked."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from tests.support.harness import USDC, Json

NETWORK = "eip155:8453"
STRANGER = "0x00000000000000000000000000000000facade00"
TRANSFER = keccak(
    text="transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)",
)[:4]

# Status, headers and body of an answer; None drops the connection.
Reply = tuple[int, Json, bytes] | None
Behaviour = Callable[[Json], Reply]


def reply(document: Any, status: int = 200, **headers: str) -> Reply:
    return status, headers, document if isinstance(document, bytes) else json.dumps(document).encode()


def valid(payload: Json) -> Reply:
    """The network is left empty, as some facilitators do."""
    return reply({"isValid": True, "payer": payload["authorization"]["from"], "network": ""})


def settled(transaction: str) -> Reply:
    return reply({"success": True, "transaction": transaction, "network": ""})


def transaction_of(payload: Json) -> Json:
    """The call that executes a payment, for `Chain.send` or `eth_sendTransaction` by anybody."""
    given = payload["authorization"]
    numbers = [int(given[name]) for name in ("value", "validAfter", "validBefore")]
    types = ["address", "address", "uint256", "uint256", "uint256", "bytes32", "bytes"]
    nonce, signature = (bytes.fromhex(text[2:]) for text in (given["nonce"], payload["signature"]))
    data = TRANSFER + encode(types, [given["from"], given["to"], *numbers, nonce, signature])
    return {"sender": STRANGER, "to": USDC, "data": "0x" + data.hex()}


class OddFacilitator:
    """`verify` and `settle` get the payment's payload; `asked` lists (path, whole body)."""

    def __init__(self, settle: Behaviour) -> None:
        self.kinds: list[Json] = [{"x402Version": 2, "scheme": "exact", "network": NETWORK}]
        self.verify: Behaviour = valid
        self.settle = self._honest = settle
        self.asked: list[tuple[str, Json]] = []
        self._port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def reset(self) -> None:
        self.verify, self.settle = valid, self._honest
        self.asked.clear()

    def times(self, path: str, nonce: str | None = None) -> int:
        """How often it was asked, or asked about one authorization."""
        return sum(
            path == asked and nonce in (None, body["paymentPayload"]["payload"]["authorization"]["nonce"])
            for asked, body in self.asked
        )

    def start(self) -> None:
        handler = type("Handler", (_Handler,), {"facilitator": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self._port), handler)
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        """From here on connections are refused."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, path: str, body: Json) -> Reply:
        if path == "/supported":
            return reply({"kinds": self.kinds, "extensions": [], "signers": {}})
        self.asked.append((path, body))
        behaviour = self.verify if path == "/verify" else self.settle
        return behaviour(body["paymentPayload"]["payload"])


class _Handler(BaseHTTPRequestHandler):
    facilitator: ClassVar[OddFacilitator]

    def do_GET(self) -> None:
        self._send(self.facilitator.answer(self.path, {}))

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self._send(self.facilitator.answer(self.path, json.loads(body)))

    def _send(self, given: Reply) -> None:
        if given is None:
            self.close_connection = True
            return
        status, headers, body = given
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Not in the tests' output."""
