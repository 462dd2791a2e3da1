"""Gigs created with a key, in the ledger: whose turn it is, and that a start counts once."""

import pytest
from sqlalchemy import Connection, insert, select, update

from tests.unit.ledger.examples import address, transfer, wallet_of, word
from tests.unit.payments.examples import INTAKE, NOW
from x402_gig.errors import Unavailable
from x402_gig.gigs.records import GigRecord, TokenInfo
from x402_gig.ledger import chain_state, debts, keyed_gigs, slots
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.keyed_gigs import Draft, Fee, Started
from x402_gig.ledger.movements import due_in_tokens, enter_slot
from x402_gig.ledger.tables import api_keys, gigs, movements

ODD = TokenInfo(address(0x0DD), "ODD", 18)
HUGE = 2**255
FEE = Fee(address(0xFEE), word(0xFEE), ODD.address)


@pytest.fixture
def gig(db: Connection) -> GigRecord:
    values = {"id": 1, "name": "A", "prefix": "gig_1", "hash": word(1), "created_at": NOW}
    db.execute(insert(api_keys).values(values))
    gig_id, wallet = keyed_gigs.create(db, wallet_of, Draft(1, {}, ODD, HUGE, 7, NOW, NOW + 60, 41))
    found = keyed_gigs.find(db, gig_id, 1)
    assert found is not None
    assert found.wallet == wallet == wallet_of(gig_id)
    return found


def test_a_halted_ledger_gives_out_no_wallet(db: Connection, gig: GigRecord) -> None:
    """Also where the server does not know of the halt yet."""
    chain_state.bind(db, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0)
    chain_state.halt_funding(db, "an old backup")
    with pytest.raises(Unavailable):
        keyed_gigs.create(db, wallet_of, Draft(1, {}, ODD, HUGE, 7, NOW, NOW + 60, 41))
    assert db.execute(select(gigs.c.id)).scalars().all() == [gig.gig_id]


def started(surplus_units: int = 0) -> Started:
    return Started([transfer(3, nonce=None, value=HUGE + 7)], surplus_units, NOW, NOW + 60)


def turn(db: Connection, gig: GigRecord, lease_s: int = 0) -> int:
    number = keyed_gigs.take_turn(db, gig.gig_id, lease_s)
    assert number is not None
    return number


def test_amounts_of_any_size_are_kept_to_the_unit(db: Connection, gig: GigRecord) -> None:
    assert (gig.reward_units, gig.total_units) == (HUGE, HUGE + 7)
    assert keyed_gigs.go_live(db, gig, turn(db, gig), started(surplus_units=HUGE - 1), FEE)
    live = keyed_gigs.find(db, gig.gig_id)
    assert live is not None
    assert (live.state, live.surplus_units, live.creator) == ("live", HUGE - 1, address(3))
    [fee] = due_in_tokens(db, 10)
    assert (fee.kind, fee.value, fee.payee, fee.source_gig) == ("fee", 7, FEE.payee, gig.gig_id)


def test_the_payer_is_the_one_who_sent_the_most_and_his_largest_deposit_paid_for_the_gig(
    db: Connection, gig: GigRecord
) -> None:
    # Neither the sender of the first, nor of the last and largest.
    sent = [(1, 6, 2), (2, 5, 9), (3, 5, 10), (4, 6, 11)]
    deposits = [transfer(n, payer=address(payer), nonce=None, value=units) for n, payer, units in sent]
    assert keyed_gigs.go_live(db, gig, turn(db, gig), Started(deposits, 0, NOW, NOW + 60), FEE)
    live = keyed_gigs.find(db, gig.gig_id)
    assert live is not None
    assert (live.creator, live.deposit_transaction) == (address(5), deposits[2].transaction)
    keyed_gigs.forget_block(db, 102, word(0xBAD))
    keyed_gigs.forget_block(db, 103, word(0xBAD))
    found = keyed_gigs.find(db, gig.gig_id)
    assert found is not None
    assert found.deposit_transaction == deposits[3].transaction


def test_it_is_found_by_its_own_key_and_not_by_others(db: Connection, gig: GigRecord) -> None:
    assert keyed_gigs.find(db, gig.gig_id, 2) is None
    assert keyed_gigs.find(db, gig.gig_id + 1) is None


