"""The end of a gig wallet's slot decides about the money that the slot carried."""

from pathlib import Path

import pytest
from sqlalchemy import insert, select

from tests.unit.ledger.examples import END, address, transfer, wallet_of, word
from tests.unit.payments.examples import NOW
from x402_gig.gigs.records import TokenInfo
from x402_gig.ledger import keyed_gigs, movements, slots, tables
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.keyed_gigs import Draft, Fee, Started
from x402_gig.ledger.movements import Movement
from x402_gig.relaying.relayer import _close

ODD = TokenInfo(address(0x0DD), "ODD", 18)


@pytest.mark.parametrize(("end", "state"), [("mined", "done"), ("reverted", "due"), ("filled", "due")])
def test_a_commission_is_paid_by_a_transaction_that_succeeds(tmp_path: Path, end: str, state: str) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.transaction() as db:
        slot = commission_under_way(db)
        _close(db, slot, end, END)
        assert db.execute(select(tables.movements.c.state)).scalar_one() == state
        assert slots.open_slots(db, slot.relayer) == []
    ledger.close()


def commission_under_way(db: Connection) -> slots.Slot:
    wallet, move = commission_due(db)
    slot = slots.open_slot(db, wallet, slots.PAYOUT, 0)
    movements.enter_slot(db, slot.slot_id, [move], 0)
    return slot


def commission_due(db: Connection) -> tuple[str, Movement]:
    """A live gig's wallet and what is to leave it."""
    db.execute(insert(tables.api_keys).values(name="A", prefix="gig_1", hash=word(1), created_at=NOW))
    gig_id, wallet = keyed_gigs.create(db, wallet_of, Draft(1, {}, ODD, 10, 1, NOW, NOW + 60, 41))
    gig, fence = keyed_gigs.find(db, gig_id), keyed_gigs.take_turn(db, gig_id, 0)
    assert gig is not None
    assert fence is not None
    started = Started([transfer(3, nonce=None, payee=wallet)], 0, NOW, NOW + 60)
    assert keyed_gigs.go_live(db, gig, fence, started, Fee(address(0xFEE), word(0xFEE), ODD.address))
    [move] = movements.due_in_tokens(db, 1)
    return wallet, move
