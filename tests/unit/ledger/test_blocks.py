"""What the ledger knows of each height of the chain, and what the intake holds there."""

import pytest
from sqlalchemy import Connection, select

from tests.unit.ledger.examples import ASSET, REWARD, SHOP, address, commission_nonce, reserved, transfer, word
from tests.unit.payments.examples import NOW, PRICE
from x402_gig.ledger import chain_state, deposits, movements, payments, slots, tables
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.movements import Movement
from x402_gig.ledger.slots import End

INTAKE = address(0x17)
HERE, ELSEWHERE = word(700), word(701)


def sell(db: Connection, *numbers: int) -> None:
    reserved(db, *numbers)
    deposits.record(db, ASSET, [transfer(number) for number in numbers], NOW)
    assert len(deposits.settle(db, SHOP, [word(number) for number in numbers])) == len(numbers)


def sign(db: Connection, move: Movement, block: int) -> slots.Slot:
    """In a transaction that is in this block."""
    slot = slots.open_slot(db, address(9), "funding", 0)
    movements.enter_slot(db, slot.slot_id, [move], valid_before=99)
    slots.close(db, slot, "mined", End(block, HERE, word(block)))
    return slot


def pay(db: Connection, move: Movement, block: int, block_hash: str = HERE) -> None:
    """See it on chain."""
    place = {"payer": INTAKE, "payee": move.payee, "nonce": move.nonce, "value": move.value}
    where = {"block_number": block, "block_hash": block_hash, "transaction": word(block)}
    assert movements.complete(db, [transfer(50, **place, **where)]) == []


def reward(db: Connection) -> Movement:
    [move] = movements.due(db, "reward", 10)
    return move


def test_a_height_is_known_by_a_deposit_a_movement_or_a_slot(db: Connection) -> None:
    assert deposits.known_blocks(db, 0, 10_000) == set()
    sell(db, 1)
    move = reward(db)
    sign(db, move, 300)
    pay(db, move, 200)
    assert deposits.known_blocks(db, 0, 10_000) == {101, 200, 300}
    # Both ends are included.
    assert deposits.known_blocks(db, 101, 200) == {101, 200}
    assert deposits.known_blocks(db, 102, 299) == {200}
    assert deposits.known_blocks(db, 201, 299) == set()


@pytest.mark.parametrize("height", [101, 200, 300])
def test_each_of_them_shows_that_a_block_was_replaced(db: Connection, height: int) -> None:
    sell(db, 1)
    move = reward(db)
    sign(db, move, 300)
    pay(db, move, 200)
    hashes = {101: transfer(1).block_hash, 200: HERE, 300: HERE}
    assert deposits.is_replaced(db, height, ELSEWHERE)
    assert not deposits.is_replaced(db, height, hashes[height])
    assert not deposits.is_replaced(db, height + 1, ELSEWHERE)


def test_what_was_forgotten_is_nowhere(db: Connection) -> None:
    """Movements and slots have no place any more; a deposit keeps its last one, and is not on chain."""
    sell(db, 1)
    move = reward(db)
    slot = sign(db, move, 300)
    pay(db, move, 200)
    for height in (101, 200, 300):
        deposits.forget_block(db, height, ELSEWHERE)
        movements.forget_block(db, height, ELSEWHERE)
        slots.forget_block(db, height, ELSEWHERE)
    m, s, d = tables.movements.c, tables.slots.c, tables.deposits.c
    moved = db.execute(select(m.state, m.transaction, m.block_number, m.block_hash, m.done_at)).all()
    assert [tuple(row) for row in moved] == [("due", None, None, None, None)]
    closed = select(s.state, s.transaction, s.block_number, s.block_hash, s.gas_used, s.closed_at)
    assert [tuple(row) for row in db.execute(closed)] == [("open", None, None, None, None, None)]
    assert slots.open_slots(db, address(9)) == [slot]
    assert [tuple(row) for row in db.execute(select(d.on_chain, d.payment_id))] == [(0, None)]


