"""Prices by rule sets that follow one another."""

import time

import pytest

from tests.support.harness import USDC, gig_terms, until
from x402_gig.errors import Unavailable
from x402_gig.gigs.rules import Rules, RuleSet
from x402_gig.gigs.shop import GigShop

FIRST = RuleSet(1, 0, 1000, 10_000_000, 10**12)
CHEAPER = RuleSet(2, 0, 500, 10_000_000, 10**12)
LARGER = RuleSet(3, 0, 1000, 20_000_000, 10**12)
TERMS = gig_terms()


def shop(current: RuleSet, *others: RuleSet, lasts_s: float = 60) -> GigShop:
    rules = Rules(FIRST)
    rules.follow(current, [(other, 0) for other in others], time.monotonic() + lasts_s)
    return GigShop(rules, USDC.lower(), "base", 8453)


def test_an_order_has_the_price_in_force_and_those_that_may_have_been_quoted() -> None:
    order = shop(CHEAPER, FIRST).order(TERMS)
    assert (order.price_units, [other.price_units for other in order.alternatives]) == (10_500_000, [11_000_000])
    assert {other.fingerprint for other in order.alternatives} == {order.fingerprint}


def test_a_reward_that_is_too_small_by_now_is_so_by_the_rules_in_force_only() -> None:
    order = shop(LARGER, FIRST).order(TERMS)
    assert order.problems == ("Minimum amount is 20",)
    assert order.at_price(11_000_000).problems == ()
    assert order.at_price(22_000_000) is order


def test_a_price_is_not_taken_before_anybody_may_have_quoted_it() -> None:
    rules = Rules(FIRST)
    rules.follow(FIRST, [(CHEAPER, time.monotonic() + 0.2), (LARGER, time.monotonic() + 60)], time.monotonic() + 60)
    assert rules.others == []
    until(lambda: rules.others == [CHEAPER])


def test_without_a_change_there_is_one_price() -> None:
    assert shop(FIRST).order(TERMS).alternatives == ()


def test_prices_that_were_not_read_for_too_long_are_not_quoted() -> None:
    """Another server may quote others by now, and refuse these."""
    stale = shop(FIRST, lasts_s=-1)
    with pytest.raises(Unavailable, match="prices cannot be read"):
        stale.order(TERMS)
    stale.rules.follow(FIRST, (), time.monotonic() + 60)
    assert stale.order(TERMS).price_units == 11_000_000


def test_whoever_follows_is_told_of_a_change_once() -> None:
    rules = Rules(FIRST)
    assert rules.follow(CHEAPER, [(FIRST, 0)], 0)
    assert not rules.follow(CHEAPER, (), 0)
