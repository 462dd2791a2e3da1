"""Who asks, and whether they ask too often: a pure-ASGI middleware around the API, and nothing else of the server."""

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from x402_gig.errors import GigError
from x402_gig.web.api.counting import Limiter
from x402_gig.web.api.errors import answer_gig_error
from x402_gig.web.api.keys import HEADER, Keys

LIMITED = "/api/"
LONGEST_ADDRESS = 100


class Limits:
    """Counts a request by its API key, or by its client's address when it carries none that may be used.

    `request.state.api_key` is the key, or None, from here on.
    """

    def __init__(self, app: ASGIApp, *, keys: Keys, limiter: Limiter) -> None:
        self._app = app
        self._keys = keys
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(LIMITED):
            await self._app(scope, receive, send)
            return
        presented = [value.decode("latin-1") for name, value in scope["headers"] if name == HEADER]
        try:
            key = await self._keys.find(presented) if presented else None
            await self._limiter.count(key.id if key else None, *networks_of(scope))
        except GigError as exc:
            await answer_gig_error(Request(scope), exc)(scope, receive, send)
            return
        scope.setdefault("state", {})["api_key"] = key
        await self._app(scope, receive, send)


def networks_of(scope: Scope) -> tuple[str, ...]:
    """By what a client is counted: an IPv4 address, or the /64 and the /48 of an IPv6 address.

    All who have neither are one client.
    """
    client = scope.get("client")
    host = client[0] if client else ""
    return _networks_of(host if len(host) <= LONGEST_ADDRESS else "")


@lru_cache(maxsize=4096)
def _networks_of(host: str) -> tuple[str, ...]:
    try:
        address = ip_address(host)
    except ValueError:
        return ("none",)
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return tuple(f"{IPv6Address(int(address) >> rest << rest)}/{128 - rest}" for rest in (64, 80))
    return (str(address if isinstance(address, IPv4Address) else address.ipv4_mapped),)
