"""JSON-RPC over web3's HTTP provider, with two failures: the node said no, or nothing is known."""

import asyncio
import sys
from typing import Any

from web3 import AsyncHTTPProvider
from web3.types import RPCEndpoint

from x402_gig.errors import ChainRefused, ChainUnavailable

# Python's own, which web3's imports raise a hundredfold: an answer nested deeply enough would end the process.
sys.setrecursionlimit(1000)


class Rpc:
    """One node. Calls are counted in `calls`; the URL, which may hold a key, appears in no message."""

    def __init__(self, url: str, *, timeout_s: float = 15) -> None:
        # No retry below us: whether a call may be repeated depends on what it does.
        self._provider = AsyncHTTPProvider(url, exception_retry_configuration=None)
        self._timeout_s = timeout_s
        self.calls = 0

    async def call(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        """The result of one call.

        Raises ChainRefused for a JSON-RPC error and ChainUnavailable when there is no proper answer: then a
        transaction may have arrived all the same.
        """
        self.calls += 1
        try:
            async with asyncio.timeout(timeout_s or self._timeout_s):
                response = await self._provider.make_request(RPCEndpoint(method), params)
        except asyncio.CancelledError:
            raise
        except Exception as exc:  # noqa: BLE001 - whatever a transport throws, the answer is not known
            # `from None`: the text of a transport's error holds the RPC URL.
            raise ChainUnavailable(f"{method}: the chain node did not answer ({type(exc).__name__})") from None
        if not isinstance(response, dict):
            raise ChainUnavailable(f"{method}: the chain node answered with something else than JSON-RPC")
        if error := response.get("error"):
            raise _refused(method, error)
        if "result" not in response:
            raise ChainUnavailable(f"{method}: the chain node answered without a result")
        return response["result"]

    async def close(self) -> None:
        await self._provider.disconnect()


def _refused(method: str, error: Any) -> ChainRefused:
    fields = error if isinstance(error, dict) else {}
    message = str(fields.get("message", "error"))[:200]
    data = fields.get("data")
    code = fields.get("code")
    return ChainRefused(
        f"{method}: {message}",
        code=code if isinstance(code, int) else 0,
        data=data if isinstance(data, str) else "",
    )
