"""x402 headers ↔ models, versions 1 and 2 (x402 specification, "HTTP transport").

What does not parse is BadRequest here; what parses but is not the payment we want is `checks`' business.
"""

import base64
import json
import re
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError
from x402.http.constants import (
    PAYMENT_RESPONSE_HEADER,
    PAYMENT_SIGNATURE_HEADER,
    X_PAYMENT_HEADER,
    X_PAYMENT_RESPONSE_HEADER,
)
from x402.http.utils import encode_payment_response_header
from x402.schemas import PaymentPayload, SettleResponse
from x402.schemas.v1 import PaymentPayloadV1

from x402_gig.errors import BadRequest
from x402_gig.payments import jsontext
from x402_gig.payments.order import Network
from x402_gig.payments.outcome import Rejected, Settled
from x402_gig.payments.payment import Authorization, Payment

MAX_HEADER_CHARS = 8192
UINT256_MAX = 2**256 - 1
RESPONSE_HEADERS = {1: X_PAYMENT_RESPONSE_HEADER, 2: PAYMENT_RESPONSE_HEADER}

_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")

Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]
Bytes32 = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{64}$")]
HexBytes = Annotated[str, Field(pattern=r"^0x([0-9a-fA-F]{2})*$")]
Uint = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,77})$")]


class _Authorization(BaseModel):
    payer: Address = Field(alias="from")
    payee: Address = Field(alias="to")
    value: Uint
    valid_after: Uint = Field(alias="validAfter")
    valid_before: Uint = Field(alias="validBefore")
    nonce: Bytes32


class _ExactPayload(BaseModel):
    signature: HexBytes
    authorization: _Authorization


class _Claims(BaseModel):
    """The parts of `accepted` that count, in the form they must have."""

    asset: Address
    pay_to: Address
    amount: Uint


def read_payment(headers: dict[str, str]) -> Payment | None:
    """The payment a request carries, or None; `headers` has lower-case names. Version 2 wins over version 1.

    Raises BadRequest when there is a payment header that is not a well-formed payment.
    """
    for version, name in ((2, PAYMENT_SIGNATURE_HEADER), (1, X_PAYMENT_HEADER)):
        value = headers.get(name.lower())
        if value is not None:
            return _parse(version, name, value)
    return None


def _parse(version: int, name: str, value: str) -> Payment:
    data = _decode(name, value)
    found = data.get("x402Version")
    if type(found) is not int or found != version:
        said = json.dumps(found, default=str)[:20]  # escapes what could not be sent back
        raise BadRequest(f"{name} carries x402Version {version}, this one says {said}")
    try:
        return _payment_v2(data) if version == 2 else _payment_v1(data)
    except ValidationError as exc:
        raise BadRequest(f"{name} is not a payment payload: {_first_problem(exc)}") from None


def _decode(name: str, value: str) -> dict[str, Any]:
    if len(value) > MAX_HEADER_CHARS:
        raise BadRequest(f"{name} is longer than {MAX_HEADER_CHARS} characters")
    if not _BASE64.fullmatch(value):
        raise BadRequest(f"{name} is not base64")
    try:
        data = jsontext.loads(base64.b64decode(value.rstrip("=") + "=" * (-len(value.rstrip("=")) % 4)))
    except ValueError:
        raise BadRequest(f"{name} is not base64 of JSON") from None
    if not isinstance(data, dict):
        raise BadRequest(f"{name} is not a JSON object")
    return data


def _first_problem(exc: ValidationError) -> str:
    problem = exc.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"[:200]


def _payment_v2(data: dict[str, Any]) -> Payment:
    accepted = PaymentPayload.model_validate(data).accepted
    claims = _Claims(asset=accepted.asset, pay_to=accepted.pay_to, amount=accepted.amount)
    return Payment(
        version=2,
        scheme=accepted.scheme,
        network=accepted.network,
        asset=claims.asset.lower(),
        pay_to=claims.pay_to.lower(),
        amount=_uint(claims.amount),
        **_exact(data["payload"]),
    )


def _payment_v1(data: dict[str, Any]) -> Payment:
    payload = PaymentPayloadV1.model_validate(data)
    return Payment(
        version=1,
        scheme=payload.scheme,
        network=payload.network,
        asset=None,
        pay_to=None,
        amount=None,
        **_exact(payload.payload),
    )


def _exact(payload: dict[str, Any]) -> dict[str, Any]:
    exact = _ExactPayload.model_validate(payload)
    given = exact.authorization
    return {
        "signature": bytes.fromhex(exact.signature[2:]),
        "authorization": Authorization(
            payer=given.payer.lower(),
            payee=given.payee.lower(),
            value=_uint(given.value),
            valid_after=_uint(given.valid_after),
            valid_before=_uint(given.valid_before),
            nonce=given.nonce.lower(),
        ),
    }


def _uint(text: str) -> int:
    number = int(text)
    if number > UINT256_MAX:
        raise BadRequest("a number in the payment does not fit uint256")
    return number


def receipt_header(payment: Payment, network: Network, outcome: Settled | Rejected) -> tuple[str, str]:
    """Name and value of the settlement response header, in the payment's own version."""
    response = SettleResponse(
        success=isinstance(outcome, Settled),
        transaction=outcome.transaction if isinstance(outcome, Settled) else "",
        network=network.caip2 if payment.version == 2 else network.v1_name,
        payer=payment.authorization.payer,
    )
    if isinstance(outcome, Rejected):
        response.error_reason = outcome.reason
        response.error_message = outcome.detail
    return RESPONSE_HEADERS[payment.version], encode_payment_response_header(response)
