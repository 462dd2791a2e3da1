"""What the ledger does when a block that it saw is replaced by another one of the same height."""

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, select

from tests.unit.ledger.examples import (
    ASSET,
    COMMISSION,
    END,
    REWARD,
    SHOP,
    address,
    commission_nonce,
    key,
    reserved,
    transfer,
    word,
)
from tests.unit.payments.examples import NOW, PRICE
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.ledger import deposits, gigs, movements, payments, slots, tables
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.movements import Movement
from x402_gig.ledger.slots import End
from x402_gig.payments.outcome import Rejected, Settled

OTHER_HASH = word(9999)
GONE = Rejected("gone", "It never came back")


def arrive(db: Connection, *transfers: TokenTransfer) -> dict[int, Settled]:
    deposits.record(db, ASSET, transfers, NOW)
    return deposits.settle(db, SHOP, [t.nonce for t in transfers if t.nonce])


def sold(db: Connection, number: int) -> int:
    [payment_id] = reserved(db, number)
    assert list(arrive(db, transfer(number))) == [payment_id]
    return payment_id


def state(db: Connection, payment_id: int) -> str:
    return str(db.execute(select(tables.payments.c.state).where(tables.payments.c.id == payment_id)).scalar_one())


def states_in_journal(db: Connection, payment_id: int) -> list[str]:
    j = tables.journal.c
    return list(db.execute(select(j.state).where(j.payment_id == payment_id).order_by(j.id)).scalars())


def replace_block_of(db: Connection, number: int) -> list[int]:
    return deposits.forget_block(db, transfer(number).block_number, OTHER_HASH)


# Deposits and their payments


def test_a_payment_whose_deposit_is_gone_is_open_again_and_to_be_sent(db: Connection) -> None:
    first, second = sold(db, 1), sold(db, 2)
    assert replace_block_of(db, 1) == [first]
    assert (state(db, first), state(db, second)) == ("open", "settled")
    assert [payment_id for payment_id, _ in payments.to_resend(db, 10)] == [first]
    assert deposits.find(db, ASSET, address(1), word(1)) is None
    gig = gigs.find_gig(db, 1)
    assert gig is not None
    assert (gig.suspended, gig.deposit_transaction) == (True, None)


def test_the_same_block_read_again_changes_nothing(db: Connection) -> None:
    first = sold(db, 1)
    assert deposits.forget_block(db, transfer(1).block_number, transfer(1).block_hash) == []
    assert state(db, first) == "settled"
    assert not deposits.is_replaced(db, transfer(1).block_number, transfer(1).block_hash)
    assert deposits.is_replaced(db, transfer(1).block_number, OTHER_HASH)


def test_a_deposit_that_comes_back_is_the_same_gig(db: Connection) -> None:
    first = sold(db, 1)
    replace_block_of(db, 1)
    moved = transfer(1, block_number=300, block_hash=word(300), transaction=word(77))

    [settled] = arrive(db, moved).values()

    assert (settled.payment_id, settled.transaction, settled.answer["gig_id"]) == (first, word(77), 1)
    assert len(db.execute(select(tables.gigs)).all()) == 1
    assert len(db.execute(select(tables.movements)).all()) == 1
    assert states_in_journal(db, first) == ["open", "settled", "open", "settled"]
    gig = gigs.find_gig(db, 1)
    assert gig is not None
    assert (gig.suspended, gig.deposit_transaction) == (False, word(77))


def test_a_deposit_that_comes_back_with_another_value_is_another_deposit(db: Connection) -> None:
    """The payer signed two authorizations with one nonce, and the new chain has the other one."""
    first = sold(db, 1)
    assert arrive(db, transfer(1, value=PRICE + 1, block_number=300)) == {}
    assert state(db, first) == "open"
    row = deposits.find(db, ASSET, address(1), word(1))
    assert row is not None
    assert (row["value"], row["payment_id"]) == (PRICE + 1, None)
    assert payments.reject(db, first, GONE)


def test_one_that_never_comes_back_is_rejected_and_cannot_be_sent_any_more(db: Connection) -> None:
    first = sold(db, 1)
    assert not payments.reject(db, first, GONE)
    replace_block_of(db, 1)
    assert payments.reject(db, first, GONE)
    assert payments.to_resend(db, 10) == []
    assert not payments.send_again(db, first)
    assert payments.reopen(db, [first], "no") == []
    assert states_in_journal(db, first) == ["open", "settled", "open", "rejected"]


def test_the_balance_counts_what_is_on_chain(db: Connection) -> None:
    sold(db, 1)
    sold(db, 2)
    assert deposits.expected_balance(db, 1000) == 2 * PRICE
    replace_block_of(db, 1)
    assert deposits.expected_balance(db, 1000) == PRICE
    assert deposits.newest_block(db) == 102


def test_plain_transfers_are_known_by_their_place(db: Connection) -> None:
    plain = transfer(1, nonce=None)
    arrive(db, plain, transfer(2, nonce=None, transaction=plain.transaction, log_index=9))
    assert deposits.expected_balance(db, 1000) == 2 * PRICE
    deposits.forget_block(db, plain.block_number, OTHER_HASH)
    assert deposits.expected_balance(db, 1000) == PRICE
    # The same log of the same transaction, in another block.
    arrive(db, transfer(1, nonce=None, block_number=300, block_hash=word(300)))
    assert deposits.expected_balance(db, 1000) == 2 * PRICE
    assert deposits.known_blocks(db, 0, 1000) == {102, 300}


