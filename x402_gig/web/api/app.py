"""The HTTP face: routes, the paywall in front of one of them, CORS around everything."""

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Protocol
from urllib.parse import urlencode

import orjson
from msgspec import Struct, field
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from x402_gig.errors import NotFound, ValidationFailed
from x402_gig.gigs.catalogue import GigType
from x402_gig.gigs.listing import GigQuery, Page, read_query
from x402_gig.gigs.records import GigRecord
from x402_gig.gigs.requests import StartRequest
from x402_gig.gigs.rules import RuleSet
from x402_gig.gigs.shop import GigShop
from x402_gig.gigs.views import gig_view
from x402_gig.ledger.api_keys import ApiKey
from x402_gig.market.keyed_gigs import KeyedGigs
from x402_gig.metrics import CONTENT_TYPE_LATEST
from x402_gig.payments.checkout import Checkout
from x402_gig.payments.gate import PaymentGate, parse_object, read_body_in_time
from x402_gig.payments.outcome import Settled
from x402_gig.web.api.counting import Limiter
from x402_gig.web.api.docs import docs_routes
from x402_gig.web.api.errors import HANDLERS
from x402_gig.web.api.keys import Keys, key_of
from x402_gig.web.api.limits import Limits
from x402_gig.web.api.shortcut import Shortcut
from x402_gig.web.cors import Cors

LIST = "/api/gigs"
CREATE = "/api/gigs/create/x402"
# Read and written out at the same time: as many as the ledger's reading threads. Each takes some megabytes.
LISTS_AT_ONCE = 2


class GigFinder(Protocol):
    async def __call__(self, gig_id: int, key_id: int | None) -> GigRecord | None: ...


class GigLister(Protocol):
    async def __call__(self, wanted: GigQuery, now: datetime, key_id: int | None) -> Page: ...


class Readiness(Struct, frozen=True):
    """`problems` keep the server from selling; `warnings` do not."""

    problems: dict[str, str]
    warnings: dict[str, str]


class Probes(Struct, frozen=True):
    """What the operator's machines ask: can it sell, and how is it doing (in Prometheus's text)?"""

    readiness: Callable[[], Awaitable[Readiness]]
    metrics: Callable[[], Awaitable[bytes]]