def test_only_one_has_the_turn_until_it_ends(db: Connection, gig: GigRecord) -> None:
    first = turn(db, gig, 30)
    assert keyed_gigs.take_turn(db, gig.gig_id, 30) is None
    keyed_gigs.end_turn(db, gig.gig_id, first)
    assert turn(db, gig, 30) > first


def test_the_turn_of_one_who_died_is_over_when_its_time_is(db: Connection, gig: GigRecord) -> None:
    dead = turn(db, gig, 30)
    db.execute(update(gigs).values(start_until=NOW))
    heir = turn(db, gig, 30)
    keyed_gigs.end_turn(db, gig.gig_id, dead)  # he lives after all, and ends nobody's turn but his own
    assert keyed_gigs.take_turn(db, gig.gig_id, 0) is None
    assert not keyed_gigs.go_live(db, gig, dead, started(), FEE)
    assert keyed_gigs.go_live(db, gig, heir, started(), FEE)


def test_a_start_counts_once(db: Connection, gig: GigRecord) -> None:
    late, mine = turn(db, gig), turn(db, gig)
    assert keyed_gigs.go_live(db, gig, mine, started(), FEE)
    assert keyed_gigs.go_live(db, gig, mine, started(), FEE)  # its own work, told again
    assert not keyed_gigs.go_live(db, gig, late, started(), FEE)
    assert keyed_gigs.take_turn(db, gig.gig_id, 0) is None
    assert len(db.execute(select(movements.c.id)).all()) == 1


def test_a_cancelled_gig_is_never_started(db: Connection, gig: GigRecord) -> None:
    number = turn(db, gig)
    keyed_gigs.give_back(db, gig, 0)
    assert keyed_gigs.take_turn(db, gig.gig_id, 0) is None
    assert not keyed_gigs.go_live(db, gig, number, started(), FEE)


def test_nothing_leaves_its_wallet_while_its_funding_is_off_the_chain(db: Connection, gig: GigRecord) -> None:
    keyed_gigs.go_live(db, gig, turn(db, gig), started(), FEE)
    keyed_gigs.forget_block(db, 103, word(0xBAD))
    assert due_in_tokens(db, 10) == []
    [suspended] = keyed_gigs.suspended(db, 10)
    assert suspended.suspended
    keyed_gigs.funded_again(db, gig.gig_id, [transfer(3, nonce=None, block_number=105)])
    assert keyed_gigs.suspended(db, 10) == []
    assert len(due_in_tokens(db, 10)) == 1


def test_nothing_is_sent_again_from_a_wallet_whose_funding_is_off_the_chain(db: Connection, gig: GigRecord) -> None:
    keyed_gigs.go_live(db, gig, turn(db, gig), started(), FEE)
    slot = slots.open_slot(db, gig.wallet, slots.PAYOUT, 0)
    enter_slot(db, slot.slot_id, due_in_tokens(db, 1), 0)
    assert slots.is_backed(db, slot)
    keyed_gigs.forget_block(db, 103, word(0xBAD))
    assert not slots.is_backed(db, slot)


def test_what_is_owed_is_the_reward_and_what_has_not_left(db: Connection, gig: GigRecord) -> None:
    assert debts.owed(db, gig.gig_id) == 0
    keyed_gigs.go_live(db, gig, turn(db, gig), started(), FEE)
    assert debts.owed(db, gig.gig_id) == HUGE + 7
    assert debts.shortage(db, gig.gig_id, HUGE + 7) == ""
    assert debts.shortage(db, gig.gig_id, HUGE + 6)
    assert debts.shortage(db, gig.gig_id, None)
    db.execute(update(movements).values(state="done", block_number=9))
    assert debts.owed(db, gig.gig_id) == HUGE
    assert keyed_gigs.newest_payout_block(db, gig.gig_id) == 9


def test_without_a_commission_nothing_leaves(db: Connection, gig: GigRecord) -> None:
    db.execute(update(gigs).values(commission=0))
    free = keyed_gigs.find(db, gig.gig_id)
    assert free is not None
    keyed_gigs.go_live(db, free, turn(db, free), started(), FEE)
    assert due_in_tokens(db, 10) == []
