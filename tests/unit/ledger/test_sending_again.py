"""Payments that are sent once more, and the journal of what became of each."""

import time
from collections.abc import Callable

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, select

from tests.unit.ledger.examples import ASSET, END, ORDER, SHOP, address, key, reservation, reserved, transfer, word
from tests.unit.payments.examples import NOW
from x402_gig.errors import Unavailable
from x402_gig.ledger import (
    abandonment,
    chain_state,
    deposits,
    journal,
    payments,
    remote_payments,
    reservations,
    slots,
    tables,
)
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.payments import MAX_BROADCASTS, Delivery
from x402_gig.payments.outcome import Rejected

REJECTED = Rejected("some_reason", "In words")
GONE = "the block of its deposit was replaced"


def settle(db: Connection, number: int) -> None:
    deposits.record(db, ASSET, [transfer(number)], NOW)
    assert len(deposits.settle(db, SHOP, [word(number)])) == 1


def lose(db: Connection, number: int) -> list[int]:
    """The block of its deposit is another one now."""
    return deposits.forget_block(db, transfer(number).block_number, word(9999))


def entries(db: Connection, payment_id: int) -> list[tuple[str, str, str | None]]:
    j = tables.journal.c
    query = select(j.state, j.reason, j.transaction).where(j.payment_id == payment_id).order_by(j.id)
    return [(row.state, row.reason, row.transaction) for row in db.execute(query)]


def column(db: Connection, payment_id: int, name: str) -> object:
    return db.execute(select(tables.payments.c[name]).where(tables.payments.c.id == payment_id)).scalar_one()


def resent(db: Connection, limit: int = 10) -> list[int]:
    return [payment_id for payment_id, _ in payments.to_resend(db, limit)]


def exhaust(db: Connection, number: int) -> None:
    """Send it as often as we send one."""
    for _ in range(MAX_BROADCASTS):
        slot = slots.open_slot(db, address(9), "deposit", 0)
        slots.enter_payments(db, slot, reserved(db, number))
        slots.close(db, slot, "mined", END)


# The journal


def test_every_state_is_noted_with_its_reason_and_transaction(db: Connection) -> None:
    before = int(time.time())
    first, second = reserved(db, 1, 2)
    settle(db, 1)
    lose(db, 1)
    settle(db, 1)
    payments.reject(db, second, REJECTED)
    assert entries(db, first) == [
        ("open", "", None),
        ("settled", "", word(1001)),
        ("open", GONE, None),
        ("settled", "", word(1001)),
    ]
    assert entries(db, second) == [("open", "", None), ("rejected", "some_reason: In words", None)]
    times = db.execute(select(tables.journal.c.at).order_by(tables.journal.c.id)).scalars().all()
    assert sorted(times) == times
    assert before <= times[0] <= time.time()


def test_what_changes_nothing_is_not_noted(db: Connection) -> None:
    first, second = reserved(db, 1, 2)
    settle(db, 1)
    payments.reject(db, second, REJECTED)
    written = db.execute(select(tables.journal)).all()

    assert not payments.reject(db, first, REJECTED)
    assert not payments.reject(db, second, REJECTED)
    assert not payments.send_again(db, first)
    assert not payments.send_again(db, second)
    assert payments.reopen(db, [second], GONE) == []
    assert reservations.write_down(db, [reservation(1)]) == {}
    abandonment.mark_abandoned(db, [first, second], False)
    journal.note(db, [], "open")

    assert db.execute(select(tables.journal)).all() == written


