"""The HTTP side of the paywall, around a product that has nothing to do with gigs. No chain, no ledger."""

import asyncio
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message

from tests.unit.payments.examples import PAYER, SELLER, document, encoded
from x402_gig.errors import BadRequest, ChainUnavailable, GigError, PaymentConflict, ValidationFailed
from x402_gig.payments import gate
from x402_gig.payments.checkout import Checkout
from x402_gig.payments.gate import MAX_BODY_BYTES, PaymentGate
from x402_gig.payments.order import Fulfilled, Order, Purchase
from x402_gig.payments.outcome import Outcome, Rejected, Settled, Unknown
from x402_gig.payments.payment import Payment
from x402_gig.payments.wire import receipt_header
from x402_gig.web.api.errors import HANDLERS

JOKE = "Why did the payment cross the chain?"
SETTLED = Settled(7, PAYER.lower(), "0x" + "ee" * 32, {"joke": JOKE})
PAID = {"PAYMENT-SIGNATURE": encoded(document(2))}
PAID_V1 = {"X-PAYMENT": encoded(document(1))}
URL = "https://jokes.example/joke"


class Joke:
    """A product in ten lines: a price, and what to do once it is paid."""

    name = "joke"

    def order(self, body: Mapping[str, Any]) -> Order:
        if unknown := sorted(set(body) - {"about"}):
            raise ValidationFailed(f"Unknown field: {name}" for name in unknown)
        problems = () if body.get("about") else ("About what?",)
        return Order(self.name, body, 1000, "A joke", problems)

    def fulfil(self, book: Any, purchase: Purchase) -> Fulfilled:
        raise NotImplementedError("the checkout of these tests delivers")


class Till(Checkout):
    """A checkout with one answer for everybody; it remembers what it was asked."""

    def __init__(self, outcome: Outcome | GigError | None) -> None:
        self.seller = SELLER
        self.outcome = outcome
        self.asked: list[tuple[Payment, Order]] = []
        self.cancelled = False

    async def pay(self, payment: Payment, order: Order) -> Outcome:
        self.asked.append((payment, order))
        if self.outcome is None:
            return await self._wait()
        if isinstance(self.outcome, GigError):
            raise self.outcome
        return self.outcome

    async def _wait(self) -> Outcome:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        raise AssertionError("unreachable")


async def tell(request: Request) -> Response:
    wanted = await request.body()
    return JSONResponse(request.state.purchase.answer | {"body": wanted.decode()})


def shop(till: Till, endpoint: Callable[..., Any] = tell) -> Starlette:
    paywall = Middleware(PaymentGate, product=Joke(), checkout=till, public_url="https://jokes.example/")
    routes = [Route("/joke", endpoint, methods=["GET", "POST"], middleware=[paywall])]
    return Starlette(routes=routes, exception_handlers=HANDLERS)


def client(outcome: Outcome | GigError | None = SETTLED, endpoint: Callable[..., Any] = tell) -> TestClient:
    return TestClient(shop(Till(outcome), endpoint), raise_server_exceptions=False)


# Without a payment


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_a_payment_there_is_a_price_in_both_versions(method: str) -> None:
    answer = client().request(method, "/joke")

    assert answer.status_code == 402
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Type"] == "application/json"
    assert "PAYMENT-RESPONSE" not in answer.headers
    v2, v1 = decoded(answer.headers["PAYMENT-REQUIRED"]), answer.json()
    assert (v2["x402Version"], v1["x402Version"]) == (2, 1)
    assert v2["resource"]["url"] == v1["accepts"][0]["resource"] == URL
    assert v2["resource"]["description"] == v1["accepts"][0]["description"] == "A joke"
    assert v2["accepts"][0]["amount"] == v1["accepts"][0]["maxAmountRequired"] == "1000"
    assert "PAYMENT-SIGNATURE" in v2["error"]
    assert "detail" not in v1


def decoded(header: str) -> Any:
    import base64

    return json.loads(base64.b64decode(header))


@pytest.mark.parametrize("body", [b"", b" \n", b"{}"])
def test_a_probe_sees_the_price_though_its_terms_are_incomplete(body: bytes) -> None:
    assert client().post("/joke", content=body).status_code == 402


