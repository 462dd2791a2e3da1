"""The settings that the ledger keeps, and which rule sets count when."""

from typing import Any

import pytest
from sqlalchemy import Connection

from tests.unit.ledger.examples import address, word
from x402_gig.ledger import chain_state, shared_settings
from x402_gig.ledger.chain_state import Binding, Cursor

START = 1_000_000
OFFER_S = 60
WANTED: dict[str, Any] = {
    "network": "base",
    "wallet_account": 2,
    "commission_address": address(7),
    "commission_bps": 1000,
    "minimum_reward": 10_000_000,
    "maximum_reward": 10**18,
}


class Clock:
    """The database's."""

    now = START

    def __call__(self, _: Connection) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(shared_settings, "clock_s", stopped)
    return stopped


@pytest.fixture
def started(db: Connection, clock: Clock) -> Connection:
    """A ledger on which a server has started."""
    chain_state.bind(db, Binding(8453, word(1), address(1)), Cursor(5, word(5)), 0)
    shared_settings.keep(db, WANTED)
    return db


def in_force(db: Connection) -> tuple[int, list[int]]:
    """The commission in force, and the others that may have been quoted or may be within the margin."""
    current, others = shared_settings.in_force(db, OFFER_S)
    return current.commission_bps, sorted(rules.commission_bps for rules, seconds in others if seconds <= 0)


def test_a_ledger_that_is_nobodys_keeps_nothing(db: Connection) -> None:
    assert shared_settings.settings(db) == {}


def test_a_ledger_keeps_what_the_first_start_says(started: Connection) -> None:
    assert shared_settings.settings(started) == WANTED
    assert shared_settings.keep(started, WANTED | {"commission_bps": 1, "network": "devnet"}) == WANTED
    assert in_force(started) == (1000, [])
    assert shared_settings.commission_address(started) == address(7)


def test_a_change_of_the_address_counts_at_once_and_one_of_the_prices_for_the_next_start(started: Connection) -> None:
    shared_settings.change_commission_address(started, address(8))
    shared_settings.change_prices(started, {"commission_bps": 500})
    changed = {"commission_address": address(8), "commission_bps": 500}
    assert shared_settings.settings(started) == WANTED | changed
    assert [rules.commission_bps for rules in shared_settings.history(started)] == [500, 1000]


def test_a_rule_set_is_known_before_it_is_in_force_and_taken_while_its_offers_live(
    started: Connection, clock: Clock
) -> None:
    clock.now += 1000
    assert (
        shared_settings.change_prices(started, {"commission_bps": 500}).valid_from == clock.now + shared_settings.LEAD_S
    )
    seen = []
    for seconds in (
        0,
        shared_settings.FRESH_S - 1,
        1,
        shared_settings.MARGIN_S - 1,
        1,
        OFFER_S + shared_settings.LEAD_S - 1,
        1,
    ):
        clock.now += seconds
        seen.append(in_force(started))
    waiting: tuple[int, list[int]] = (1000, [])
    known, quoted = (1000, [500]), (500, [1000])
    assert seen == [waiting, waiting, known, known, quoted, quoted, (500, [])]


def test_a_rule_set_that_is_followed_before_it_is_in_force_never_is(started: Connection, clock: Clock) -> None:
    clock.now += 1000
    shared_settings.change_prices(started, {"commission_bps": 1})
    clock.now += shared_settings.FRESH_S - 1
    second = shared_settings.change_prices(started, {"commission_bps": 900})
    for clock.now in range(START + 1000 + shared_settings.FRESH_S - 1, second.valid_from - shared_settings.MARGIN_S):
        assert in_force(started) == (1000, [])
    for clock.now in range(second.valid_from - shared_settings.MARGIN_S, second.valid_from):
        assert in_force(started) == (1000, [900])
    for clock.now in range(second.valid_from, second.valid_from + OFFER_S + shared_settings.LEAD_S):
        assert in_force(started) == (900, [1000])


def test_a_rule_set_that_is_followed_as_it_comes_into_force_is_for_that_long(started: Connection, clock: Clock) -> None:
    """A server may have read the ledger before the later one was committed."""
    clock.now += 1000
    shared_settings.change_prices(started, {"commission_bps": 1})
    clock.now += shared_settings.FRESH_S
    shared_settings.change_prices(started, {"commission_bps": 900})
    clock.now += shared_settings.MARGIN_S
    assert in_force(started) == (1, [1000])


def test_of_several_changes_each_is_taken_while_it_may_have_been_quoted(started: Connection, clock: Clock) -> None:
    for bps in (500, 400, 300):
        clock.now += 30
        shared_settings.change_prices(started, {"commission_bps": bps})
    assert in_force(started) == (400, [500, 1000])
    clock.now += OFFER_S
    assert in_force(started) == (300, [400])


def test_rule_sets_follow_one_another_also_when_the_clock_goes_back(started: Connection, clock: Clock) -> None:
    first = shared_settings.change_prices(started, {"commission_bps": 500})
    clock.now -= 100
    second = shared_settings.change_prices(started, {"minimum_reward": 1})
    assert (second.valid_from, second.commission_bps) == (clock.now + shared_settings.LEAD_S, 500)
    assert in_force(started)[0] == 1000
    for clock.now in (second.valid_from, first.valid_from, first.valid_from + 1000):
        assert shared_settings.in_force(started, OFFER_S)[0] == second


def test_a_rule_set_that_was_written_while_the_clock_was_ahead_keeps_no_later_one_waiting(
    started: Connection, clock: Clock
) -> None:
    clock.now += 3600
    shared_settings.change_prices(started, {"commission_bps": 500})
    clock.now -= 3600 - 1000
    shared_settings.change_prices(started, {"commission_bps": 400})
    clock.now += shared_settings.LEAD_S
    assert in_force(started) == (400, [500, 1000])
    clock.now += OFFER_S + shared_settings.LEAD_S
    assert in_force(started) == (400, [])
    clock.now += 3600
    assert in_force(started) == (400, [])
