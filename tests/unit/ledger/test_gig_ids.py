"""No id is given out before its wallet was looked at, and each open payment has one in store."""

import pytest
from sqlalchemy import Connection, update

from tests.unit.ledger.examples import ASSET, SHOP, address, key, reservation, transfer, wallet_of, word
from tests.unit.payments.examples import NOW
from x402_gig.errors import Unavailable
from x402_gig.gigs.records import TokenInfo
from x402_gig.ledger import deposits, gig_ids, payments, reservations
from x402_gig.ledger.gig_ids import Skip, Standing
from x402_gig.ledger.gigs import insert_gig
from x402_gig.ledger.tables import gig_ids as rows
from x402_gig.payments.outcome import Settled


@pytest.fixture(autouse=True)
def two_looked_at(db: Connection) -> None:
    looked_to(db, 2)


def looked_to(db: Connection, last: int) -> None:
    db.execute(update(rows).values(looked_to=last))


def sold(db: Connection, *numbers: int) -> list[Settled]:
    transfers = [transfer(number) for number in numbers]
    deposits.record(db, ASSET, transfers, NOW)
    return list(deposits.settle(db, SHOP, [word(number) for number in numbers]).values())


def keyed(db: Connection) -> int:
    values = {"creator": "", "reward": 1, "commission": 0, "start_at": NOW, "end_at": NOW}
    return insert_gig(db, wallet_of, {}, TokenInfo(address(5), "T", 0), values)[0]


def test_of_a_crowd_as_many_are_written_down_as_there_are_gigs_for(db: Connection) -> None:
    written = reservations.reserve(db, [reservation(number) for number in (1, 2, 3)])

    assert list(written) == [key(1), key(2)]
    assert payments.find(db, key(3)) is None
    assert gig_ids.standing(db) == Standing(next=1, looked_to=2, reserved=2)
    # Those who are left out are no stranger to the others: they come again.
    assert [s.answer["gig_id"] for s in sold(db, 1, 2)] == [1, 2]
    looked_to(db, 3)
    assert list(reservations.reserve(db, [reservation(3)])) == [key(3)]
    assert [s.answer["gig_id"] for s in sold(db, 3)] == [3]


def test_a_payment_that_is_left_to_others_needs_a_gig_as_well(db: Connection) -> None:
    assert list(reservations.leave(db, [reservation(number) for number in (1, 2, 3)])) == [key(1), key(2)]


def test_a_gig_of_a_key_is_not_one_that_an_open_payment_needs(db: Connection) -> None:
    reservations.reserve(db, [reservation(1)])
    assert keyed(db) == 1
    with pytest.raises(Unavailable, match="being looked at"):
        keyed(db)
    assert [s.answer["gig_id"] for s in sold(db, 1)] == [2]


def test_a_paid_gig_waits_until_its_wallet_was_looked_at(db: Connection) -> None:
    """An old copy of the ledger: its open payment was paid, and what was looked at then does not count."""
    reservations.reserve(db, [reservation(1)])
    looked_to(db, 0)
    deposits.record(db, ASSET, [transfer(1)], NOW)
    with pytest.raises(Unavailable, match="being looked at"):
        deposits.settle(db, SHOP, [word(1)])


def test_what_was_used_is_skipped_with_all_below_it(db: Connection) -> None:
    keyed(db)
    skip = gig_ids.note_looked(db, 9, 4, wallet_of(4), anew=False)

    assert skip == Skip(2, 4, wallet_of(4))
    assert gig_ids.skips(db) == [skip]
    assert str(skip).startswith(f"gigs 2 to 4 are skipped: the wallet {wallet_of(4)} of gig 4 was used before")
    assert gig_ids.standing(db) == Standing(next=5, looked_to=9, reserved=0)
    assert keyed(db) == 5


def test_a_gig_that_was_made_and_funded_since_the_look_is_no_used_one(db: Connection) -> None:
    keyed(db)
    assert gig_ids.note_looked(db, 9, 1, wallet_of(1), anew=False) is None
    assert gig_ids.skips(db) == []
    assert keyed(db) == 2


@pytest.mark.parametrize(("anew", "last"), [(False, 2), (True, 1)])
def test_what_another_server_has_looked_at_counts_but_for_a_server_that_starts(
    db: Connection, anew: bool, last: int
) -> None:
    gig_ids.note_looked(db, 1, 0, "", anew=anew)
    assert gig_ids.standing(db).looked_to == last
