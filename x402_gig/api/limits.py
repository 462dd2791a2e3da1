"""Who asks, and whether they ask too often: a pure-ASGI middleware around the API, and nothing else of the server."""

from ipaddress import IPv6Address, ip_address

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from x402_gig.api.counting import Limiter
from x402_gig.api.errors import answer_gig_error
from x402_gig.api.keys import Keys
from x402_gig.errors import GigError

LIMITED = "/api/"
# The /64 of an IPv6 address: a subscriber has at least that much.
NETWORK = 0xFFFF_FFFF_FFFF_FFFF << 64


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
        request = Request(scope)
        try:
            key = await self._keys.find(request.headers)
            await self._limiter.count(key.id if key else None, address_of(scope))
        except GigError as exc:
            await answer_gig_error(request, exc)(scope, receive, send)
            return
        request.state.api_key = key
        await self._app(scope, receive, send)


def address_of(scope: Scope) -> str:
    """Whoever is counted as one: an IPv4 address, or a network of IPv6. All who have neither are one, too."""
    try:
        address = ip_address(scope["client"][0] if scope.get("client") else "")
    except ValueError:
        return "none"
    if isinstance(address, IPv6Address):
        return str(address.ipv4_mapped or IPv6Address(int(address) & NETWORK))
    return str(address)
