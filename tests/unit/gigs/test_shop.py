"""What is delivered is what was paid for, whatever it would cost by now."""

from typing import Any

import pytest

from tests.unit.gigs.test_terms import LIMITS, NOW, body_of
from x402_gig.gigs.rules import Rules, RuleSet
from x402_gig.gigs.shop import GigShop
from x402_gig.payments.order import Purchase

REWARD, COMMISSION = 10_000_000, 1_000_000


class Shelf:
    """Keeps what is put on it."""

    def __init__(self) -> None:
        self.added: dict[str, Any] = {}

    def add(self, purchase: Purchase, **values: Any) -> tuple[int, str]:
        self.added = values
        return 1, "0x" + "11" * 20


def shop(commission_bps: int) -> GigShop:
    rules = RuleSet(1, 0, commission_bps, LIMITS.minimum_units, LIMITS.maximum_units)
    return GigShop(Rules(rules), LIMITS.token_address, LIMITS.chain, 8453, lambda: NOW)


@pytest.mark.parametrize("bps_now", [0, 1000, 2500])
def test_a_gig_has_the_commission_that_was_paid_with_it(bps_now: int) -> None:
    """The operator may change the rate between the order and its deposit."""
    order = shop(1000).order(body_of())
    assert order.price_units == REWARD + COMMISSION
    purchase = Purchase(1, "0x" + "22" * 20, order.price_units, "0x" + "33" * 32, "eip155:8453", order.terms)
    shelf = Shelf()

    done = shop(bps_now).fulfil(shelf, purchase)

    assert (shelf.added["reward_units"], shelf.added["commission_units"]) == (REWARD, COMMISSION)
    assert (done.commission_units, done.answer["platform_fee"]) == (COMMISSION, "1")
