"""The server does what its document says, whatever it is sent: no crash, no answer that is not described."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from openapi_schema_validator import OAS31Validator

from tests.support.harness import CREATE, Json, devnet, gig_terms, payment_header
from tests.support.operator import Shop, operated

# Not that wrong data is refused: to us "" is as good as absent, and an empty body asks for a price.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    limits = {"rate_limit_address": "off", "rate_limit_key": "off"}
    with devnet() as chain, operated(chain, tmp_path_factory.mktemp("shop"), **limits) as running:
        yield running


class Described:
    """A shop whose answers are held against its document."""

    def __init__(self, shop: Shop) -> None:
        self.shop = shop
        self.document = shop.http.get(f"{shop.url}/openapi.json").json()
        self.key = {"x-api-key": shop.desk.run("keys", "create", "Somebody").stdout.strip()}

    def check(self, answer: httpx.Response, path: str, status: int) -> Json:
        """The answer's body, which is as described."""
        assert answer.status_code == status, answer.text
        [operation] = self.document["paths"][path].values()
        response = operation["responses"][str(status)]
        schema = response["content"]["application/json"]["schema"] | {"components": self.document["components"]}
        OAS31Validator(schema).validate(answer.json())
        assert all(
            name in answer.headers for name, header in response.get("headers", {}).items() if "required" in header
        )
        return dict(answer.json())

    def get(self, path: str, shown: str, **headers: str) -> Json:
        return self.check(self.shop.http.get(self.shop.url + path, headers=headers), shown, 200)

    def post(self, body: Json, path: str, status: int) -> Json:
        return self.check(self.shop.post(body, self.key, path), path, status)


@pytest.fixture(scope="module")
def described(shop: Shop) -> Described:
    return Described(shop)


@pytest.mark.parametrize("gig_type", ["like", "mention"])
def test_a_gig_that_is_bought_is_shown_as_described(described: Described, gig_type: str) -> None:
    shop = described.shop
    terms = gig_terms(gig_type=gig_type)
    header = payment_header(shop.buyer(), shop.quote(terms))
    bought = described.check(shop.post(terms, header), CREATE, 200)
    described.get(f"/api/gigs/{bought['gig_id']}", "/api/gigs/{gig_id}")
    shop.funded(bought["gig_id"])
    described.get(f"/api/gigs/{bought['gig_id']}", "/api/gigs/{gig_id}")
    assert described.get("/api/gigs?limit=1", "/api/gigs")["data"][0]["id"] == bought["gig_id"]
    described.check(shop.post(terms | {"amount": 11}, header), CREATE, 409)


def test_prices_and_refusals_are_as_described(described: Described) -> None:
    shop, terms = described.shop, gig_terms()
    assert "detail" not in described.check(shop.post(terms), CREATE, 402)
    poor = payment_header(shop.buyer(1), shop.quote(terms))
    assert described.check(shop.post(terms, poor), CREATE, 402)["detail"]
    described.check(shop.post(terms, {"PAYMENT-SIGNATURE": "!"}), CREATE, 400)
    described.check(shop.post("x" * 70_000), CREATE, 413)


def test_a_gig_that_is_started_with_a_key_is_shown_as_described(described: Described) -> None:
    shop = described.shop
    made = described.post(gig_terms(), "/api/gigs/create", 201)
    start = {"gig_id": made["gig_id"]}
    described.post(start, "/api/gigs/start", 400)
    described.get(f"/api/gigs/{made['gig_id']}", "/api/gigs/{gig_id}", **described.key)
    payer = shop.buyer().address
    shop.send(payer, made["gig_token_address"], made["tx_data"])
    described.post(start, "/api/gigs/start", 200)
    described.get(f"/api/gigs/{made['gig_id']}", "/api/gigs/{gig_id}")
    described.post(start, "/api/gigs/start", 400)
    described.post({"gig_id": 10**9}, "/api/gigs/start", 404)


def test_no_request_gets_an_answer_that_is_not_described(shop: Shop, tmp_path: Path) -> None:
    key = shop.desk.run("keys", "create", "Somebody curious").stdout.strip()
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{shop.url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--seed", "402", "--max-examples", "80"),
            *("--header", f"x-api-key:{key}", "--no-shrink", "--no-color", "--warnings", "off"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
