"""The peer: the official Python SDK's FastAPI middleware and its facilitator, put together as their examples show.

`uvicorn --factory tests.bench.peer:seller`, `…:facilitator` and `…:threaded_facilitator`. The examples' facilitator
blocks its event loop while it waits for the chain; the threaded one is the same without that.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import FastAPI
from pydantic import BaseModel, Field, HttpUrl
from x402 import x402Facilitator, x402FacilitatorSync, x402ResourceServer
from x402.http import FacilitatorConfig, HTTPFacilitatorClient, PaymentOption
from x402.http.middleware.fastapi import PaymentMiddlewareASGI
from x402.http.types import RouteConfig
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import ExactEvmServerScheme, register_exact_evm_facilitator
from x402.schemas import AssetAmount, PaymentRequirements, parse_payment_payload

NETWORK = "eip155:8453"
CREATE = "/api/gigs/create/x402"
USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
PRICE_UNITS = "11000000"
THREADS = 300


class Terms(BaseModel):
    """As much as the examples check; this server checks more."""

    chain: str
    token_address: str
    amount: int = Field(ge=10)
    start_time: str
    duration: str
    gig_type: str
    url: HttpUrl
    how_to_earn: str


class Payment(BaseModel):
    paymentPayload: dict[str, Any]
    paymentRequirements: dict[str, Any]


def seller() -> FastAPI:
    """Sells one thing at one price: the middleware asks for it before anybody has read the body."""
    app = FastAPI()
    server = x402ResourceServer(HTTPFacilitatorClient(FacilitatorConfig(url=os.environ["PEER_FACILITATOR"])))
    scheme: Any = ExactEvmServerScheme()  # type: ignore[no-untyped-call]
    server.register(NETWORK, scheme)
    price = AssetAmount(amount=PRICE_UNITS, asset=USDC, extra={"name": "USD Coin", "version": "2"})
    option = PaymentOption(scheme="exact", pay_to=os.environ["PEER_PAY_TO"], price=price, network=NETWORK)
    routes = {f"POST {CREATE}": RouteConfig(accepts=[option], mime_type="application/json", description="A gig")}
    app.add_middleware(PaymentMiddlewareASGI, routes=routes, server=server)

    @app.post(CREATE)
    async def create(terms: Terms) -> dict[str, Any]:
        return {"success": True, "terms": terms.model_dump(mode="json")}

    return app


def _signer() -> FacilitatorWeb3Signer:
    return FacilitatorWeb3Signer(private_key=os.environ["PEER_KEY"], rpc_url=os.environ["PEER_RPC_URL"])


def _parsed(request: Payment) -> tuple[Any, PaymentRequirements]:
    return parse_payment_payload(request.paymentPayload), PaymentRequirements.model_validate(
        request.paymentRequirements
    )


def _json(answer: BaseModel) -> dict[str, Any]:
    return answer.model_dump(mode="json", by_alias=True, exclude_none=True)


def facilitator() -> FastAPI:
    app = FastAPI()
    does_it = register_exact_evm_facilitator(x402Facilitator(), _signer(), networks=NETWORK)

    @app.post("/verify")
    async def verify(request: Payment) -> dict[str, Any]:
        return _json(await does_it.verify(*_parsed(request)))

    @app.post("/settle")
    async def settle(request: Payment) -> dict[str, Any]:
        return _json(await does_it.settle(*_parsed(request)))

    @app.get("/supported")
    async def supported() -> dict[str, Any]:
        return _json(does_it.get_supported())

    return app


@asynccontextmanager
async def _many_threads(_: FastAPI) -> AsyncIterator[None]:
    """As many as there are buyers: each waits for its block, and 40 would be all that wait at once."""
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


def threaded_facilitator() -> FastAPI:
    app = FastAPI(lifespan=_many_threads)
    does_it = register_exact_evm_facilitator(x402FacilitatorSync(), _signer(), networks=NETWORK)

    @app.post("/verify")
    def verify(request: Payment) -> dict[str, Any]:
        return _json(does_it.verify(*_parsed(request)))

    @app.post("/settle")
    def settle(request: Payment) -> dict[str, Any]:
        return _json(does_it.settle(*_parsed(request)))

    @app.get("/supported")
    def supported() -> dict[str, Any]:
        return _json(does_it.get_supported())

    return app
