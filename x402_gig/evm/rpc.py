"""JSON-RPC over HTTP, with two failures: the node said no, or nothing is known."""

import itertools
import logging
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson

from x402_gig.errors import ChainRefused, ChainUnavailable
from x402_gig.logs import Hiding


@contextmanager
def _no_certificates() -> Iterator[None]:
    """OpenSSL finds nothing to trust meanwhile."""
    names = ("SSL_CERT_FILE", "SSL_CERT_DIR")
    was = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(dict.fromkeys(names, os.devnull))
    try:
        yield
    finally:
        for name in names:
            del os.environ[name]
        os.environ.update(was)


# aiohttp reads the system's certificates twice as it is imported, for 40 ms. Those for a node with TLS are read below.
with _no_certificates():
    from aiohttp import ClientResponseError, ClientSession, ClientTimeout, TCPConnector

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 100
# Less than nodes, and the proxies in front of them, keep a connection that nobody uses.
KEEPALIVE_S = 4
HEADERS = {"Content-Type": "application/json"}
METHOD_NOT_FOUND = -32601


class Rpc:
    """One node. Calls are counted in `calls`; the URL, which may hold a key, appears in no message.

    The node's own words appear in no error, for strangers see those. They are logged, without what may be secret.
    """

    def __init__(self, url: str, *, timeout_s: float = 15) -> None:
        self._url = url
        self._timeout_s = timeout_s
        self._session: ClientSession | None = None
        self._ids = itertools.count(1)
        self._hiding = Hiding(url)
        # By method; what a node says again and again is logged once.
        self._said: dict[str, str] = {}
        self.calls = 0

    async def call(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        """The result of one call. It is not repeated: whether it may be depends on what it does.

        Raises ChainRefused for a JSON-RPC error and ChainUnavailable when there is no proper answer: then a
        transaction may have arrived all the same.
        """
        self.calls += 1
        try:
            response = orjson.loads(await self._post(method, params, timeout_s or self._timeout_s))
        except Exception as exc:  # noqa: BLE001 - whatever a transport throws, the answer is not known
            # `from None`: the text of a transport's error holds the RPC URL.
            raise ChainUnavailable(f"{method}: the chain node did not answer ({_kind(exc)})") from None
        if not isinstance(response, dict):
            raise ChainUnavailable(f"{method}: the chain node answered with something else than JSON-RPC")
        if error := response.get("error"):
            raise self._refused(method, error)
        if "result" not in response:
            raise ChainUnavailable(f"{method}: the chain node answered without a result")
        return response["result"]

    async def _post(self, method: str, params: Any, timeout_s: float) -> bytes:
        if self._session is None:  # made here, because it belongs to the running loop
            trusted = ssl.create_default_context() if self._url.startswith("https:") else True
            connector = TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEPALIVE_S, ssl=trusted)
            self._session = ClientSession(connector=connector, raise_for_status=True, headers=HEADERS)
        body = orjson.dumps({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})
        timeout = ClientTimeout(total=timeout_s)
        async with self._session.post(self._url, data=body, timeout=timeout, allow_redirects=False) as answer:
            return await answer.read()

    def _refused(self, method: str, error: Any) -> ChainRefused:
        fields = error if isinstance(error, dict) else {}
        code = fields.get("code")
        code = code if isinstance(code, int) else 0
        said = self._hiding.of(str(fields.get("message", "")))
        if said != self._said.get(method):
            self._said[method] = said
            # Some nodes lack a method that we can do without.
            level = logging.INFO if code == METHOD_NOT_FOUND else logging.WARNING
            log.log(level, "%s: the chain node refuses it (error %d): %s", method, code, said)
        return ChainRefused(f"{method}: the chain node refuses it (error {code})", code)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def _kind(exc: Exception) -> str:
    return f"HTTP {exc.status}" if isinstance(exc, ClientResponseError) else type(exc).__name__