def test_wrong_terms_are_listed_before_a_price_is_named() -> None:
    answer = client().post("/joke", json={"about": ""})
    assert (answer.status_code, answer.json()) == (400, {"error": "Validation failed", "details": ["About what?"]})


@pytest.mark.parametrize("headers", [{}, PAID, PAID_V1])
def test_terms_that_cannot_be_understood_are_refused_with_and_without_payment(headers: dict[str, str]) -> None:
    answer = client().post("/joke", json={"x": 1, "y": 2}, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["details"] == ["Unknown field: x", "Unknown field: y"]


@pytest.mark.parametrize("headers", [{}, PAID])
@pytest.mark.parametrize("body", [b"{", b"[]", b"1", b"null", b"\xff", b"[" * 100, b'{"a": NaN}'])
def test_a_body_that_is_no_object_is_refused(body: bytes, headers: dict[str, str]) -> None:
    answer = client().post("/joke", content=body, headers=headers)
    assert (answer.status_code, answer.json()["reason"]) == (400, "bad_request")


def test_a_payment_header_that_is_none_is_refused_before_the_terms_are_looked_at() -> None:
    answer = client().post("/joke", json={"x": 1}, headers={"PAYMENT-SIGNATURE": "garbage!"})
    assert (answer.status_code, answer.json()["reason"]) == (400, "bad_request")
    assert "PAYMENT-REQUIRED" not in answer.headers


@pytest.mark.parametrize("headers", [{}, PAID])
def test_the_size_of_a_body_is_bounded(headers: dict[str, str]) -> None:
    about = "x" * (MAX_BODY_BYTES - len('{"about": ""}'))
    fits = client().post("/joke", content=json.dumps({"about": about}), headers=headers)
    over = client().post("/joke", content=json.dumps({"about": about + "x"}), headers=headers)
    assert (fits.status_code, over.status_code) == (200 if headers else 402, 413)
    assert over.json()["reason"] == "body_too_large"


# With one


@pytest.mark.parametrize(("headers", "name"), [(PAID, "PAYMENT-RESPONSE"), (PAID_V1, "X-PAYMENT-RESPONSE")])
def test_a_settled_payment_reaches_the_endpoint_and_brings_its_receipt(headers: dict[str, str], name: str) -> None:
    till = Till(SETTLED)
    answer = TestClient(shop(till)).post("/joke", content=b'{"about": "money"}', headers=headers)

    assert answer.status_code == 200
    assert answer.json() == {"joke": JOKE, "body": '{"about": "money"}'}
    [(payment, order)] = till.asked
    assert order == Order("joke", {"about": "money"}, 1000, "A joke")
    assert (name, answer.headers[name]) == receipt_header(payment, SELLER.network, SETTLED)
    assert decoded(answer.headers[name])["transaction"] == SETTLED.transaction
    assert answer.headers["Cache-Control"] == "private"


def test_an_endpoint_may_set_its_own_cache_header() -> None:
    async def cached(request: Request) -> Response:
        return Response(headers={"Cache-Control": "no-store"})

    assert client(endpoint=cached).get("/joke", headers=PAID).headers["Cache-Control"] == "no-store"


def test_an_endpoint_that_fails_after_the_payment_still_gives_the_receipt() -> None:
    async def failing(request: Request) -> Response:
        raise PaymentConflict("no")

    answer = client(endpoint=failing).get("/joke", headers=PAID)
    assert answer.status_code == 409
    assert decoded(answer.headers["PAYMENT-RESPONSE"])["success"] is True


@pytest.mark.parametrize(("headers", "name"), [(PAID, "PAYMENT-RESPONSE"), (PAID_V1, "X-PAYMENT-RESPONSE")])
def test_a_rejected_payment_gets_a_price_with_the_reason(headers: dict[str, str], name: str) -> None:
    rejected = Rejected("insufficient_funds", "The payer holds nothing")
    answer = client(rejected).post("/joke", json={"about": "money"}, headers=headers)

    assert answer.status_code == 402
    assert answer.headers["Cache-Control"] == "no-store"
    v2, v1 = decoded(answer.headers["PAYMENT-REQUIRED"]), answer.json()
    assert v2["error"] == v1["error"] == "insufficient_funds"
    assert v1["detail"] == "The payer holds nothing"
    receipt = decoded(answer.headers[name])
    assert (receipt["success"], receipt["transaction"], receipt["errorReason"]) == (False, "", "insufficient_funds")


@pytest.mark.parametrize(
    ("outcome", "status", "reason"),
    [
        (Unknown("ask again"), 503, "outcome_unknown"),
        (ChainUnavailable("no answer"), 503, "chain_unavailable"),
        (PaymentConflict("other terms"), 409, "payment_conflict"),
    ],
)
def test_no_other_end_is_a_new_price(outcome: Outcome | GigError, status: int, reason: str) -> None:
    answer = client(outcome).get("/joke", headers=PAID)
    assert (answer.status_code, answer.json()["reason"]) == (status, reason)
    assert "PAYMENT-REQUIRED" not in answer.headers
    assert ("Retry-After" in answer.headers) == (status == 503)


# Buyers that leave


def scope(headers: Mapping[str, str]) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/joke",
        "query_string": b"",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }


