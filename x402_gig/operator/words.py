"""Amounts and times as people read them."""

from datetime import UTC, datetime
from decimal import Decimal

from x402_gig.gigs.pricing import to_tokens

GWEI = 10**9


def usdc(units: int) -> str:
    return f"{to_tokens(units)} USDC"


def number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def clock(timestamp: int) -> str:
    return f"{datetime.fromtimestamp(timestamp, UTC):%Y-%m-%d %H:%M:%S}"


def gwei(wei: int) -> str:
    return f"{Decimal(wei) / GWEI:.6f}".rstrip("0").rstrip(".") + " gwei"