def test_a_block_that_is_forgotten_takes_its_own_with_it_and_nothing_of_its_neighbours(db: Connection) -> None:
    reserved(db, 1, 2, 3)
    same = {"block_number": 500, "block_hash": HERE}
    deposits.record(
        db, ASSET, [transfer(1, **same), transfer(2, **same), transfer(3, block_number=501, block_hash=HERE)], NOW
    )
    deposits.settle(db, SHOP, [word(1), word(2), word(3)])
    assert deposits.forget_block(db, 499, ELSEWHERE) == []
    assert sorted(deposits.forget_block(db, 500, ELSEWHERE)) == [1, 2]
    # Off the chain already: nothing is opened twice.
    assert deposits.forget_block(db, 500, ELSEWHERE) == []


# The balance


def bind(db: Connection, balance: int) -> None:
    chain_state.bind(db, Binding(8453, word(1), INTAKE), Cursor(50, word(50)), balance)


def test_what_was_there_at_the_beginning_counts(db: Connection) -> None:
    bind(db, 7)
    assert chain_state.start_number(db) == 50
    assert deposits.expected_balance(db, 1000) == 7
    sell(db, 1)
    assert [deposits.expected_balance(db, block) for block in (100, 101)] == [7, 7 + PRICE]


def test_the_beginning_stays_where_it_is_when_the_cursor_moves(db: Connection) -> None:
    bind(db, 7)
    chain_state.move_cursor(db, Cursor(90, word(90)))
    assert (chain_state.start_number(db), deposits.expected_balance(db, 90)) == (50, 7)


def test_money_that_is_on_its_way_is_still_there(db: Connection) -> None:
    sell(db, 1)
    move = reward(db)
    sign(db, move, 300)
    assert deposits.expected_balance(db, 1000) == PRICE
    pay(db, move, 200)
    assert [deposits.expected_balance(db, block) for block in (199, 200)] == [PRICE, PRICE - REWARD]
    movements.forget_block(db, 200, ELSEWHERE)
    assert deposits.expected_balance(db, 1000) == PRICE


def test_a_deposit_of_nothing_changes_nothing(db: Connection) -> None:
    reserved(db, 1)
    deposits.record(db, ASSET, [transfer(1, value=0), transfer(2, value=0, nonce=None)], NOW)
    assert deposits.settle(db, SHOP, [word(1)]) == {}
    assert deposits.expected_balance(db, 1000) == 0


def test_nothing_at_all_can_be_recorded(db: Connection) -> None:
    deposits.record(db, ASSET, [], NOW)
    assert deposits.settle(db, SHOP, []) == {}
    assert deposits.newest_block(db) == 0


# Deposits that move


def rows(db: Connection) -> list[tuple[object, ...]]:
    d = tables.deposits.c
    query = select(d.payer, d.nonce, d.value, d.transaction, d.log_index, d.block_number, d.block_hash, d.on_chain)
    return [tuple(row) for row in db.execute(query.order_by(d.id))]


def test_a_plain_transfer_is_one_row_however_often_it_is_seen_and_wherever_it_goes(db: Connection) -> None:
    first = transfer(1, nonce=None)
    again = transfer(1, nonce=None, block_number=300, block_hash=HERE)
    for seen in (first, first, again):
        deposits.record(db, ASSET, [seen], NOW)
    place = (first.transaction, first.log_index, 300, HERE, 1)
    assert rows(db) == [(address(1), None, PRICE, *place)]


def test_a_log_of_another_transfer_in_its_place_is_that_transfer(db: Connection) -> None:
    """The same transaction on another chain may move something else, to the log."""
    deposits.record(db, ASSET, [transfer(1, nonce=None)], NOW)
    other = transfer(1, nonce=None, payer=address(5), value=3, block_number=300)
    deposits.record(db, ASSET, [other], NOW)
    assert [row[:3] for row in rows(db)] == [(address(5), None, 3)]


def test_plain_transfers_in_one_transaction_are_told_apart_by_their_logs(db: Connection) -> None:
    one, two = (transfer(1, nonce=None, log_index=index, value=index) for index in (4, 5))
    deposits.record(db, ASSET, [one, two, transfer(1)], NOW)
    assert [(row[1], row[2]) for row in rows(db)] == [(word(1), PRICE), (None, 4), (None, 5)]


