"""How long gas money lasts, by what was spent of it: times in seconds, money in parts of the reserve."""

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from x402_gig.relaying.gas import GasMoney
from x402_gig.relaying.relayer import Relayer

RESERVE = 1000
HOUR = 3600


class Purse:
    """A relayer as far as gas goes."""

    def __init__(self, address: str, held: int) -> None:
        self.wallet = SimpleNamespace(address=address)
        self.held = held

    async def gas_wei(self) -> int:
        return self.held

    async def gas_reserve(self) -> int:
        return RESERVE


class Shop:
    def __init__(self, *held: int) -> None:
        self.now = 0.0
        self.purses = [Purse(f"0x{number}", wei) for number, wei in enumerate(held)]
        self.gas = GasMoney(cast("list[Relayer]", self.purses), clock=lambda: self.now)
        self.after(0)

    def after(self, seconds: float, *spent: int) -> str:
        """The warning when so much was spent, of each relayer, in that time."""
        self.now += seconds
        for purse, units in zip(self.purses, spent, strict=False):
            purse.held -= units
        asyncio.run(self.gas.look())
        return self.gas.warning


def test_one_relayer_that_is_short_is_named_and_all_of_them_are_a_problem() -> None:
    shop = Shop(5 * RESERVE, 2 * RESERVE)
    assert not shop.gas.warning
    assert "relayer 0x1 holds" in shop.after(10, 0, RESERVE + 1)
    assert not shop.gas.problem
    shop.after(10, 4 * RESERVE + 1)
    assert not shop.gas.warning
    assert "relayer 0x0 holds" in shop.gas.problem
    assert "relayer 0x1 holds" in shop.gas.problem
    shop.after(0, -RESERVE)  # it is looked at once whether some has come
    assert not shop.gas.problem


@pytest.mark.parametrize(("held", "hours"), [(14, ""), (12, "gas for 11.0 h"), (6, "gas for 5.0 h")])
def test_hours_before_the_gas_runs_out_a_warning_says_so(held: int, hours: str) -> None:
    shop = Shop(RESERVE + held * 100)
    assert shop.after(HOUR, 100)[: len(hours) or None] == hours


def test_what_all_relayers_have_and_spend_counts_together() -> None:
    shop = Shop(RESERVE + 1000, RESERVE + 600)
    assert shop.after(HOUR, 50, 50) == ""
    assert shop.after(HOUR, 200, 100).startswith("gas for 4.0 h")


def test_one_gig_after_the_start_is_no_stream_of_them() -> None:
    shop = Shop(RESERVE + 100 * 100)
    assert shop.after(10, 100) == ""


def test_gas_that_is_sent_ends_the_warning_and_hides_nothing_that_is_spent_afterwards() -> None:
    shop = Shop(RESERVE + 500)
    assert shop.after(HOUR, 100).startswith("gas for 4.0 h")
    assert shop.after(60, -20_000) == ""
    assert shop.after(HOUR - 60, 19_400).startswith("gas for 0.1 h")


def test_what_was_spent_more_than_an_hour_ago_does_not_count() -> None:
    shop = Shop(RESERVE + 500)
    assert shop.after(HOUR, 100)
    assert shop.after(HOUR / 2)
    assert shop.after(HOUR / 2) == ""
