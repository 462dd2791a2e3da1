import json
import time
from typing import Any

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, select, update

from tests.unit.ledger.conftest import on_sqlite
from tests.unit.ledger.examples import END, ORDER, SHOP, address, key, plan, reservation, reserved, transfer, word
from tests.unit.payments.examples import NOW, SIGNATURE
from x402_gig.ledger import abandonment, deposits, payments, reservations, slots, tables
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.payments import Reservation
from x402_gig.payments.checkout import Known
from x402_gig.payments.order import Order
from x402_gig.payments.outcome import Rejected, Settled
from x402_gig.payments.payment import PaymentKey

REJECTED = Rejected("some_reason", "In words")
OTHER_TERMS = replace(ORDER, terms={"size": 2})


def settled(db: Connection, number: int) -> Settled:
    deposits.record(db, key(number).asset, [transfer(number)], NOW)
    [outcome] = deposits.settle(db, SHOP, [word(number)]).values()
    return outcome


def open_payment(payment_id: int, signature: bytes = SIGNATURE) -> Known:
    """An open payment of `ORDER`."""
    return Known(payment_id, ORDER.fingerprint, signature, None, False, json.dumps(ORDER.terms))


def send(db: Connection, number: int, chain_nonce: int = 0) -> slots.Slot:
    """Reserve it and put it into a transaction."""
    slot = slots.open_slot(db, address(9), "deposit", chain_nonce)
    slots.enter_payments(db, slot, reserved(db, number))
    return slot


def broadcasts(db: Connection, number: int) -> int:
    query = select(tables.payments.c.broadcasts).where(tables.payments.c.nonce == word(number))
    return int(db.execute(query).scalar_one())


# Found


@on_sqlite
def test_a_buyer_is_looked_up_however_often_the_same_was_bought(db: Connection) -> None:
    found_by = plan(db, lambda: abandonment.look_up(db, key(1), ORDER, NOW))
    assert any("ix_payments_abandoned (payer=?)" in step for step in found_by), found_by
    assert not any("ix_payments_payer_fingerprint" in step or step.startswith("SCAN") for step in found_by), found_by


def test_one_question_tells_of_a_payment_and_of_an_abandoned_one(db: Connection) -> None:
    [first, second] = reserved(db, 1, 2)
    nobody, other_name = (key(1)._replace(nonce=word(number)) for number in (77, 78))
    abandonment.mark_abandoned(db, [first])
    assert abandonment.look_up(db, nobody, ORDER, NOW) == (None, first)
    assert abandonment.look_up(db, key(1), ORDER, NOW) == (payments.find(db, key(1)), first)
    assert abandonment.look_up(db, key(2), ORDER, NOW) == (payments.find(db, key(2)), None)
    assert payments.find(db, key(2)) == open_payment(second)
    assert abandonment.take_abandoned(db, other_name, first, b"second")
    assert abandonment.look_up(db, other_name, ORDER, NOW) == (payments.find(db, other_name), None)


def test_a_payment_that_is_not_there_is_none(db: Connection) -> None:
    assert payments.find(db, key(1)) is None
    assert payments.find_open(db, 1) is None


