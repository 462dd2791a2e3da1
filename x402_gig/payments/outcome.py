"""The three ends a payment can have for its buyer. There is no fourth, and none turns into another silently."""

from typing import Any

from msgspec import Struct


class Settled(Struct, frozen=True):
    """The deposit is on chain and the order is delivered."""

    payment_id: int
    payer: str
    transaction: str
    answer: dict[str, Any]


class Rejected(Struct, frozen=True):
    """The payment can never settle, or nothing was sent. `reason` is an x402 error reason or one of ours."""

    reason: str
    detail: str


class Unknown(Struct, frozen=True):
    """The money may have moved. The same payment, sent again, gets the true answer later."""

    detail: str


Outcome = Settled | Rejected | Unknown
