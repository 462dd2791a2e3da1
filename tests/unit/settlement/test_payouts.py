"""A payout that takes long is named, and says what it waits for."""

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from x402_gig.settlement.payouts import SLOW_S, Work


def problem(seconds: float, waits_for: str = "", stuck: str = "") -> str:
    agent = cast(Any, SimpleNamespace(gig_id=12, waits_for=waits_for, stuck=stuck))
    return Work(agent, time.monotonic() - seconds).problem


def test_a_payout_is_named_after_a_minute() -> None:
    assert problem(SLOW_S - 5) == ""
    assert "gig 12: its payout has been under way for 61 s" in problem(SLOW_S + 1.5)


@pytest.mark.parametrize("waits_for", ["its funding is off the chain", ""])
def test_it_says_what_it_waits_for(waits_for: str) -> None:
    assert problem(100, waits_for).endswith(waits_for or "the log says what it waits for")


def test_one_that_waits_for_the_operator_is_named_at_once() -> None:
    assert problem(0, stuck="x402-gig gigs unblock 12") == "x402-gig gigs unblock 12"
