"""One seller, one payer, and payments between them. Signatures here are bytes that nobody checks."""

import base64
import json
from typing import Any

from msgspec.structs import replace

from x402_gig.payments.order import Network, Seller
from x402_gig.payments.payment import Authorization, Payment, PaymentKey

USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
INTAKE = "0x" + "Aa" * 20
PAYER = "0x" + "Bb" * 20
NONCE = "0x" + "Cc" * 32
SIGNATURE = bytes(range(65))
NOW = 1_760_000_000
PRICE = 11_000_000

SELLER = Seller(Network(8453, "base"), USDC, "USD Coin", "2", INTAKE, max_timeout_s=60)
AUTHORIZATION = Authorization(PAYER.lower(), INTAKE.lower(), PRICE, 0, NOW + 60, NONCE.lower())
PAYMENT = Payment(2, "exact", "eip155:8453", USDC.lower(), INTAKE.lower(), PRICE, AUTHORIZATION, SIGNATURE)
PAYMENT_V1 = replace(PAYMENT, version=1, network="base", asset=None, pay_to=None, amount=None)
KEY = PaymentKey("eip155:8453", USDC.lower(), PAYER.lower(), NONCE.lower())


def payment(
    version: int = 2, signature: bytes = SIGNATURE, claims: dict[str, Any] | None = None, **changes: Any
) -> Payment:
    """`changes` are to the authorization, `claims` to what stands beside it."""
    base = PAYMENT if version == 2 else PAYMENT_V1
    authorization = replace(AUTHORIZATION, **changes)
    return replace(base, authorization=authorization, signature=signature, **(claims or {}))


def document(version: int = 2) -> dict[str, Any]:
    """What a payment header is the base64 of."""
    exact = {
        "signature": "0x" + SIGNATURE.hex(),
        "authorization": {
            "from": PAYER,
            "to": INTAKE,
            "value": str(PRICE),
            "validAfter": "0",
            "validBefore": str(NOW + 60),
            "nonce": NONCE,
        },
    }
    if version == 1:
        return {"x402Version": 1, "scheme": "exact", "network": "base", "payload": exact}
    accepted = SELLER.requirements(PRICE).model_dump(by_alias=True)
    return {"x402Version": 2, "accepted": accepted, "payload": exact}


def encoded(value: Any) -> str:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.b64encode(text).decode()
