"""The interactive page at /docs, in a real browser: what is described can be tried, and nobody else is asked."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import chromium
from tests.support.harness import Json, devnet, gig_terms, payment_header
from tests.support.operator import PRICE, Shop, operated

PAID, KEYED, GIGS = "Pay_by_x402", "With_an_API_key", "Gigs"
TIMEOUT_MS = 20_000


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with devnet() as chain, operated(chain, tmp_path_factory.mktemp("shop")) as running:
        yield running


@pytest.fixture(scope="module")
def browser(shop: Shop) -> Iterator[Browser]:
    # After the shop and gone before it: while Playwright runs, this thread can run no other event loop.
    with chromium() as started:
        yield started


@dataclass
class Docs:
    """The page, and all that it asked for and complained about."""

    page: Page
    shop: Shop
    requested: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def open(self) -> None:
        self.page.on("request", lambda request: self.requested.append(request.url))
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"{self.shop.url}/docs")
        expect(self.page.locator(".opblock").first).to_be_visible()

    def try_out(self, tag: str, operation: str, body: str = "", **parameters: str) -> tuple[str, str]:
        """Status and body of the answer, as the page shows them; `body` and `parameters` are typed in first."""
        block = self.page.locator(f"#operations-{tag}-{operation}")
        block.locator(".opblock-summary-control").click()
        for name, value in parameters.items():
            block.locator(f"tr[data-param-name={name}] input").fill(value)
        if body:
            block.locator(".body-param__text").fill(body)
        block.get_by_role("button", name="Execute").click()
        answer = block.locator(".live-responses-table .response")
        status = answer.locator(".response-col_status").first.inner_text().split()[0]
        return status, answer.locator(".highlight-code pre").first.inner_text()

    def choose(self, tag: str, operation: str, example: str) -> None:
        self.page.locator(f"#operations-{tag}-{operation} .examples-select-element").first.select_option(example)

    def authorize(self, key: str) -> None:
        self.page.get_by_role("button", name="Authorize").click()
        dialog = self.page.locator(".auth-container")
        dialog.locator("input").fill(key)
        dialog.get_by_role("button", name="Apply credentials").click()
        dialog.get_by_role("button", name="Close").click()


@pytest.fixture
def docs(browser: Browser, shop: Shop) -> Iterator[Docs]:
    page = browser.new_page(viewport={"width": 1200, "height": 1400})
    page.set_default_timeout(TIMEOUT_MS)
    opened = Docs(page, shop)
    opened.open()
    yield opened
    page.close()


def described(shop: Shop) -> Json:
    return dict(shop.http.get(f"{shop.url}/openapi.json").json()["paths"])


def test_every_route_is_on_the_page(docs: Docs) -> None:
    shown = [" ".join(text.split()[:2]) for text in docs.page.locator(".opblock-summary").all_inner_texts()]
    wanted = [f"{method.upper()} {path}" for path, item in described(docs.shop).items() for method in item]
    # Long paths may break: the page puts invisible spaces into them.
    assert sorted(text.replace("\u200b", "") for text in shown) == sorted(wanted)


def test_the_page_loads_without_a_complaint_and_asks_nobody_else(docs: Docs) -> None:
    assert docs.complaints == []
    assert {urlsplit(url).netloc for url in docs.requested} == {urlsplit(docs.shop.url).netloc}
    assert {urlsplit(url).path for url in docs.requested} >= {"/openapi.json", "/docs/swagger-ui-bundle.js"}


def test_the_types_can_be_tried(docs: Docs) -> None:
    status, body = docs.try_out(GIGS, "listTypes")
    assert status == "200"
    assert '"custom_bounty"' in body
    assert docs.complaints == []


def test_the_price_of_a_gig_can_be_tried_and_the_page_says_how_to_pay_it(docs: Docs) -> None:
    status, body = docs.try_out(PAID, "buyGig")
    assert status == "402"
    assert '"maxAmountRequired": "11000000"' in body
    about = docs.page.locator(f"#operations-{PAID}-buyGig .opblock-description").inner_text()
    assert "PAYMENT-SIGNATURE" in about
    assert "x402-gig buy" in about


def test_a_gig_can_be_paid_with_a_header_that_is_typed_in(docs: Docs) -> None:
    buyer, terms = docs.shop.buyer(PRICE), gig_terms()
    header = payment_header(buyer, docs.shop.quote(terms))
    status, body = docs.try_out(PAID, "buyGig", json.dumps(terms), **header)
    assert status == "200"
    assert '"message": "Gig created and started"' in body
    assert docs.shop.usdc(buyer.address) == 0


def test_a_gig_can_be_created_with_a_key_shown_and_started(docs: Docs) -> None:
    docs.authorize(docs.shop.desk.start("keys", "create", "The page").stdout.strip())
    status, body = docs.try_out(KEYED, "createGig")
    assert status == "201"
    made = json.loads(body)
    assert made["tx_data"].startswith("0xa9059cbb")
    number = str(made["gig_id"])
    status, body = docs.try_out(GIGS, "showGig", gig_id=number)
    assert (status, json.loads(body)["data"]["status"]) == ("200", "created")
    docs.shop.give_usdc(made["gig_wallet_address"], PRICE)
    status, body = docs.try_out(KEYED, "startGig", f'{{"gig_id": {number}}}')
    assert (status, json.loads(body)["data"]["message"]) == ("200", "Gig started successfully")
    status, body = docs.try_out(GIGS, "listGigs", limit="5")
    assert (status, made["gig_id"] in [gig["id"] for gig in json.loads(body)["data"]]) == ("200", True)


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_what_the_operators_machines_ask_can_be_tried(docs: Docs, path: str) -> None:
    status, body = docs.try_out("Server", described(docs.shop)[path]["get"]["operationId"])
    assert status == "200"
    assert body


def test_without_a_key_the_page_shows_the_refusal(docs: Docs) -> None:
    status, body = docs.try_out(KEYED, "startGig")
    assert status == "401"
    assert '"error": "Invalid API key"' in body


@pytest.mark.parametrize("path", ["/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js"])
def test_the_page_runs_no_script_but_its_own(shop: Shop, path: str) -> None:
    policy = shop.http.get(shop.url + path).headers["Content-Security-Policy"]
    assert "default-src 'none'; script-src 'self';" in policy
    assert "connect-src 'self'" in policy
