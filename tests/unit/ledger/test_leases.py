"""Who may use which relayer, and until when."""

import time
from collections.abc import Sequence

import pytest
from sqlalchemy import Connection, select

from tests.unit.ledger.examples import address
from x402_gig.ledger import leases, tables
from x402_gig.ledger.leases import FUNDING, LEASE_S, Standing

FOUR = [address(number) for number in (1, 2, 3, 4)]


class Clock:
    """The database's."""

    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self, _: Connection) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(leases, "clock_s", stopped)
    return stopped


def joined(db: Connection, relayers: Sequence[str] = FOUR) -> Standing:
    return leases.renew(db, None, relayers)


def again(db: Connection, standing: Standing, relayers: Sequence[str] = FOUR) -> Standing:
    return leases.renew(db, standing.process_id, relayers)


def relayers_of(standing: Standing) -> list[str]:
    return sorted(set(standing.held) - {FUNDING})


def settled(db: Connection, standings: Sequence[Standing], relayers: Sequence[str] = FOUR) -> list[Standing]:
    """After each has renewed, and given up what is too much, and renewed."""
    for standing in [again(db, each, relayers) for each in standings]:
        for name in relayers_of(standing)[standing.share :]:
            leases.give_up(db, standing.process_id, name)
    return [again(db, each, relayers) for each in standings]


def test_one_process_has_everything_at_once(db: Connection) -> None:
    only = joined(db)
    assert (relayers_of(only), only.share, only.processes, only.orphaned) == (FOUR, 4, 1, None)
    assert FUNDING in only.held
    assert again(db, only) == only


@pytest.mark.parametrize(
    ("relayers", "processes", "shares"),
    [(4, 2, [2, 2]), (4, 3, [2, 1, 1]), (3, 3, [1, 1, 1]), (2, 3, [1, 1, 0]), (1, 2, [1, 0])],
)
def test_shares_are_fair_and_nothing_is_left(db: Connection, relayers: int, processes: int, shares: list[int]) -> None:
    names = FOUR[:relayers]
    standings = settled(db, [joined(db, names) for _ in range(processes)], names)
    assert [len(relayers_of(each)) for each in standings] == [each.share for each in standings] == shares
    assert sorted(name for each in standings for name in relayers_of(each)) == names
    assert [FUNDING in each.held for each in standings].count(True) == 1


def test_what_is_held_is_not_taken_away(db: Connection) -> None:
    first = joined(db)
    second = joined(db)
    assert relayers_of(second) == []
    assert again(db, first).held == first.held


def test_who_misses_the_deadline_is_struck_off_and_his_relayers_go_to_the_others(db: Connection, clock: Clock) -> None:
    first, second = settled(db, [joined(db), joined(db)])
    clock.now += LEASE_S
    assert again(db, second).orphaned is None
    clock.now += 1

    heir = again(db, second)

    assert heir.orphaned == frozenset(first.held)
    assert (relayers_of(heir), heir.processes) == (FOUR, 1)
    assert FUNDING in heir.held


def test_a_process_that_was_struck_off_has_a_new_number_and_nothing(db: Connection, clock: Clock) -> None:
    first, second = settled(db, [joined(db), joined(db)])
    clock.now += LEASE_S + 1
    again(db, second)

    back = again(db, first)

    assert back.process_id > second.process_id
    assert relayers_of(back) == []
    assert not any(leases.is_held(db, name, fence) for name, fence in first.held.items())


def test_a_late_renewal_counts_while_nobody_else_has_looked(db: Connection, clock: Clock) -> None:
    only = joined(db)
    clock.now += 10 * LEASE_S
    assert again(db, only) == only


def test_a_lease_that_was_lost_and_taken_again_is_another_one(db: Connection) -> None:
    """Whoever was busy in the meantime must not write with what he knew before."""
    only = joined(db)
    fence = only.held[FOUR[0]]
    assert leases.is_held(db, FOUR[0], fence)
    leases.give_up(db, only.process_id, FOUR[0])
    assert not leases.is_held(db, FOUR[0], fence)

    taken = again(db, only)

    assert taken.held[FOUR[0]] == fence + 1
    assert not leases.is_held(db, FOUR[0], fence)
    assert leases.is_held(db, FOUR[0], fence + 1)
    assert leases.is_held(db, FOUR[1], taken.held[FOUR[1]])


def test_only_the_holder_gives_up(db: Connection) -> None:
    first, second = joined(db), joined(db)
    leases.give_up(db, second.process_id, FOUR[0])
    leases.leave(db, second.process_id)
    assert again(db, first).held == first.held


def test_who_leaves_leaves_everything_at_once(db: Connection) -> None:
    first, second = joined(db), joined(db)
    leases.leave(db, first.process_id)
    heir = again(db, second)
    assert (relayers_of(heir), heir.processes, heir.orphaned) == (FOUR, 1, None)


def test_money_is_moved_on_by_whoever_can_pay_for_it(db: Connection) -> None:
    poor, rich = settled(db, [joined(db), joined(db)])
    assert FUNDING in poor.held
    assert FUNDING not in leases.renew(db, poor.process_id, FOUR, relayers_of(poor)).held
    assert FUNDING in again(db, rich).held
    assert FUNDING not in again(db, poor).held


def test_who_is_alone_waits_for_nobodys_deadline(db: Connection) -> None:
    joined(db)
    only = leases.renew(db, None, FOUR, is_alone=True)
    assert (relayers_of(only), only.processes) == (FOUR, 1)
    assert only.orphaned == frozenset([*FOUR, FUNDING])
    assert len(db.execute(select(tables.processes)).all()) == 1


def test_the_clock_is_the_databases(db: Connection) -> None:
    joined(db)
    [ends_at] = db.execute(select(tables.processes.c.ends_at)).scalars()
    assert abs(ends_at - LEASE_S - time.time()) < 5


def test_each_process_says_how_many_relayers_it_knows(db: Connection) -> None:
    first = joined(db)
    assert first.relayers == (4,)
    second = joined(db, FOUR[:2])
    assert again(db, first).relayers == again(db, second, FOUR[:2]).relayers == (2, 4)


def test_what_a_process_has_is_held_while_it_is_alive(db: Connection, clock: Clock) -> None:
    """Whoever starts with fewer relayers leaves their transactions to whoever has them."""
    joined(db)
    assert leases.held_now(db) == {*FOUR, FUNDING}
    clock.now += LEASE_S + 1
    assert leases.held_now(db) == set()