class Api(Struct, frozen=True):
    """The endpoints and what they need."""

    checkout: Checkout
    shop: GigShop
    keyed: KeyedGigs
    keys: Keys
    limiter: Limiter
    find_gig: GigFinder
    list_gigs: GigLister
    probes: Probes
    public_url: str
    _listing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(LISTS_AT_ONCE))

    async def create_gig(self, request: Request) -> Response:
        """Behind the paywall: the gig was made by the transaction that settled its payment."""
        purchase: Settled = request.state.purchase
        # Not part of the kept answer: a reorganisation may move the deposit to another transaction.
        payment = {
            "payer": purchase.payer,
            "transaction": purchase.transaction,
            "network": self.checkout.seller.network.caip2,
        }
        return JSONResponse(purchase.answer | {"payment": payment})

    async def create_unfunded(self, request: Request) -> Response:
        key = key_of(request)
        return JSONResponse(await self.keyed.create(key.id, await _object(request)), 201)

    async def start_gig(self, request: Request) -> Response:
        key = key_of(request)
        gig_id = _gig_id(await _object(request))
        await self.keyed.start(key.id, gig_id)
        return JSONResponse({"data": {"message": "Gig started successfully", "gig_id": gig_id}})

    async def show_gig(self, request: Request) -> Response:
        gig_id = request.path_params["gig_id"]
        if not re.fullmatch("[0-9]{1,100}", gig_id):
            raise HTTPException(404)
        key: ApiKey | None = request.state.api_key
        # Longer than any id, and not worth a conversion.
        gig = await self.find_gig(int(gig_id), key.id if key else None) if len(gig_id) < 20 else None
        if gig is None:
            raise NotFound(f"Gig with id {gig_id} not found")
        return JSONResponse({"data": self._view(gig, self.shop.clock())})

    async def show_types(self, request: Request) -> Response:
        return JSONResponse({"data": list(GigType)})

    async def show_gigs(self, request: Request) -> Response:
        parameters = request.query_params.multi_items()
        now, wanted = self.shop.clock(), read_query(parameters)
        # Those that are not started are nobody's but their key's.
        key = key_of(request) if wanted.status == "created" else None
        async with self._listing:
            page = await self.list_gigs(wanted, now, key.id if key else None)
            url = self._next_url(parameters, page.cursor) if page.cursor else None
            # Off the event loop: 500 gigs with long texts are some megabytes.
            body = await asyncio.to_thread(self._shown, page, now, url)
        return Response(body, media_type="application/json", headers={"Link": f'<{url}>; rel="next"'} if url else None)

    def _shown(self, page: Page, now: datetime, url: str | None) -> bytes:
        """One client reads `data`, an older one `gigs`: the same bytes."""
        gigs = orjson.dumps([self._view(gig, now) for gig in page.gigs])
        return b'{"data":%b,"gigs":%b,"next":%b}' % (gigs, gigs, orjson.dumps(url))

    def _view(self, gig: GigRecord, now: datetime) -> dict[str, Any]:
        view = gig_view(gig, self.shop.chain_id, self.shop.token_address, now)
        return view | self.keyed.to_be_paid(gig) if gig.state == "created" else view

    def _next_url(self, parameters: list[tuple[str, str]], cursor: int) -> str:
        kept = [(name, value) for name, value in parameters if name != "cursor"]
        return f"{self.public_url.rstrip('/')}{LIST}?{urlencode([*kept, ('cursor', cursor)], safe=',')}"

    async def healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        ready = await self.probes.readiness()
        status = "unavailable" if ready.problems else "degraded" if ready.warnings else "ready"
        body = {"status": status, "problems": ready.problems, "warnings": ready.warnings}
        return JSONResponse(body, 503 if ready.problems else 200)

    async def metrics(self, request: Request) -> Response:
        return Response(await self.probes.metrics(), media_type=CONTENT_TYPE_LATEST)

    def _document(self, rules: RuleSet) -> bytes:
        # Not at every start: importing what describes the API takes longer than describing it.
        from x402_gig.web.api.openapi import Document

        return Document(self.shop, rules, self.checkout.seller, self.public_url).content

    def build(self) -> ASGIApp:
        paywall = Middleware(PaymentGate, product=self.shop, checkout=self.checkout, public_url=self.public_url)
        create = Route(CREATE, self.create_gig, methods=["POST"], middleware=[paywall])
        document = lru_cache(maxsize=1)(self._document)
        routes = [
            Route("/api/gigs/create", self.create_unfunded, methods=["POST"]),
            Route("/api/gigs/start", self.start_gig, methods=["POST"]),
            Route(LIST, self.show_gigs),
            Route("/api/gigs/types", self.show_types),
            Route("/api/gigs/{gig_id}", self.show_gig),
            Route("/healthz", self.healthz),
            Route("/readyz", self.readyz),
            Route("/metrics", self.metrics),
            *docs_routes(lambda: document(self.shop.rules.current)),
        ]
        limits = Middleware(Limits, keys=self.keys, limiter=self.limiter)
        app = Starlette(routes=[create, *routes], middleware=[limits], exception_handlers=HANDLERS)
        # A redirect would name the host of the request, not the public one, and lose the payment on the way.
        app.router.redirect_slashes = False
        # Outermost, so that errors of every kind carry the headers too.
        return Cors(Shortcut(app, path=CREATE, paywall=create.app, limiter=self.limiter))


def _gig_id(body: Mapping[str, Any]) -> int:
    try:
        return StartRequest.model_validate(body).gig_id
    except ValidationError:
        raise ValidationFailed(["Invalid gig id"]) from None


async def _object(request: Request) -> Mapping[str, Any]:
    """The body's JSON object, whatever its content type. Raises BadRequest."""
    return parse_object(await read_body_in_time(request.receive))