def test_a_mark_is_noted_once_and_so_is_its_end(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    for _ in range(2):
        abandonment.mark_abandoned(db, [payment_id])
    settle(db, 1)
    for _ in range(2):
        abandonment.mark_abandoned(db, [payment_id], False)
    assert [(state, reason) for state, reason, _ in entries(db, payment_id)] == [
        ("open", ""),
        ("open", "its buyer stopped waiting"),
        ("settled", ""),
        ("settled", "its buyer has the answer"),
    ]


# To be sent again


def test_a_payment_that_is_open_again_is_as_it_was_when_it_was_written_down(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    settle(db, 1)
    answer = column(db, payment_id, "answer")
    assert (column(db, payment_id, "transaction"), column(db, payment_id, "resend")) == (word(1001), 0)
    assert lose(db, 1) == [payment_id]

    [(again, wanted)] = payments.to_resend(db, 10)
    kept = replace(ORDER, kept=ORDER.fingerprint)
    assert (again, wanted) == (payment_id, reservation(1, kept))
    assert payments.find_open(db, payment_id) == wanted
    assert [column(db, payment_id, name) for name in ("state", "transaction", "final_at")] == ["open", None, None]
    # Its gig is made already.
    assert column(db, payment_id, "answer") == answer is not None


def test_one_whose_end_is_not_kept_as_it_was_signed_is_not_sent_again(db: Connection) -> None:
    paid = reservation(1).payment
    endless = replace(paid, authorization=replace(paid.authorization, valid_before=2**256 - 1))
    reservations.write_down(db, [reservation(1, payment=endless)])
    settle(db, 1)
    assert lose(db, 1) == [1]
    assert resent(db) == []
    [kept] = payments.unsettled(db, 0, 10)
    assert kept.authorization.valid_before == payments.LAST_S
    settle(db, 1)


def test_nobody_is_charged_in_a_ledger_that_was_halted_meanwhile(db: Connection) -> None:
    """The server may not know of the halt yet. A payment whose money is here already is claimed all the same."""
    chain_state.bind(db, Binding(8453, word(9), "0x1"), Cursor(1, word(8)), 0)
    failed, wanted = reserved(db, 1, 2)
    remote_payments.note_failure(db, failed)
    payments.send_again(db, wanted)
    chain_state.halt_funding(db, "somebody else has the seed")
    attempts: list[Callable[[], object]] = [
        lambda: remote_payments.ask_again(db, failed),
        lambda: remote_payments.take_resend(db, wanted),
        lambda: reservations.leave(db, [reservation(3)]),
    ]
    for attempt in attempts:
        with pytest.raises(Unavailable, match="does not sell at the moment"), db.begin_nested():
            attempt()
    assert [column(db, payment_id, "broadcasts") for payment_id in (failed, wanted)] == [1, 1]
    assert payments.find(db, key(3)) is None
    assert reservation(3).key in reservations.write_down(db, [reservation(3)])


def test_only_settled_payments_are_opened_again(db: Connection) -> None:
    ids = reserved(db, 1, 2, 3)
    settle(db, 1)
    payments.reject(db, ids[1], REJECTED)
    assert payments.reopen(db, ids, GONE) == [ids[0]]
    assert resent(db) == [ids[0]]


def test_what_is_to_be_sent_again_comes_oldest_first_and_so_many_at_a_time(db: Connection) -> None:
    first, second, third = reserved(db, 1, 2, 3)
    for payment_id in (third, first, second):
        assert payments.send_again(db, payment_id)
    assert resent(db, 2) == [first, second]
    assert resent(db) == [first, second, third]


def test_what_is_under_way_or_final_is_not_sent_again(db: Connection) -> None:
    first, second, third = reserved(db, 1, 2, 3)
    for payment_id in (first, second, third):
        payments.send_again(db, payment_id)
    slot = slots.open_slot(db, address(9), "deposit", 0)
    slots.enter_payments(db, slot, [first])
    settle(db, 2)
    payments.reject(db, third, REJECTED)
    assert resent(db) == []
    slots.close(db, slot, "reverted", END)
    assert resent(db) == [first]
    # A final payment wants nothing any more.
    assert [column(db, payment_id, "resend") for payment_id in (second, third)] == [0, 0]


def test_the_order_to_send_it_again_is_taken_once(db: Connection) -> None:
    first, second = reserved(db, 1, 2)
    payments.send_again(db, first)
    assert not remote_payments.take_resend(db, second)
    assert remote_payments.take_resend(db, first)
    assert not remote_payments.take_resend(db, first)
    assert resent(db) == []
    assert [column(db, payment_id, "broadcasts") for payment_id in (first, second)] == [2, 1]


def test_a_failure_may_be_asked_again_until_it_was_asked_three_times(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    wanted = replace(reservation(1), order=replace(ORDER, kept=ORDER.fingerprint))
    for count in range(1, MAX_BROADCASTS):
        assert not remote_payments.ask_again(db, payment_id), "what became of it is not known"
        assert remote_payments.find_failed(db, payment_id) is None
        assert remote_payments.note_failure(db, payment_id)
        assert remote_payments.find_failed(db, payment_id) == remote_payments.Failed(wanted, may_be_asked=True)
        assert remote_payments.ask_again(db, payment_id)
        assert column(db, payment_id, "broadcasts") == count + 1
    assert not remote_payments.note_failure(db, payment_id)
    assert remote_payments.find_failed(db, payment_id) == remote_payments.Failed(wanted, may_be_asked=False)
    assert not remote_payments.ask_again(db, payment_id)


def test_a_failure_of_what_is_final_is_none(db: Connection) -> None:
    first, second = reserved(db, 1, 2)
    assert remote_payments.note_failure(db, second)
    settle(db, 1)
    payments.reject(db, second, REJECTED)
    for payment_id in (first, second):
        assert not remote_payments.note_failure(db, payment_id)
        assert remote_payments.find_failed(db, payment_id) is None
        assert not remote_payments.ask_again(db, payment_id)


def test_an_old_failure_says_nothing_about_what_is_sent_again(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    remote_payments.note_failure(db, payment_id)
    payments.send_again(db, payment_id)
    assert remote_payments.take_resend(db, payment_id)
    assert remote_payments.find_failed(db, payment_id) is None


def test_one_that_was_sent_too_often_is_sent_once_more_when_somebody_says_so(db: Connection) -> None:
    exhaust(db, 1)
    assert payments.is_exhausted(db, 1)
    assert reservations.reserve(db, [reservation(1)]) == {}

    assert payments.send_again(db, 1)

    assert not payments.is_exhausted(db, 1)
    assert reservations.reserve(db, [reservation(1)]) == {key(1): 1}
    assert (column(db, 1, "resend"), column(db, 1, "broadcasts")) == (0, MAX_BROADCASTS + 1)
    assert reservations.reserve(db, [reservation(1)]) == {}
    assert payments.is_exhausted(db, 1)


def test_one_that_lost_its_deposit_is_sent_again_however_often_it_was_sent_before(db: Connection) -> None:
    exhaust(db, 1)
    settle(db, 1)
    assert not payments.is_exhausted(db, 1)
    lose(db, 1)
    assert not payments.is_exhausted(db, 1)
    assert reservations.reserve(db, [reservation(1)]) == {key(1): 1}


def test_only_what_is_in_no_transaction_is_exhausted(db: Connection) -> None:
    exhaust(db, 1)
    reserved(db, 2)
    assert not payments.is_exhausted(db, 2)
    slot = slots.open_slot(db, address(9), "deposit", 0)
    slots.enter_payments(db, slot, [1])
    assert not payments.is_exhausted(db, 1)


def test_a_payment_ends_once(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    settle(db, 1)
    with pytest.raises(AssertionError, match="not open"):
        payments.settle(db, [Delivery(payment_id, word(5))])
    assert column(db, payment_id, "transaction") == word(1001)
    assert [state for state, _, _ in entries(db, payment_id)] == ["open", "settled"]


# Paid before it was ordered


def test_an_authorization_is_paid_while_its_deposit_is_on_chain(db: Connection) -> None:
    assert not payments.is_paid(db, key(1))
    deposits.record(db, ASSET, [transfer(1)], NOW)
    assert payments.is_paid(db, key(1))
    assert not payments.is_paid(db, key(1)._replace(payer=address(2)))
    assert not payments.is_paid(db, key(1)._replace(nonce=word(2)))
    assert not payments.is_paid(db, key(1)._replace(asset=address(3)))
    lose(db, 1)
    assert not payments.is_paid(db, key(1))


def test_what_is_paid_inherits_from_nobody(db: Connection) -> None:
    """It has money of its own: as another name of an abandoned payment it would buy nothing."""
    [abandoned] = reserved(db, 1)
    abandonment.mark_abandoned(db, [abandoned])
    second = key(1)._replace(nonce=word(2))
    order = reservation(1).order
    assert abandonment.find_abandoned(db, second, order, NOW) == abandoned
    deposits.record(db, ASSET, [transfer(1, nonce=word(2), log_index=9)], NOW)
    assert abandonment.find_abandoned(db, second, order, NOW) is None


# A restart


def test_a_restart_of_an_empty_ledger_marks_nobody(db: Connection) -> None:
    abandonment.mark_unanswered(db)
    assert db.execute(select(tables.journal)).all() == []