def test_a_deposit_keeps_the_time_at_which_it_was_first_seen(db: Connection) -> None:
    """From then on nobody claims it for two hours, and it goes back."""
    deposits.record(db, ASSET, [transfer(1), transfer(2, nonce=None)], NOW)
    deposits.forget_block(db, 101, ELSEWHERE)
    deposits.record(db, ASSET, [transfer(1), transfer(2, nonce=None)], NOW + 500)
    assert db.execute(select(tables.deposits.c.created_at)).scalars().all() == [NOW, NOW]


def test_of_two_payers_with_one_nonce_only_the_one_whose_deposit_changed_is_released(db: Connection) -> None:
    both = [transfer(1), transfer(2, nonce=word(1))]
    deposits.record(db, ASSET, both, NOW)
    first, _ = reserved(db, 1, 2)
    db.execute(tables.payments.update().where(tables.payments.c.id == 2).values(nonce=word(1)))
    assert len(deposits.settle(db, SHOP, [word(1)])) == 2
    deposits.record(db, ASSET, [transfer(1, value=PRICE + 1), both[1]], NOW)
    p = tables.payments.c
    assert db.execute(select(p.id).where(p.state == "open")).scalars().all() == [first]


def test_a_changed_deposit_leaves_its_gig_without_money_until_the_right_one_is_seen_again(db: Connection) -> None:
    sell(db, 1)
    deposits.record(db, ASSET, [transfer(1, value=1)], NOW)
    assert movements.due(db, "reward", 10) == []
    assert deposits.expected_balance(db, 1000) == 1
    deposits.record(db, ASSET, [transfer(1)], NOW)
    assert len(deposits.settle(db, SHOP, [word(1)])) == 1
    assert len(movements.due(db, "reward", 10)) == 1
    assert len(db.execute(select(tables.gigs)).all()) == 1


def test_the_answer_of_a_gig_that_comes_back_is_the_first_one(db: Connection) -> None:
    """The product made it once: it is not asked again, whatever it would say today."""
    reserved(db, 1)
    deposits.record(db, ASSET, [transfer(1)], NOW)
    [first] = deposits.settle(db, SHOP, [word(1)]).values()
    deposits.forget_block(db, 101, ELSEWHERE)
    db.execute(tables.gigs.update().values(wallet=address(0xBAD)))
    db.execute(tables.payments.update().values(terms="{}"))
    deposits.record(db, ASSET, [transfer(1, block_number=300, transaction=word(77))], NOW)
    [again] = deposits.settle(db, SHOP, [word(1)]).values()
    assert again.answer == first.answer
    assert (again.payment_id, again.payer, again.transaction) == (first.payment_id, first.payer, word(77))
    assert payments.outcomes(db, [first.payment_id]) == {first.payment_id: again}
    assert db.execute(select(tables.payments.c.commission)).scalar_one() == PRICE - REWARD


def test_what_is_not_on_sale_here_stays_open_and_is_given_to_nobody(db: Connection) -> None:
    """A ledger that a server with more products has written to."""
    reserved(db, 1)
    db.execute(tables.payments.update().values(product="of another server"))
    deposits.record(db, ASSET, [transfer(1)], NOW)
    assert deposits.settle(db, SHOP, [word(1)]) == {}
    assert db.execute(select(tables.deposits.c.payment_id)).scalars().all() == [None]


# Movements


def test_a_commission_whose_block_was_replaced_keeps_the_next_one_waiting(db: Connection) -> None:
    sell(db, 1)
    movements.write_commission(db, address(7), commission_nonce)
    [row] = movements.due(db, "commission", 10)
    sign(db, row, 300)
    pay(db, row, 300)
    sell(db, 2)
    movements.forget_block(db, 300, ELSEWHERE)
    movements.write_commission(db, address(7), commission_nonce)
    assert movements.due(db, "commission", 10) == [row]


def test_a_movement_that_is_seen_elsewhere_has_its_new_place(db: Connection) -> None:
    sell(db, 1)
    move = reward(db)
    sign(db, move, 300)
    pay(db, move, 300)
    pay(db, move, 301, ELSEWHERE)
    movements.forget_block(db, 300, ELSEWHERE)
    m = tables.movements.c
    [row] = db.execute(select(m.state, m.transaction, m.block_number, m.block_hash)).all()
    assert tuple(row) == ("done", word(301), 301, ELSEWHERE)
