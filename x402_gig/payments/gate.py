"""The paywall: a pure-ASGI Starlette middleware for any route.

    Route("/joke", tell, methods=["POST"], middleware=[Middleware(PaymentGate, product=Joke(), checkout=checkout,
                                                                  public_url="https://jokes.example")])

Without a payment it answers 402 with the price; with one it settles, then lets the request through with
`request.state.purchase` (a `Settled`) and adds the settlement response header to the answer. It raises
BadRequest, PaymentConflict, OutcomeUnknown and Unavailable; the application's exception handlers answer those.
"""

import asyncio
import contextlib
import json
import types
from collections.abc import Coroutine, Generator, Mapping
from functools import lru_cache
from typing import Any, TypeVar

from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from x402.http.constants import PAYMENT_REQUIRED_HEADER, PAYMENT_SIGNATURE_HEADER, X_PAYMENT_HEADER
from x402.http.utils import encode_payment_required_header
from x402.schemas import PaymentRequired, ResourceInfo
from x402.schemas.v1 import PaymentRequiredV1

from x402_gig.errors import BadRequest, BodyTooLarge, OutcomeUnknown, ValidationFailed
from x402_gig.payments import jsontext, wire
from x402_gig.payments.checkout import Checkout
from x402_gig.payments.order import Order, Product
from x402_gig.payments.outcome import Rejected, Settled, Unknown
from x402_gig.payments.payment import Payment

T = TypeVar("T")

MAX_BODY_BYTES = 64 * 1024
BODY_TIMEOUT_S = 30
PAYMENT_HEADERS = {name.lower().encode() for name in (PAYMENT_SIGNATURE_HEADER, X_PAYMENT_HEADER)}
PAYMENT_NEEDED = "Payment required: sign one of accepts and send it in the PAYMENT-SIGNATURE header (X-PAYMENT in v1)"


class PaymentGate:
    """Sells `product` at the wrapped route. `public_url` is the origin that buyers call."""

    def __init__(self, app: ASGIApp, *, product: Product, checkout: Checkout, public_url: str) -> None:
        self._app = app
        self._product = product
        self._checkout = checkout
        self._public_url = public_url.rstrip("/")
        self._required = lru_cache(maxsize=1024)(self._build_required)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body_in_time(receive)
        headers = _payment_headers(scope)
        payment = wire.read_payment(headers) if headers else None
        asked = parse_object(body)
        order = self._product.order(asked)
        if payment is None:
            # Directories probe with an empty body: they want to see a price.
            if order.problems and asked:
                raise ValidationFailed(order.problems)
            await self._ask_for_payment(scope, send, order)
            return
        outcome = await self._settle(payment, order, receive)
        if isinstance(outcome, Rejected):
            receipt = wire.receipt_header(payment, self._checkout.seller.network, outcome)
            await self._ask_for_payment(scope, send, order, outcome, receipt)
        elif isinstance(outcome, Settled):
            await self._serve(payment, outcome, body, scope, receive, send)

    async def _settle(self, payment: Payment, order: Order, receive: Receive) -> Settled | Rejected | None:
        """The outcome, or None when the buyer hung up: then the settlement goes on without them."""
        paying = asyncio.ensure_future(self._checkout.pay(payment, order))
        leaving = asyncio.ensure_future(_disconnected(receive))
        try:
            await asyncio.wait({paying, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            paying.cancel()
        if not paying.done():
            return None
        outcome = paying.result()
        if isinstance(outcome, Unknown):
            raise OutcomeUnknown(outcome.detail)
        return outcome

    async def _serve(
        self, payment: Payment, settled: Settled, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        name, value = wire.receipt_header(payment, self._checkout.seller.network, settled)

        async def send_with_receipt(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers[name] = value
                headers.setdefault("Cache-Control", "private")
            await send(message)

        scope.setdefault("state", {})["purchase"] = settled
        await self._app(scope, _replay(body, receive), send_with_receipt)

    async def _ask_for_payment(
        self, scope: Scope, send: Send, order: Order, rejected: Rejected | None = None, *headers: tuple[str, str]
    ) -> None:
        error, detail = (rejected.reason, rejected.detail) if rejected else (PAYMENT_NEEDED, "")
        required, body = self._required(scope["path"], order.description, order.price_units, error, detail)
        more = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
        # A list of its own: those around us add to it.
        await send({"type": "http.response.start", "status": 402, "headers": [*required, *more]})
        await send({"type": "http.response.body", "body": body})

    def _build_required(
        self, path: str, description: str, amount: int, error: str, detail: str
    ) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Headers and body."""
        seller, url = self._checkout.seller, f"{self._public_url}{path}"
        v2 = PaymentRequired(
            error=error,
            resource=ResourceInfo(url=url, description=description, mime_type="application/json"),
            accepts=[seller.requirements(amount)],
        )
        v1 = PaymentRequiredV1(error=error, accepts=[seller.requirements_v1(amount, url, description)])
        body = v1.model_dump(by_alias=True, exclude_none=True) | ({"detail": detail} if detail else {})
        headers = {PAYMENT_REQUIRED_HEADER: encode_payment_required_header(v2), "Cache-Control": "no-store"}
        response = Response(json.dumps(body), 402, headers, "application/json")
        return response.raw_headers, bytes(response.body)


def _payment_headers(scope: Scope) -> dict[str, str]:
    return {name.decode(): value.decode("latin-1") for name, value in scope["headers"] if name in PAYMENT_HEADERS}


async def read_body_in_time(receive: Receive) -> bytes:
    """The whole request body. Raises BadRequest and BodyTooLarge."""
    reading = read_body(receive)
    try:
        first_wait = reading.send(None)
    except StopIteration as done:
        # It came with the headers, as most do: there is no wait to be measured.
        body: bytes = done.value
        return body
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await _go_on(reading, first_wait)
    except TimeoutError:
        raise BadRequest(f"The request body did not arrive within {BODY_TIMEOUT_S} s") from None


@types.coroutine
def _go_on(coroutine: Coroutine[Any, Any, T], first_wait: Any) -> Generator[Any, Any, T]:
    """Await the rest of a coroutine that has run up to its first wait."""
    with contextlib.closing(coroutine):
        yield first_wait
        result: T = yield from coroutine
        return result


async def read_body(receive: Receive) -> bytes:
    """The whole request body. Raises BodyTooLarge past 64 KB, before the rest is read."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise BadRequest("The request body did not arrive")
        body += message.get("body", b"")
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def parse_object(body: bytes) -> Mapping[str, Any]:
    """The body as a JSON object, whatever its content type; `{}` when it is empty. Raises BadRequest."""
    if not body.strip():
        return {}
    try:
        value = jsontext.loads(body)
    except ValueError:
        raise BadRequest("The body is not valid JSON") from None
    if not isinstance(value, dict):
        raise BadRequest("The body is not a JSON object")
    return value


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives the body again, which the gate has read, and then waits as before."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay
