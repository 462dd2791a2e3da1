"""Signed payments for a chain of one's own: signed by the harness, read by the server."""

from typing import Any

from eth_account.signers.local import LocalAccount

from tests.support.harness import USDC, Json, authorization, encode, payment_header, sign
from x402_gig.payments.payment import Payment
from x402_gig.payments.wire import read_payment

INTAKE = "0x" + "17" * 20
REQUIREMENTS: Json = {
    "scheme": "exact",
    "network": "eip155:8453",
    "amount": "11000000",
    "asset": USDC,
    "payTo": INTAKE,
    "maxTimeoutSeconds": 60,
    "extra": {"name": "USD Coin", "version": "2"},
}


def requirements(**changes: Any) -> Json:
    return REQUIREMENTS | changes


def payment(account: LocalAccount, wanted: Json = REQUIREMENTS, **changes: Any) -> Payment:
    """A payment of `account`; `changes` are to the authorization, before it is signed."""
    return _read(payment_header(account, wanted, **changes))


def signed_by(account: LocalAccount, payer: str, wanted: Json = REQUIREMENTS) -> Payment:
    """A payment in `payer`'s name with the signature of `account`."""
    message = authorization(account, wanted) | {"from": payer}
    payload = {"signature": sign(account, wanted, message), "authorization": message}
    return _read({"PAYMENT-SIGNATURE": encode({"x402Version": 2, "accepted": wanted, "payload": payload})})


def _read(header: Json) -> Payment:
    found = read_payment({name.lower(): value for name, value in header.items()})
    assert found is not None
    return found
