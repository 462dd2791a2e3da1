"""An EIP-3009 authorization as x402 carries it, and the identity of a payment."""

from typing import NamedTuple

from msgspec import Struct


class PaymentKey(NamedTuple):
    """What makes a payment this one and no other; all lower-case hex."""

    network: str
    asset: str
    payer: str
    nonce: str


class Authorization(Struct, frozen=True):
    """EIP-3009 `TransferWithAuthorization`.

    Addresses and nonce are lower-case hex with `0x`; `value` is in base units; times are Unix seconds.
    """

    payer: str
    payee: str
    value: int
    valid_after: int
    valid_before: int
    nonce: str


class Payment(Struct, frozen=True):
    """A well-formed payment header. `scheme` to `amount` are the client's claims; None where it makes none."""

    version: int
    scheme: str
    network: str
    asset: str | None
    pay_to: str | None
    amount: int | None
    authorization: Authorization
    signature: bytes
