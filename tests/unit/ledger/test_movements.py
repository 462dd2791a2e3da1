import pytest
from sqlalchemy import Connection, insert, select, update
from sqlalchemy.exc import IntegrityError

from tests.unit.ledger.examples import (
    ASSET,
    COMMISSION,
    END,
    REWARD,
    SHOP,
    address,
    commission_nonce,
    reserved,
    reward_nonce,
    transfer,
    wallet_of,
    word,
)
from tests.unit.payments.examples import NOW
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.ledger import chain_state, deposits, gigs, movements, shared_settings, slots, tables
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.movements import Movement

INTAKE, OPERATOR, OTHER = address(0x17), address(0x0F), address(0x1F)


def bound_to(db: Connection, commission_address: str) -> None:
    """A ledger with this address."""
    chain_state.bind(db, Binding(8453, word(1), INTAKE), Cursor(5, word(5)), 0)
    shared_settings.change_commission_address(db, commission_address)


def sell(db: Connection, *numbers: int) -> None:
    """Gigs for payments with these numbers."""
    reserved(db, *numbers)
    deposits.record(db, ASSET, [transfer(number) for number in numbers], NOW)
    assert len(deposits.settle(db, SHOP, [word(number) for number in numbers])) == len(numbers)


def sign(db: Connection, *moves: Movement) -> None:
    """Put them into a transaction, which ends without them."""
    slot = slots.open_slot(db, address(9), "funding", 0)
    movements.enter_slot(db, slot.slot_id, moves, valid_before=99)
    slots.close(db, slot, "reverted", END)


def moved(movement: Movement, **changes: object) -> TokenTransfer:
    """The chain's evidence that it happened."""
    place = {"payer": INTAKE, "payee": movement.payee, "nonce": movement.nonce, "value": movement.value}
    return transfer(500 + movement.movement_id, **place | changes)


def complete(db: Connection, *moves: Movement) -> None:
    """Sign them and see them on chain."""
    if moves:
        sign(db, *moves)
    assert movements.complete(db, [moved(move) for move in moves]) == []


def write_commission(db: Connection, limit: int = 1000) -> None:
    movements.write_commission(db, OPERATOR, commission_nonce, limit)


def commissions(db: Connection) -> list[Movement]:
    return movements.due(db, "commission", 10)


def carried(db: Connection) -> list[list[int]]:
    """The payments of each commission row."""
    c = tables.commissions.c
    rows = db.execute(select(c.movement_id, c.payment_id).order_by(c.movement_id, c.payment_id)).all()
    return [[p for m, p in rows if m == movement] for movement in sorted({m for m, _ in rows})]


# Rewards


def test_it_is_idle_until_a_gig_is_sold_and_again_when_all_has_moved(db: Connection) -> None:
    assert movements.is_idle(db)
    sell(db, 1)
    assert not movements.is_idle(db)
    complete(db, *movements.due(db, "reward", 10))
    assert not movements.is_idle(db)  # its commission is not collected yet
    write_commission(db)
    assert not movements.is_idle(db)
    complete(db, *commissions(db))
    assert movements.is_idle(db)


def test_every_gigs_reward_is_due_oldest_first(db: Connection) -> None:
    sell(db, 1, 2, 3)
    found = movements.due(db, "reward", 2)
    assert [(m.payee, m.value, m.nonce) for m in found] == [(wallet_of(n), REWARD, reward_nonce(n)) for n in (1, 2)]
    assert len(movements.due(db, "reward", 10)) == 3


def test_a_movement_under_way_is_not_sent_again_until_its_transaction_ended(db: Connection) -> None:
    sell(db, 1, 2)
    [first, second] = movements.due(db, "reward", 10)
    slot = slots.open_slot(db, address(9), "funding", 0)
    movements.enter_slot(db, slot.slot_id, [first], valid_before=99)

    assert movements.due(db, "reward", 10) == [second]
    slots.close(db, slot, "reverted", END)
    assert movements.due(db, "reward", 10) == [first, second]


