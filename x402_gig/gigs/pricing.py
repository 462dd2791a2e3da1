"""Money: integers of base units inside, decimal strings in tokens at the edge, nothing rounded by accident."""

from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation

from msgspec import Struct

USDC_SYMBOL = "USDC"
USDC_DECIMALS = 6
UINT256_MAX = 2**256 - 1
BPS = 10_000

# Wide enough for a uint256. What does not fit or would be rounded is trapped before any zero is written out,
# so that "1e999999999" costs nothing.
_EXACT = Context(prec=len(str(UINT256_MAX)), traps=[Inexact, InvalidOperation])


def commission_units(amount_units: int, bps: int) -> int:
    """The platform's share of a reward, in base units; a fraction of a unit counts as a whole one."""
    return -(-amount_units * bps // BPS)


class Price(Struct, frozen=True):
    """What a buyer pays, in base units: the commission comes on top of the reward."""

    reward_units: int
    commission_units: int

    @classmethod
    def of(cls, reward_units: int, bps: int) -> "Price":
        return cls(reward_units, commission_units(reward_units, bps))

    @property
    def total_units(self) -> int:
        return self.reward_units + self.commission_units


def to_units(tokens: Decimal | int, decimals: int) -> int:
    """Base units of an amount in tokens.

    Raises ValueError when that is not a whole number from 0 to the largest uint256.
    """
    units = tokens * 10**decimals if isinstance(tokens, int) else _to_whole_units(tokens, decimals)
    if not 0 <= units <= UINT256_MAX:
        raise ValueError("does not fit uint256")
    return units


def _to_whole_units(tokens: Decimal, decimals: int) -> int:
    try:
        exact = tokens.quantize(Decimal(1).scaleb(-decimals), context=_EXACT)
        return int(exact.scaleb(decimals, context=_EXACT))
    except DecimalException:
        raise ValueError("not a whole number of base units") from None


def to_tokens(units: int, decimals: int = USDC_DECIMALS) -> str:
    """Base units as people write tokens: "10", "10.5"; neither trailing zeros nor an exponent."""
    text = f"{Decimal(units).scaleb(-decimals, context=_EXACT):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