# Our own movements


def rewards(db: Connection) -> list[Movement]:
    return movements.due(db, "reward", 10)


def send(db: Connection, moves: Sequence[Movement], valid_before: int = 99) -> slots.Slot:
    slot = slots.open_slot(db, address(9), "funding", 0)
    movements.enter_slot(db, slot.slot_id, moves, valid_before)
    return slot


def test_nothing_is_paid_on_a_deposit_that_is_gone(db: Connection) -> None:
    sold(db, 1)
    sold(db, 2)
    movements.write_commission(db, address(7), commission_nonce)
    [_, second], [_] = rewards(db), movements.due(db, "commission", 1)
    replace_block_of(db, 1)
    assert rewards(db) == [second]
    # The one row is for both.
    assert movements.due(db, "commission", 1) == []
    arrive(db, transfer(1))
    assert len(rewards(db)) == 2
    assert len(movements.due(db, "commission", 1)) == 1


def test_a_movement_whose_block_was_replaced_is_due_again(db: Connection) -> None:
    sold(db, 1)
    [reward] = rewards(db)
    slots.close(db, send(db, [reward]), "mined", END)
    paid = transfer(50, payer=address(0x17), payee=reward.payee, nonce=reward.nonce, value=REWARD)
    assert movements.complete(db, [paid]) == []
    assert rewards(db) == []
    movements.forget_block(db, paid.block_number, paid.block_hash)
    assert rewards(db) == []
    movements.forget_block(db, paid.block_number, OTHER_HASH)
    assert rewards(db) == [reward]


def test_what_can_never_be_paid_is_given_up_and_its_neighbours_commissions_are_collected_anew(db: Connection) -> None:
    first, second = sold(db, 1), sold(db, 2)
    movements.write_commission(db, address(7), commission_nonce)
    [row] = movements.due(db, "commission", 1)
    slots.close(db, send(db, [*rewards(db), row], valid_before=500), "reverted", END)
    replace_block_of(db, 1)
    assert not movements.has_orphans(db)
    payments.reject(db, first, GONE)

    assert movements.has_orphans(db)
    assert movements.void_orphans(db, final_s=500) == []  # our signatures are alive until then
    assert {(m.kind, m.subject) for m in movements.void_orphans(db, final_s=501)} == {("reward", 1), ("commission", 1)}

    movements.write_commission(db, address(7), commission_nonce)
    [anew] = movements.due(db, "commission", 1)
    assert (anew.subject, anew.value, anew.nonce) == (2, COMMISSION, commission_nonce(2))
    c = tables.commissions.c
    assert db.execute(select(c.payment_id).where(c.movement_id == anew.movement_id)).scalars().all() == [second]


# Slots


@pytest.mark.parametrize("ended", ["mined", "reverted", "filled", "lost"])
def test_a_slot_whose_block_was_replaced_is_open_again(db: Connection, ended: str) -> None:
    slot = slots.open_slot(db, address(9), "deposit", 0)
    slots.close(db, slot, ended, End(7, word(7)))
    assert not slots.forget_block(db, 7, word(7))
    assert slots.forget_block(db, 7, OTHER_HASH)
    assert slots.open_slots(db, address(9)) == [slot]


def test_a_slot_is_wanted_while_it_carries_something_open(db: Connection) -> None:
    payment_slot = slots.open_slot(db, address(9), "deposit", 0)
    slots.enter_payments(db, payment_slot, reserved(db, 1))
    assert slots.is_wanted(db, payment_slot)
    arrive(db, transfer(1))
    assert not slots.is_wanted(db, payment_slot)
    reward_slot = send(db, rewards(db))
    assert slots.is_wanted(db, reward_slot)
    db.execute(tables.movements.update().values(state="done"))
    assert not slots.is_wanted(db, reward_slot)
    assert slots.is_wanted(db, slots.open_slot(db, address(9), slots.DEPLOY, 0))


# All of it


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.tuples(st.sampled_from(["reserve", "see", "replace"]), st.integers(1, 4)), max_size=25))
def test_in_any_order_a_payment_has_one_gig_and_a_deposit_one_owner(
    steps: list[tuple[str, int]], ledger: Ledger
) -> None:
    on_chain: set[int] = set()
    with ledger.transaction() as db:
        for step, number in steps:
            if step == "reserve" and payments.find(db, key(number)) is None:
                reserved(db, number)
                deposits.settle(db, SHOP, [word(number)])
            elif step == "see":
                arrive(db, transfer(number))
                on_chain.add(number)
            elif step == "replace":
                replace_block_of(db, number)
                on_chain.discard(number)
            p, g, d = tables.payments.c, tables.gigs.c, tables.deposits.c
            owned = db.execute(select(d.payment_id).where(d.payment_id.is_not(None), d.on_chain == 1)).scalars().all()
            settled = db.execute(select(p.id).where(p.state == "settled")).scalars().all()
            with_gig = db.execute(select(g.payment_id)).scalars().all()
            assert sorted(owned) == sorted(settled)
            assert len(set(with_gig)) == len(with_gig)
            assert set(settled) <= set(with_gig)
            assert deposits.expected_balance(db, 1000) == PRICE * len(on_chain)
        db.rollback()
