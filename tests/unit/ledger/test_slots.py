import pytest
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from tests.unit.ledger.examples import address, reserved, word
from x402_gig.evm.node import SignedTransaction
from x402_gig.ledger import slots, tables
from x402_gig.ledger.slots import Attempt, End, Slot
from x402_gig.ledger.tables import slot_payments

RELAYER, OTHER = address(1), address(2)
MINED = End(7, word(7), word(1), 21_000)


def take(db: Connection, relayer: str = RELAYER, chain_nonce: int = 0) -> Slot:
    return slots.open_slot(db, relayer, "deposit", chain_nonce)


def attempt(number: int) -> Attempt:
    return Attempt(SignedTransaction(word(number), f"0x{number:02x}"), 100 + number, number, 21_000)


def test_nonces_follow_each_other_from_the_chains(db: Connection) -> None:
    assert [take(db, chain_nonce=5).nonce for _ in range(3)] == [5, 6, 7]
    assert take(db, chain_nonce=0).nonce == 8


def test_a_chain_that_is_ahead_wins(db: Connection) -> None:
    """Somebody used the relayer's key elsewhere."""
    take(db)
    assert take(db, chain_nonce=40).nonce == 40


def test_relayers_count_for_themselves(db: Connection) -> None:
    assert [take(db).nonce, take(db).nonce, take(db, OTHER).nonce] == [0, 1, 0]


def test_a_nonce_is_one_slot(db: Connection) -> None:
    take(db)
    row = {"relayer": RELAYER, "nonce": 0, "purpose": "x", "state": "open", "created_at": 1}
    with pytest.raises(IntegrityError, match="nonce"):
        db.execute(insert(tables.slots), row)


def test_every_attempt_is_kept_newest_first(db: Connection) -> None:
    slot, neighbour = take(db), take(db)
    for number in (1, 2, 3):
        slots.add_attempt(db, slot, attempt(number))
    slots.add_attempt(db, neighbour, attempt(4))
    assert slots.attempts_of(db, slot) == [attempt(3), attempt(2), attempt(1)]
    assert slots.attempts_of(db, neighbour) == [attempt(4)]


def test_an_attempt_that_is_there_already_is_written_once(db: Connection) -> None:
    """The answer to its commit was lost, and the same transaction is signed again."""
    slot = take(db)
    for _ in range(2):
        slots.add_attempt(db, slot, attempt(1))
    assert slots.attempts_of(db, slot) == [attempt(1)]


def test_open_slots_come_in_the_order_of_their_nonces(db: Connection) -> None:
    first, second, _ = take(db, chain_nonce=10), take(db), take(db, OTHER)
    assert slots.open_slots(db, RELAYER) == [first, second]
    slots.close(db, first, "mined", MINED)
    assert slots.open_slots(db, RELAYER) == [second]


def test_a_slot_ends_once(db: Connection) -> None:
    slot = take(db)
    slots.close(db, slot, "mined", MINED)
    slots.close(db, slot, "lost", End(8, word(8)))
    s = tables.slots.c
    [row] = db.execute(select(s.state, s.transaction, s.block_number, s.gas_used, s.closed_at)).all()
    assert tuple(row[:4]) == ("mined", word(1), 7, 21_000)
    assert row.closed_at


def test_a_slot_knows_its_payments(db: Connection) -> None:
    slot, other = take(db), take(db)
    slots.enter_payments(db, slot, reserved(db, 1, 2))
    slots.enter_payments(db, other, reserved(db, 3))
    rows = db.execute(select(slot_payments.c.slot_id, slot_payments.c.payment_id).order_by(slot_payments.c.payment_id))
    assert [tuple(row) for row in rows] == [(slot.slot_id, 1), (slot.slot_id, 2), (other.slot_id, 3)]


def test_a_signed_transaction_does_not_show_itself(db: Connection) -> None:
    """Until it is on chain it is as secret as the money it moves."""
    assert repr(SignedTransaction(word(1), "0xf00d")) == f"SignedTransaction({word(1)})"
    assert "0x01" not in repr(attempt(1))