def test_a_movement_on_chain_is_done_and_shows_on_its_gig(db: Connection) -> None:
    sell(db, 1, 2)
    [first, second] = movements.due(db, "reward", 10)
    evidence = moved(first)
    sign(db, first)

    assert movements.still_due(db, [first, second]) == [first, second]
    assert movements.complete(db, [evidence]) == []

    assert movements.still_due(db, [first, second]) == [second]
    assert movements.due(db, "reward", 10) == [second]
    gig = gigs.find_gig(db, 1)
    assert gig is not None
    assert gig.reward_transaction == evidence.transaction


def test_evidence_seen_twice_changes_the_place_and_nothing_else(db: Connection) -> None:
    sell(db, 1)
    [first] = movements.due(db, "reward", 10)
    sign(db, first)
    m = tables.movements.c
    times = []
    for block in (700, 701):
        assert movements.complete(db, [moved(first, block_number=block)]) == []
        [row] = db.execute(select(m.state, m.block_number, m.done_at)).all()
        assert (row.state, row.block_number) == ("done", block)
        times.append(row.done_at)
    assert times[0] == times[1] is not None


@pytest.mark.parametrize("change", [{"nonce": word(4)}, {"value": REWARD + 1}, {"payee": OTHER}])
def test_what_this_ledger_did_not_write_down_is_reported(db: Connection, change: dict[str, object]) -> None:
    sell(db, 1)
    [first] = movements.due(db, "reward", 10)
    sign(db, first)
    stranger = moved(first, **change)
    assert movements.complete(db, [stranger]) == [stranger]
    assert movements.due(db, "reward", 10) == [first]


def test_a_strangers_authorization_with_our_nonce_carries_nothing_of_ours_out(db: Connection) -> None:
    """A nonce is its payer's own (EIP-3009), and those of ours are no secret."""
    sell(db, 1)
    [reward] = movements.due(db, "reward", 10)
    sign(db, reward)
    movements.complete_from_gigs(db, [moved(reward, payer=OTHER)])
    assert movements.due(db, "reward", 10) == [reward]


def test_what_leaves_a_gigs_wallet_is_of_that_gig(db: Connection) -> None:
    sell(db, 1, 2)
    [reward, _] = movements.due(db, "reward", 10)
    this = tables.movements.c.id == reward.movement_id
    db.execute(update(tables.movements).where(this).values(source_gig=1))
    sign(db, reward)
    wallets = list(db.execute(select(tables.gigs.c.wallet).order_by(tables.gigs.c.id)).scalars())
    states = []
    for payer in (OTHER, INTAKE, wallets[1], wallets[0]):
        movements.complete_from_gigs(db, [moved(reward, payer=payer)])
        states.append(db.execute(select(tables.movements.c.state).where(this)).scalar_one())
    assert states == ["due", "due", "due", "done"]


def test_strangers_are_found_among_our_own(db: Connection) -> None:
    sell(db, 1, 2, 3)
    rewards = movements.due(db, "reward", 10)
    sign(db, *rewards)
    first, second, third = (moved(reward) for reward in rewards)
    stranger = moved(rewards[1], value=REWARD + 1)
    assert movements.complete(db, [first, stranger, third]) == [stranger]
    assert movements.due(db, "reward", 10) == [rewards[1]]
    assert movements.complete(db, [second, first, third]) == []
    assert movements.due(db, "reward", 10) == []


def test_what_was_written_down_but_never_signed_here_was_signed_elsewhere(db: Connection) -> None:
    """Two operators with one seed have the same gigs, and with them the same nonces."""
    sell(db, 1)
    [first] = movements.due(db, "reward", 10)
    assert movements.complete(db, [moved(first)]) == [moved(first)]
    assert movements.due(db, "reward", 10) == [first]


def test_a_gig_has_one_reward(db: Connection) -> None:
    sell(db, 1)
    row = {"kind": "reward", "subject": 1, "payee": INTAKE, "value": 1, "state": "due", "created_at": 1}
    with pytest.raises(IntegrityError, match="subject"):
        db.execute(insert(tables.movements), row | {"nonce": word(1)})


# Commissions


def test_a_commission_names_its_payments_and_is_their_sum(db: Connection) -> None:
    sell(db, 1, 2, 3)
    write_commission(db)
    [row] = commissions(db)
    assert (row.payee, row.value, row.nonce) == (OPERATOR, 3 * COMMISSION, commission_nonce(1))
    assert carried(db) == [[1, 2, 3]]