def test_a_reserved_payment_is_found_as_it_was_written(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    assert payments.find(db, key(1)) == open_payment(payment_id)
    again = payments.find_open(db, payment_id)
    assert again is not None
    assert (again.key, again.payment) == (key(1), reservation(1).payment)
    assert again.order == replace(ORDER, kept=ORDER.fingerprint)


@pytest.mark.parametrize("field", PaymentKey._fields)
def test_every_part_of_the_key_counts(db: Connection, field: str) -> None:
    reserved(db, 1)
    assert payments.find(db, key(1)._replace(**{field: "other"})) is None


def test_one_whose_buyer_hung_up_before_it_was_written_is_marked(db: Connection) -> None:
    reservations.reserve(db, [reservation(1, abandoned=True)])
    known = payments.find(db, key(1))
    assert known is not None
    assert known.abandoned


# Reserved


def test_a_new_payment_is_ours_to_send_once(db: Connection) -> None:
    send(db, 1)
    assert reservations.reserve(db, [reservation(1)]) == {}
    assert broadcasts(db, 1) == 1


def test_of_many_only_the_new_ones_are_ours(db: Connection) -> None:
    send(db, 2)
    ids = reservations.reserve(db, [reservation(number) for number in (3, 2, 1)])
    assert set(ids) == {key(1), key(3)}
    # Written in the order of their keys: two processes with the same payments do not deadlock.
    assert ids[key(1)] < ids[key(3)]


def test_the_second_of_two_processes_with_one_payment_gets_nothing(ledger: Ledger) -> None:
    with ledger.transaction() as first:
        assert set(reservations.reserve(first, [reservation(1)])) == {key(1)}
        slots.enter_payments(first, slots.open_slot(first, address(9), "deposit", 0), [1])
    with ledger.transaction() as second:
        assert reservations.reserve(second, [reservation(1, OTHER_TERMS)]) == {}
        known = payments.find(second, key(1))
    assert known is not None
    assert known.fingerprint == ORDER.fingerprint


def test_a_reservation_that_is_rolled_back_never_was(ledger: Ledger) -> None:
    with ledger.transaction() as db:
        reserved(db, 1)
        db.rollback()
    with ledger.transaction() as db:
        assert payments.find(db, key(1)) is None
        assert len(reserved(db, 1)) == 1


def test_a_payment_is_sent_three_times_at_most(db: Connection) -> None:
    for nonce in range(payments.MAX_BROADCASTS):
        slots.close(db, send(db, 1, nonce), "mined", END)
    assert reservations.reserve(db, [reservation(1)]) == {}
    assert broadcasts(db, 1) == payments.MAX_BROADCASTS == 3


def test_a_payment_is_sent_again_for_its_own_terms_only(db: Connection) -> None:
    slots.close(db, send(db, 1), "reverted", END)
    assert reservations.reserve(db, [reservation(1, OTHER_TERMS)]) == {}
    assert set(reservations.reserve(db, [reservation(1)])) == {key(1)}


@pytest.mark.parametrize("state", ["settled", "rejected"])
def test_a_final_payment_is_not_sent_again(db: Connection, state: str) -> None:
    slots.close(db, send(db, 1), "mined", END)
    if state == "settled":
        settled(db, 1)
    else:
        payments.reject(db, 1, REJECTED)
    assert reservations.reserve(db, [reservation(1)]) == {}
    assert payments.find_open(db, 1) is None


def test_a_payment_that_was_only_written_down_is_not_sent(db: Connection) -> None:
    """A remote facilitator has it, or a deposit was claimed: broadcasting it is not ours."""
    reservations.write_down(db, [reservation(1)])
    assert reservations.reserve(db, [reservation(1)]) == {}


def test_unsettled_are_the_open_ones_in_no_transaction(db: Connection) -> None:
    in_flight = send(db, 1)
    slots.close(db, send(db, 2, 1), "mined", END)
    reserved(db, 3, 4)
    settled(db, 3)

    assert [p.payment_id for p in payments.unsettled(db, 0, 10)] == [2, 4]
    slots.close(db, in_flight, "reverted", END)
    assert [p.payment_id for p in payments.unsettled(db, 0, 2)] == [1, 2]
    assert [p.payment_id for p in payments.unsettled(db, 2, 2)] == [4]
    assert payments.unsettled(db, 0, 1)[0].authorization == reservation(1).payment.authorization


# Final


def test_a_settled_payment_keeps_its_answer(db: Connection) -> None:
    reserved(db, 1)
    outcome = settled(db, 1)
    known = payments.find(db, key(1))
    assert known is not None
    assert known.outcome == outcome == Settled(1, address(1), word(1001), outcome.answer)
    assert outcome.answer["size"] == 1
    assert payments.outcomes(db, [1, 2]) == {1: outcome}


def test_a_rejected_payment_keeps_its_reason(db: Connection) -> None:
    reserved(db, 1, 2)
    assert payments.reject(db, 1, REJECTED)
    assert payments.outcomes(db, [1, 2]) == {1: REJECTED}


def test_a_final_payment_stays_as_it_is(db: Connection) -> None:
    reserved(db, 1, 2)
    outcome = settled(db, 1)
    payments.reject(db, 2, REJECTED)

    assert not payments.reject(db, 1, REJECTED)
    assert not payments.reject(db, 2, Rejected("other", ""))
    deposits.record(db, key(2).asset, [transfer(2)], NOW)
    assert deposits.settle(db, SHOP, [word(2)]) == {}
    assert payments.outcomes(db, [1, 2]) == {1: outcome, 2: REJECTED}


def test_a_payment_whose_deposit_came_is_not_rejected(db: Connection) -> None:
    reserved(db, 1)
    deposits.record(db, key(1).asset, [transfer(1)], NOW)
    assert not payments.reject(db, 1, REJECTED)
    db.execute(update(tables.deposits).values(payment_id=1))
    assert not payments.reject(db, 1, REJECTED)


def test_a_deposit_of_another_value_does_not_keep_a_payment_open(db: Connection) -> None:
    reserved(db, 1)
    deposits.record(db, key(1).asset, [transfer(1, value=1)], NOW)
    assert payments.reject(db, 1, REJECTED)


# Abandoned


def abandoned(db: Connection, number: int) -> int:
    [payment_id] = reserved(db, number)
    abandonment.mark_abandoned(db, [payment_id])
    return payment_id


def heir(db: Connection, now_s: int = NOW, order: Order = ORDER, **changes: str) -> int | None:
    """The payment that a new authorization of payer 1 for the same terms would inherit."""
    changed = {"nonce": word(77)} | changes
    return abandonment.find_abandoned(db, key(1)._replace(**changed), order, now_s)


def test_a_mark_is_found_by_payer_and_terms_while_it_lives(db: Connection) -> None:
    payment_id = abandoned(db, 1)
    assert heir(db) == payment_id
    assert heir(db, payer=address(2)) is None
    assert heir(db, order=OTHER_TERMS) is None
    # validBefore is NOW + 60.
    assert (heir(db, NOW + 59), heir(db, NOW + 60)) == (payment_id, None)


def test_a_mark_of_an_earlier_version_is_found_whose_fingerprint_holds_the_defaults(db: Connection) -> None:
    payment_id = abandoned(db, 1)
    db.execute(update(tables.payments).values(fingerprint=ORDER.old_fingerprint()))
    assert heir(db, order=replace(ORDER, defaults=("size",))) == payment_id
    assert heir(db, order=OTHER_TERMS) is None


def test_the_fingerprint_is_carried_and_not_made_again(db: Connection) -> None:
    """A later version may make another one of the same terms."""
    ordered = replace(ORDER, defaults=("size",))
    [payment_id] = reservations.reserve(db, [reservation(1, ordered)]).values()
    again = payments.find_open(db, payment_id)
    assert again is not None
    assert again.order.fingerprint == ordered.fingerprint != ORDER.fingerprint


def test_a_settled_payment_can_be_inherited_and_a_rejected_one_cannot(db: Connection) -> None:
    payment_id = abandoned(db, 1)
    settled(db, 1)
    assert heir(db) == payment_id
    abandoned(db, 2)
    payments.reject(db, 2, REJECTED)
    assert heir(db, payer=address(2)) is None


def test_an_unmarked_payment_is_nobodys(db: Connection) -> None:
    reserved(db, 1)
    assert heir(db) is None


def test_a_mark_is_taken_once_and_gives_the_payment_another_name(db: Connection) -> None:
    payment_id = abandoned(db, 1)
    second, third = (key(1)._replace(nonce=word(n)) for n in (77, 78))

    # The second time it finds what it has done: the answer to its commit may have been lost.
    assert [abandonment.take_abandoned(db, second, payment_id, b"second") for _ in range(2)] == [True, True]
    assert not abandonment.take_abandoned(db, third, payment_id, b"third")

    assert heir(db) is None
    assert payments.find(db, second) == open_payment(payment_id, b"second")
    assert payments.find(db, third) is None
    outcome = settled(db, 1)
    known = payments.find(db, second)
    assert known is not None
    assert known.outcome == outcome


def test_a_payment_that_is_known_takes_no_mark(db: Connection) -> None:
    first, _ = abandoned(db, 1), reserved(db, 2)
    assert not abandonment.take_abandoned(db, key(2), first, b"")
    assert heir(db) == first


def test_another_name_is_never_sent(db: Connection) -> None:
    payment_id = abandoned(db, 1)
    abandonment.take_abandoned(db, key(2), payment_id, b"")
    assert reservations.reserve(db, [reservation(2)]) == {}
    assert set(reservations.reserve(db, [reservation(2), reservation(3)])) == {key(3)}


def _second_name(db: Connection, **changes: Any) -> Reservation:
    """The next signature of a buyer whose abandoned payment is still good."""
    db.execute(update(tables.payments).values(valid_before=int(time.time()) + 60))
    second = reservation(1, **changes)
    return replace(second, key=second.key._replace(nonce=word(2)))


def test_a_mark_set_just_before_is_seen_by_the_transaction_that_reserves(db: Connection) -> None:
    """A buyer hangs up and signs again at once: the second payment is on its way here when the mark is set."""
    first = abandoned(db, 1)
    second = _second_name(db)

    assert reservations.reserve(db, [second, reservation(3)]) == {key(3): first + 1}

    known = payments.find(db, second.key)
    assert known is not None
    assert known.payment_id == first
    assert heir(db) is None


def test_a_payment_that_is_taken_for_a_buyer_who_has_gone_too_stays_marked(db: Connection) -> None:
    """Or his third signature would be charged."""
    first = abandoned(db, 1)
    assert reservations.reserve(db, [_second_name(db, abandoned=True)]) == {}
    assert heir(db) == first


def test_what_was_left_is_marked_by_number_or_by_name_and_what_is_not_there_is_not(db: Connection) -> None:
    first, _, third = reserved(db, 1, 2, 3)
    abandonment.mark_left(db, [third, key(1), key(7)])
    query = select(tables.payments.c.id).where(tables.payments.c.abandoned == 1).order_by(tables.payments.c.id)
    assert db.execute(query).scalars().all() == [first, third]


def test_a_mark_can_be_forgotten(db: Connection) -> None:
    payment_id = abandoned(db, 1)
    abandonment.mark_abandoned(db, [payment_id], False)
    assert heir(db) is None


@pytest.mark.parametrize(("seconds_ago", "marks"), [(1, [1, 0, 1]), (10, [0, 0, 1])])
def test_a_restart_marks_what_is_open_and_what_may_not_have_been_answered(
    db: Connection, seconds_ago: int, marks: list[int]
) -> None:
    reserved(db, 1, 2, 3)
    settled(db, 1)
    db.execute(tables.journal.update().values(at=tables.journal.c.at - seconds_ago))
    payments.reject(db, 2, REJECTED)
    abandonment.mark_unanswered(db)
    found = db.execute(select(tables.payments.c.abandoned).order_by(tables.payments.c.id)).scalars().all()
    assert found == marks


def test_the_oldest_mark_goes_first(db: Connection) -> None:
    ids = reserved(db, 1, 2)
    db.execute(update(tables.payments).values(payer=address(1), abandoned=1))
    assert heir(db) == ids[0]
