import pytest
from sqlalchemy import Connection

from tests.unit.ledger.examples import address, reserved, word
from x402_gig.evm.node import SignedTransaction
from x402_gig.ledger import payment_queries, payments, slots
from x402_gig.ledger.slots import Attempt


def test_a_transaction_names_all_payments_that_it_carried(db: Connection) -> None:
    ids = reserved(db, 1, 2)
    slot = slots.open_slot(db, address(9), "deposit", 0)
    slots.enter_payments(db, slot, ids)
    for number in (50, 51):
        slots.add_attempt(db, slot, Attempt(SignedTransaction(word(number), "0xff"), 1, 1, 1))
    assert payment_queries.with_hash(db, word(50)) == payment_queries.with_hash(db, word(51)) == sorted(ids)
    assert payment_queries.with_hash(db, word(52)) == []


def test_a_nonce_may_be_that_of_two_payers(db: Connection) -> None:
    ids = reserved(db, 1, 2)
    assert payment_queries.with_hash(db, word(1)) == ids[:1]


def test_a_story_has_no_secret(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    slot = slots.open_slot(db, address(9), "deposit", 0)
    slots.enter_payments(db, slot, [payment_id])
    slots.add_attempt(db, slot, Attempt(SignedTransaction(word(50), "0xc0ffee"), 1, 1, 1))
    story = payment_queries.story(db, payment_id)
    assert [send["attempts"][0]["hash"] for send in story.sends] == [word(50)]
    assert "signature" not in story.payment
    assert "c0ffee" not in str(story)


@pytest.mark.parametrize(("state", "found"), [("open", 1), ("settled", 0), (None, 1)])
def test_lists_are_by_state(db: Connection, state: str | None, found: int) -> None:
    reserved(db, 1)
    assert len(payment_queries.newest(db, 10, state=state)) == found


def test_only_what_nobody_sends_again_is_flagged(db: Connection) -> None:
    for _ in range(payments.MAX_BROADCASTS):
        assert payment_queries.newest(db, 10, flagged=True) == []
        [payment_id] = reserved(db, 1)
    assert [row["id"] for row in payment_queries.newest(db, 10, flagged=True)] == [payment_id]
    payments.send_again(db, payment_id)
    assert payment_queries.newest(db, 10, flagged=True) == []
