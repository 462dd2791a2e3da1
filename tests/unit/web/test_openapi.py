"""The API's document agrees with itself, with the routes and with what reads a request."""

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from eth_account import Account
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.routing import Route

from tests.support.harness import Json
from x402_gig.gigs.catalogue import GigType
from x402_gig.gigs.records import TokenInfo
from x402_gig.gigs.terms import KeyLimits, read_terms
from x402_gig.ledger.engine import Ledger
from x402_gig.payments import jsontext
from x402_gig.server.wiring import Server, build
from x402_gig.settings import load

BUY, CREATE = "/api/gigs/create/x402", "/api/gigs/create"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Of an operator with prices of their own. It is not started."""
    settings = load(
        network="base-sepolia",
        rpc_url="http://127.0.0.1:1",
        seed=Account.create_with_mnemonic()[1],
        commission_address=Account.create().address,
        public_url="https://gigs.example",
        minimum_reward="20.5",
        maximum_reward=3000,
        commission_bps=500,
        max_timeout_s=90,
    )
    ledger = Ledger(f"sqlite:///{tmp_path_factory.mktemp('server')}/ledger.db")
    yield build(settings, ledger)
    ledger.close()


@pytest.fixture(scope="module")
def routes(server: Server) -> list[Route]:
    starlette: Any = server.app
    return [route for route in starlette.app.app.routes if isinstance(route, Route)]


@pytest.fixture(scope="module")
def answer(server: Server) -> httpx.Response:
    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(server.app)) as client:
            return await client.get("http://gigs.example/openapi.json")

    return asyncio.run(ask())


@pytest.fixture(scope="module")
def document(answer: httpx.Response) -> Json:
    return dict(answer.json())


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def bodies(document: Json) -> Iterator[tuple[str, Json]]:
    """Every JSON body that is described: its place, and its media type object."""
    for name, operation in operations(document):
        described = {"request": operation.get("requestBody", {})} | operation["responses"]
        for place, body in described.items():
            if media := body.get("content", {}).get("application/json"):
                yield f"{name} {place}", media


def test_it_is_openapi_3_1(document: Json) -> None:
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()


def test_it_may_be_kept_for_five_minutes(answer: httpx.Response) -> None:
    assert answer.headers["Cache-Control"] == "public, max-age=300"
    assert answer.headers["Content-Type"] == "application/json"


def test_every_route_is_described_and_nothing_else(document: Json, routes: list[Route]) -> None:
    served = {f"{m} {r.path}" for r in routes if r.include_in_schema for m in (r.methods or set()) - {"HEAD"}}
    assert {name for name, _ in operations(document)} == served


def test_everything_has_an_example_and_every_example_is_what_it_shows(document: Json) -> None:
    for place, media in bodies(document):
        assert media["examples"], place
        schema = media["schema"] | {"components": document["components"]}
        for name, example in media["examples"].items():
            problems = [error.message for error in OAS31Validator(schema).iter_errors(example["value"])]
            assert not problems, f"{place} {name}"


@pytest.mark.parametrize("path", [BUY, CREATE])
def test_there_is_a_request_for_every_type_of_gig_and_each_is_accepted(
    document: Json, server: Server, path: str
) -> None:
    shown = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["examples"]
    assert set(shown) == set(GigType)
    limits = server.shop.limits
    rules = limits if path == BUY else KeyLimits(TokenInfo(limits.token_address, "USDC", 6), 3000, limits.chain)
    for name, example in shown.items():
        body = jsontext.loads(json.dumps(example["value"]).encode())
        draft = read_terms(body, rules, NOW)
        assert draft.terms is not None, name
        assert (draft.terms.gig_type, draft.problems) == (name, ())


def test_what_a_type_of_gig_needs_is_in_the_schema_too(document: Json) -> None:
    media = document["paths"][BUY]["post"]["requestBody"]["content"]["application/json"]
    validator = OAS31Validator(media["schema"] | {"components": document["components"]})
    like = media["examples"]["like"]["value"]
    assert validator.is_valid(like)
    assert not validator.is_valid({name: value for name, value in like.items() if name != "url"})
    assert not validator.is_valid(like | {"keywrod": "gm"})
    assert not validator.is_valid(like | {"duration": "1week"})


def test_the_price_is_the_operators(document: Json, server: Server) -> None:
    assert document["paths"][BUY]["post"]["x-payment-info"] == {
        "price": {"mode": "dynamic", "currency": "USD", "min": "21.525", "max": "3150"},
        "protocols": [
            {
                "x402": {
                    "scheme": "exact",
                    "network": "eip155:84532",
                    "asset": "0x036CbD53842c5426634e7929541eC2318f3dCF7e",
                    "payTo": server.seller.pay_to,
                    "maxTimeoutSeconds": 90,
                }
            }
        ],
    }
    paid = document["components"]["schemas"]["PaidGigRequest"]["properties"]
    assert "From 20.5 to 3000 USDC" in paid["amount"]["description"]
    assert paid["chain"]["const"] == "base-sepolia"
    assert "--amount 20.5 --max-price 21.525" in document["paths"][BUY]["post"]["description"]


@pytest.mark.parametrize("path", [CREATE, "/api/gigs/start"])
def test_what_needs_a_key_says_so(document: Json, path: str) -> None:
    operation = document["paths"][path]["post"]
    [scheme] = operation["security"][0]
    assert document["components"]["securitySchemes"][scheme] == {"type": "apiKey", "name": "x-api-key", "in": "header"}
    assert "401" in operation["responses"]
