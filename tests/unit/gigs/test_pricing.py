from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402_gig.gigs.pricing import UINT256_MAX, Price, commission_units, to_tokens, to_units

UNITS = st.integers(0, UINT256_MAX)


@pytest.mark.parametrize(
    ("amount_units", "bps", "expected"),
    [
        (10_000_000, 1000, 1_000_000),
        (0, 1000, 0),
        (10_000_001, 1000, 1_000_001),
        (10_000_009, 1000, 1_000_001),
        (10_000_010, 1000, 1_000_001),
        (1, 1, 1),
        (10_000_000, 0, 0),
        (7, 10_000, 7),
    ],
)
def test_a_commission_is_so_many_hundredths_of_a_percent_rounded_up(amount_units: int, bps: int, expected: int) -> None:
    assert commission_units(amount_units, bps) == expected


@given(UNITS, st.integers(0, 10_000))
def test_the_commission_is_rounded_up_by_less_than_one_unit(amount_units: int, bps: int) -> None:
    exact = Fraction(amount_units * bps, 10_000)
    assert 0 <= commission_units(amount_units, bps) - exact < 1


def test_the_commission_comes_on_top() -> None:
    price = Price.of(10_000_000, 1000)
    assert (price.reward_units, price.commission_units, price.total_units) == (10_000_000, 1_000_000, 11_000_000)


@pytest.mark.parametrize(
    ("tokens", "decimals", "expected"),
    [
        ("10", 6, 10_000_000),
        ("1E+1", 6, 10_000_000),
        ("10.0000000000", 6, 10_000_000),
        ("0.000001", 6, 1),
        ("0e999999999", 6, 0),
        ("12", 0, 12),
        ("0.000000000000000001", 18, 1),
        (str(UINT256_MAX), 0, UINT256_MAX),
    ],
)
def test_tokens_are_base_units_in_any_notation(tokens: str, decimals: int, expected: int) -> None:
    assert to_units(Decimal(tokens), decimals) == expected


@pytest.mark.parametrize(
    "tokens",
    ["0.0000001", "10.0000001", "1e-999999999", "1e999999999", "-1", "NaN", "sNaN", "Infinity", "-Infinity", "1e72"],
)
def test_what_is_not_a_whole_number_of_units_is_refused(tokens: str) -> None:
    with pytest.raises(ValueError):
        to_units(Decimal(tokens), 6)


@pytest.mark.parametrize(
    ("units", "decimals", "expected"),
    [
        (10_000_000, 6, "10"),
        (10_500_000, 6, "10.5"),
        (1, 6, "0.000001"),
        (0, 6, "0"),
        (100, 0, "100"),
        (1_000_000_000_000, 6, "1000000"),
        (-1_500_000, 6, "-1.5"),
        (1, 18, "0.000000000000000001"),
    ],
)
def test_units_are_written_as_people_write_tokens(units: int, decimals: int, expected: str) -> None:
    assert to_tokens(units, decimals) == expected


@given(UNITS, st.integers(0, 18))
def test_units_survive_being_written_as_tokens(units: int, decimals: int) -> None:
    assert to_units(Decimal(to_tokens(units, decimals)), decimals) == units
