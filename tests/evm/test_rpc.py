"""A node that says no, and every way in which nothing is known."""

import asyncio
import json
import os
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import trustme

from tests.support.harness import Chain
from x402_gig.errors import ChainRefused, ChainUnavailable, GigError
from x402_gig.evm.rpc import Rpc

SECRET = "secret-token"
OK = {"jsonrpc": "2.0", "id": 1}


def body_of(document: Any) -> bytes:
    return json.dumps(document).encode()


@contextmanager
def answering(
    status: int, body: bytes, delay_s: float = 0, certificate: trustme.LeafCert | None = None
) -> Iterator[str]:
    """The URL of a node that gives everybody this answer, over TLS if it has a certificate."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            released.wait(delay_s)
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(BrokenPipeError):  # whoever asked has given up
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(context)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}/{SECRET}"
    finally:
        released.set()
        server.shutdown()
        server.server_close()


def call(url: str, method: str = "eth_blockNumber", *params: Any, timeout_s: float = 10) -> Any:
    async def one() -> Any:
        rpc = Rpc(url, timeout_s=timeout_s)
        try:
            return await rpc.call(method, *params)
        finally:
            await rpc.close()

    return asyncio.run(one())


def failure(url: str, **options: Any) -> GigError:
    with pytest.raises(GigError) as caught:
        call(url, **options)
    assert SECRET not in repr(caught.value) + caught.value.detail
    assert caught.value.__cause__ is None
    return caught.value


@pytest.mark.parametrize("result", ["0x10", None, [], {"a": 1}, False])
def test_a_result_is_given_as_it_is(result: Any) -> None:
    with answering(200, body_of(OK | {"result": result})) as url:
        assert call(url) == result


@pytest.mark.parametrize(("name", "is_known"), [("127.0.0.1", True), ("127.0.0.1", False), ("node.example", True)])
def test_a_node_over_tls_is_believed_when_its_certificate_is_its_own_and_trusted(
    monkeypatch: pytest.MonkeyPatch, name: str, is_known: bool
) -> None:
    authority, stranger = trustme.CA(), trustme.CA()
    with authority.cert_pem.tempfile() as trusted:
        monkeypatch.setenv("SSL_CERT_FILE", trusted)
        certificate = (authority if is_known else stranger).issue_cert(name)
        with answering(200, body_of(OK | {"result": "0x10"}), certificate=certificate) as url:
            if (name, is_known) == ("127.0.0.1", True):
                assert call(url) == "0x10"
            else:
                assert isinstance(failure(url), ChainUnavailable)


def test_importing_the_transport_leaves_the_certificates_of_others_alone() -> None:
    look = "import os, ssl, x402_gig.evm.rpc; print(os.environ.get('SSL_CERT_FILE'), 'SSL_CERT_DIR' in os.environ)"
    environment = {name: value for name, value in os.environ.items() if name != "SSL_CERT_DIR"}
    command = [sys.executable, "-c", look]
    said = subprocess.run(
        command, env=environment | {"SSL_CERT_FILE": "/mine"}, capture_output=True, text=True, check=True
    )
    assert said.stdout.split() == ["/mine", "False"]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        pytest.param(200, b"", id="nothing"),
        pytest.param(200, b"<html>Bad gateway</html>", id="not JSON"),
        pytest.param(200, b"[]", id="a list"),
        pytest.param(200, b'"0x10"', id="a string"),
        pytest.param(200, b"null", id="null"),
        pytest.param(200, body_of(OK), id="neither result nor error"),
        pytest.param(200, body_of(OK | {"error": None}), id="an error that is none"),
        pytest.param(200, b'{"result": ' + b"[" * 1_000_000, id="deep nesting"),
        pytest.param(200, b"\xff\xfe", id="not UTF-8"),
        pytest.param(429, body_of(OK | {"result": "0x10"}), id="too many requests"),
        pytest.param(500, body_of(OK | {"result": "0x10"}), id="server error"),
        pytest.param(401, body_of(OK | {"result": "0x10"}), id="unauthorized"),
    ],
)
def test_without_a_proper_answer_nothing_is_known(status: int, body: bytes) -> None:
    with answering(status, body) as url:
        assert isinstance(failure(url), ChainUnavailable)


def test_a_status_is_told() -> None:
    with answering(401, b"") as url:
        assert failure(url).detail == "eth_blockNumber: the chain node did not answer (HTTP 401)"


def test_a_port_where_nobody_listens_is_unavailable() -> None:
    assert isinstance(failure(f"http://127.0.0.1:1/{SECRET}"), ChainUnavailable)


def test_a_node_that_takes_too_long_is_unavailable() -> None:
    with answering(200, body_of(OK | {"result": "0x10"}), delay_s=30) as url:
        assert isinstance(failure(url, timeout_s=0.1), ChainUnavailable)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": -32000, "message": "nonce too low"}, (-32000, "nonce too low")),
        ({"code": 3, "message": "reverted", "data": "0x08c379a0"}, (3, "reverted")),
        ({"code": "3", "message": 5, "data": {}}, (0, "5")),
        ("no", (0, "")),
        ({"message": "x" * 500}, (0, "x" * 200)),
        ({"message": "a\nb\x1b[31m"}, (0, "a b [31m")),
    ],
)
def test_an_error_of_the_nodes_is_a_refusal_in_our_words_and_its_own_are_logged(
    caplog: pytest.LogCaptureFixture, error: Any, expected: tuple[int, str]
) -> None:
    with answering(200, body_of(OK | {"error": error})) as url:
        refused = failure(url)
    code, said = expected
    assert isinstance(refused, ChainRefused)
    assert refused.code == code
    assert refused.detail == f"eth_blockNumber: the chain node refuses it (error {code})"
    assert caplog.messages == [f"{refused.detail}: {said}"]


SECRETS = {
    "the key of the URL": (f"key {SECRET.upper()} is used up", "key … is used up"),
    "an address of the provider's": (
        "see https://rpc.example/v3/5f1c?key=1 and 192.0.2.1",
        "see … and 192.0.2.1",
    ),
    "another key": ("Invalid API key: 9aa3d95b3bc440fa88ea12eaa4456161", "Invalid API key: …"),
    "a token of a user's": ("project_id=12345678-1234-1234-1234-123456789012 denied", "… denied"),
    "a signed transaction": ("already known: 0x02f8b1822105" + "ab" * 100, "already known: …"),
    "a signature": ("invalid sender (0x" + "1f" * 65 + ")", "invalid sender (…)"),
}


@pytest.mark.parametrize(("text", "logged"), SECRETS.values(), ids=SECRETS.keys())
def test_what_may_be_secret_in_a_nodes_words_is_not_logged(
    caplog: pytest.LogCaptureFixture, text: str, logged: str
) -> None:
    with answering(200, body_of(OK | {"error": {"code": -32000, "message": text}})) as url:
        failure(url)
    assert caplog.messages == [f"eth_blockNumber: the chain node refuses it (error -32000): {logged}"]


@pytest.mark.parametrize(
    "text",
    [
        "the method eth_sendRawTransactionSync does not exist/is not available",
        "insufficient funds: balance 1000000000000000000, tx cost 21000000000000001",
        "nonce too low for 0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266: next nonce 5",
        "execution reverted: ERC20: transfer amount exceeds balance",
    ],
)
def test_what_helps_an_operator_stays_in_the_log(caplog: pytest.LogCaptureFixture, text: str) -> None:
    with answering(200, body_of(OK | {"error": {"code": -32000, "message": text}})) as url:
        failure(url)
    assert caplog.messages[0].endswith(f": {text}")


def test_what_a_node_says_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        rpc = Rpc(url)
        for method in ("eth_chainId", "eth_chainId", "eth_blockNumber", "eth_chainId"):
            with pytest.raises(ChainRefused):
                await rpc.call(method)
        await rpc.close()

    with answering(200, body_of(OK | {"error": {"code": -32000, "message": "busy"}})) as url:
        asyncio.run(ask())
    assert [message.split(":")[0] for message in caplog.messages] == ["eth_chainId", "eth_blockNumber"]


def test_a_real_node_refuses_what_it_does_not_know(chain: Chain) -> None:
    with pytest.raises(ChainRefused) as refused:
        call(chain.rpc_url, "eth_noSuchMethod")
    assert refused.value.code == -32601


def test_calls_are_counted_whatever_becomes_of_them() -> None:
    async def two() -> int:
        rpc = Rpc("http://127.0.0.1:1")
        for _ in range(2):
            with pytest.raises(ChainUnavailable):
                await rpc.call("eth_chainId")
        await rpc.close()
        return rpc.calls

    assert asyncio.run(two()) == 2