async def visit(till: Till, *messages: Message) -> list[Message]:
    """What a buyer gets who sends these messages and then nothing."""
    incoming = list(messages)
    sent: list[Message] = []

    async def receive() -> Message:
        if incoming:
            return incoming.pop(0)
        return await asyncio.Event().wait()  # type: ignore[return-value]

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(5):
        await shop(till)(scope(PAID), receive, send)
    return sent


BODY: Message = {"type": "http.request", "body": b"{}", "more_body": False}
GONE: Message = {"type": "http.disconnect"}


def test_hanging_up_cancels_the_wait_and_gets_no_answer() -> None:
    till = Till(None)

    async def leave() -> bool:
        assert await visit(till, BODY, GONE) == []
        await asyncio.sleep(0)
        return till.cancelled

    assert asyncio.run(leave())


def test_a_settled_payment_is_answered_while_the_buyer_stays() -> None:
    sent = asyncio.run(visit(Till(SETTLED), BODY))
    assert sent[0]["status"] == 200


def test_a_body_may_come_in_pieces() -> None:
    till = Till(SETTLED)
    pieces: list[Message] = [
        {"type": "http.request", "body": b'{"about": ', "more_body": True},
        {"type": "http.request", "body": b'"rain"}', "more_body": False},
    ]
    asyncio.run(visit(till, *pieces))
    assert till.asked[0][1].terms == {"about": "rain"}


class Line:
    """Gives its messages one by one, each after a wait, and then nothing."""

    def __init__(self, *messages: Message) -> None:
        self.messages = list(messages)
        self.closed = False

    async def receive(self) -> Message:
        try:
            await asyncio.sleep(0.001)
            return self.messages.pop(0) if self.messages else await asyncio.Event().wait()  # type: ignore[return-value]
        finally:
            self.closed = not self.messages


@pytest.mark.parametrize("number", [0, 1])
def test_a_body_that_does_not_come_is_not_waited_for(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line(*[{"type": "http.request", "body": b"{", "more_body": True}] * number)
    monkeypatch.setattr(gate, "BODY_TIMEOUT_S", 0.05)
    with pytest.raises(BadRequest, match=r"did not arrive within 0\.05 s"):
        asyncio.run(gate.read_body_in_time(line.receive))
    assert line.closed


def test_a_body_may_take_its_time() -> None:
    line = Line({"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.request", "body": b"}"})
    assert asyncio.run(gate.read_body_in_time(line.receive)) == b"{}"


def test_a_body_that_never_ends_is_refused_before_the_rest_is_read() -> None:
    """Nobody sends a last piece here: without the bound this waits for ever."""
    piece: Message = {"type": "http.request", "body": bytes(MAX_BODY_BYTES // 2 + 1), "more_body": True}
    sent = asyncio.run(visit(Till(SETTLED), piece, piece))
    assert sent[0]["status"] == 413


def test_a_buyer_who_leaves_before_the_body_is_there_charges_nothing() -> None:
    till = Till(SETTLED)
    asyncio.run(visit(till, {"type": "http.request", "body": b"{", "more_body": True}, GONE))
    assert till.asked == []
