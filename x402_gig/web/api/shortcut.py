"""A short way to the paywall for whoever asks for the price: past what Starlette does for routes of any kind."""

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from x402_gig.errors import GigError
from x402_gig.payments.gate import PAYMENT_HEADERS
from x402_gig.web.api.counting import Limiter
from x402_gig.web.api.errors import answer_bug, answer_gig_error
from x402_gig.web.api.keys import HEADER
from x402_gig.web.api.limits import networks_of

# Whoever sends one of these pays, or is counted by a key.
_KNOWN_BY = PAYMENT_HEADERS | {HEADER}


class Shortcut:
    """Leads an unpaid POST of `path` to `paywall`, and everything else to `app`, which would answer the same.

    Without a payment the paywall answers with one message at its very end: whatever it raises, nothing is sent yet.
    """

    def __init__(self, app: ASGIApp, *, path: str, paywall: ASGIApp, limiter: Limiter) -> None:
        self.app = app
        self._path = path
        self._paywall = paywall
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._is_for_price(scope):
            await self.app(scope, receive, send)
            return
        try:
            await self._limiter.count(None, *networks_of(scope))
            await self._paywall(scope, receive, send)
        except GigError as exc:
            await answer_gig_error(Request(scope), exc)(scope, receive, send)
        except Exception as exc:  # as Starlette does: the answer of a bug, and the bug for the log
            await answer_bug(Request(scope), exc)(scope, receive, send)
            raise

    def _is_for_price(self, scope: Scope) -> bool:
        if scope["type"] != "http" or scope["path"] != self._path or scope["method"] != "POST":
            return False
        return _KNOWN_BY.isdisjoint([name for name, _ in scope["headers"]])