def test_the_next_one_waits_until_the_last_is_on_chain(db: Connection) -> None:
    sell(db, 1)
    write_commission(db)
    [first] = commissions(db)
    sell(db, 2, 3)
    write_commission(db)
    assert commissions(db) == [first]

    complete(db, first)
    write_commission(db)

    [second] = commissions(db)
    assert (second.value, second.nonce) == (2 * COMMISSION, commission_nonce(2))
    assert carried(db) == [[1], [2, 3]]


def test_a_commission_that_nobody_has_signed_goes_to_the_new_address(db: Connection) -> None:
    bound_to(db, OPERATOR)
    sell(db, 1)
    write_commission(db)
    assert not movements.has_misdirected(db)
    shared_settings.change_commission_address(db, OTHER)
    assert movements.has_misdirected(db)
    assert commissions(db) == []
    assert [move.subject for move in movements.void_misdirected(db, final_s=0)] == [1]
    movements.write_commission(db, OTHER, commission_nonce)
    [row] = commissions(db)
    assert (row.payee, row.value, row.nonce) == (OTHER, COMMISSION, commission_nonce(2))


def test_a_commission_that_may_still_be_executed_keeps_its_address(db: Connection) -> None:
    bound_to(db, OPERATOR)
    sell(db, 1)
    write_commission(db)
    [first] = commissions(db)
    slot = slots.open_slot(db, address(9), "funding", 0)
    movements.enter_slot(db, slot.slot_id, [first], valid_before=99)
    shared_settings.change_commission_address(db, OTHER)
    assert movements.void_misdirected(db, final_s=100) == []  # its transaction is under way
    slots.close(db, slot, "reverted", END)
    assert movements.void_misdirected(db, final_s=99) == []  # its signature is alive
    assert commissions(db) == []
    movements.write_commission(db, OTHER, commission_nonce)
    assert carried(db) == [[1]]

    assert movements.void_misdirected(db, final_s=100) == [first]
    assert not movements.has_misdirected(db)
    movements.write_commission(db, OTHER, commission_nonce)
    [second] = commissions(db)
    assert (second.payee, second.value) == (OTHER, COMMISSION)


def test_a_commission_that_was_executed_after_all_is_done_and_not_given_up(db: Connection) -> None:
    bound_to(db, OPERATOR)
    sell(db, 1)
    write_commission(db)
    [first] = commissions(db)
    sign(db, first)
    shared_settings.change_commission_address(db, OTHER)
    assert movements.complete(db, [moved(first)]) == []
    assert movements.void_misdirected(db, final_s=100) == []
    assert movements.is_idle(db) is False  # its gig's reward
    assert not movements.has_misdirected(db)


def test_a_payments_commission_is_collected_once(db: Connection) -> None:
    sell(db, 1)
    for _ in range(3):
        write_commission(db)
        complete(db, *commissions(db))
    assert carried(db) == [[1]]
    with pytest.raises(IntegrityError):
        db.execute(insert(tables.commissions), {"payment_id": 1, "movement_id": 1})


def test_a_commission_has_room_for_so_many(db: Connection) -> None:
    sell(db, 1, 2, 3)
    write_commission(db, limit=2)
    [first] = commissions(db)
    complete(db, first)
    write_commission(db, limit=2)
    assert carried(db) == [[1, 2], [3]]


def test_without_a_sale_and_without_commission_there_is_no_row(db: Connection) -> None:
    write_commission(db)
    sell(db, 1)
    db.execute(tables.payments.update().values(commission=0))
    reserved(db, 2)
    write_commission(db)
    assert commissions(db) == []


def test_a_gig_shows_its_commission_once_it_is_on_chain(db: Connection) -> None:
    sell(db, 1)
    write_commission(db)
    [row] = commissions(db)
    before = gigs.find_gig(db, 1)
    complete(db, row)
    after = gigs.find_gig(db, 1)
    assert before is not None
    assert after is not None
    assert (before.commission_transaction, after.commission_transaction) == (None, moved(row).transaction)
