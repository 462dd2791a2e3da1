import asyncio

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, insert, select
from sqlalchemy.exc import IntegrityError

from tests.unit.ledger.conftest import on_sqlite
from tests.unit.ledger.examples import (
    ASSET,
    COMMISSION,
    REWARD,
    SHOP,
    address,
    asked,
    key,
    plan,
    reserved,
    reward_nonce,
    transfer,
    wallet_of,
    word,
)
from tests.unit.payments.examples import NOW, PRICE
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.ledger import chain_state, deposits, gigs, payments, tables
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.gigs import open_shelf
from x402_gig.payments.order import Purchase
from x402_gig.payments.outcome import Settled


def arrive(db: Connection, *transfers: TokenTransfer) -> dict[int, Settled]:
    deposits.record(db, ASSET, transfers, NOW)
    return deposits.settle(db, SHOP, [t.nonce for t in transfers if t.nonce])


def owner(db: Connection, number: int) -> int | None:
    row = deposits.find(db, ASSET, address(number), word(number))
    assert row is not None
    owned_by: int | None = row["payment_id"]
    return owned_by


def gig_count(db: Connection) -> int:
    return len(db.execute(select(tables.gigs.c.id)).all())


def test_a_deposit_delivers_its_order(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    [outcome] = arrive(db, transfer(1)).values()

    assert outcome.answer == {"gig_id": 1, "wallet": wallet_of(1), "size": 1}
    assert (outcome.payment_id, outcome.payer, outcome.transaction) == (payment_id, address(1), word(1001))
    assert owner(db, 1) == payment_id
    gig = gigs.find_gig(db, 1)
    assert gig is not None
    assert (gig.wallet, gig.reward_units, gig.commission_units) == (wallet_of(1), REWARD, COMMISSION)
    assert (gig.deposit_transaction, gig.reward_transaction, gig.commission_transaction) == (word(1001), None, None)


@pytest.mark.parametrize("count", [1, 3])
def test_new_deposits_are_written_in_one_statement(db: Connection, count: int) -> None:
    new = [transfer(number) for number in range(count)]
    assert len(asked(db, lambda: deposits.record(db, ASSET, new, NOW))) == 1
    assert len(asked(db, lambda: deposits.record(db, ASSET, new, NOW))) > 1


@on_sqlite
def test_its_payment_is_found_however_often_its_payer_has_paid(db: Connection) -> None:
    found_by = plan(db, lambda: deposits.settle(db, SHOP, [word(1)]))
    assert any("(network=? AND asset=? AND payer=? AND nonce=?)" in step for step in found_by), found_by


def test_its_reward_is_due_from_then_on(db: Connection) -> None:
    reserved(db, 1)
    arrive(db, transfer(1))
    m = tables.movements.c
    [row] = db.execute(select(m.kind, m.subject, m.payee, m.value, m.nonce, m.state)).all()
    assert tuple(row) == ("reward", 1, wallet_of(1), REWARD, reward_nonce(1), "due")


def test_a_deposit_seen_twice_delivers_once(db: Connection) -> None:
    reserved(db, 1)
    assert len(arrive(db, transfer(1), transfer(1, log_index=9))) == 1
    assert arrive(db, transfer(1)) == {}
    assert gig_count(db) == 1


def test_a_deposit_that_comes_before_its_order_waits_for_it(db: Connection) -> None:
    assert arrive(db, transfer(1)) == {}
    assert owner(db, 1) is None
    [payment_id] = reserved(db, 1)
    assert list(deposits.settle(db, SHOP, [word(1)])) == [payment_id]


@pytest.mark.parametrize("value", [PRICE - 1, PRICE + 1, 2 * PRICE, 0])
def test_a_deposit_of_another_value_is_another_deposit(db: Connection, value: int) -> None:
    """One payer, one nonce, two authorizations: the one that was executed is not the one we were shown."""
    reserved(db, 1)
    assert arrive(db, transfer(1, value=value)) == {}
    assert owner(db, 1) is None
    assert gig_count(db) == 0


@pytest.mark.parametrize("change", [{"payer": address(2)}, {"nonce": word(2)}])
def test_a_deposit_of_somebody_else_pays_nothing_here(db: Connection, change: dict[str, str]) -> None:
    reserved(db, 1)
    assert arrive(db, transfer(1, **change)) == {}


def test_a_deposit_of_another_asset_pays_nothing_here(db: Connection) -> None:
    reserved(db, 1)
    deposits.record(db, address(5), [transfer(1)], NOW)
    assert deposits.settle(db, SHOP, [word(1)]) == {}


def test_equal_nonces_of_two_payers_are_two_deposits(db: Connection) -> None:
    ids = reserved(db, 1, 2)
    both = [transfer(1), transfer(2, nonce=word(1))]
    assert list(arrive(db, *both)) == ids[:1]


def test_many_deposits_of_one_transaction_are_delivered_in_the_order_of_their_payments(db: Connection) -> None:
    ids = reserved(db, 3, 1, 2)
    found = arrive(db, *(transfer(n, transaction=word(5)) for n in (2, 3, 1)))
    assert list(found) == sorted(ids)
    assert [outcome.answer["gig_id"] for outcome in found.values()] == [1, 2, 3]


def test_a_deposit_has_one_owner_and_an_owner_one_deposit(db: Connection) -> None:
    reserved(db, 1, 2)
    arrive(db, transfer(1))
    row = {**vars_of(transfer(2)), "asset": ASSET, "payment_id": 1, "created_at": 1}
    with pytest.raises(IntegrityError, match="payment_id"):
        db.execute(insert(tables.deposits), row)


def test_a_payment_has_one_gig(db: Connection) -> None:
    reserved(db, 1)
    arrive(db, transfer(1))
    [gig] = db.execute(select(tables.gigs)).mappings()
    with pytest.raises(IntegrityError, match="payment_id"):
        db.execute(insert(tables.gigs), {**gig, "id": 2})


def test_a_deposit_that_is_somebodys_pays_nothing_else(db: Connection) -> None:
    reserved(db, 1, 2)
    deposits.record(db, ASSET, [transfer(1)], NOW)
    db.execute(tables.deposits.update().values(payment_id=2))
    assert deposits.settle(db, SHOP, [word(1)]) == {}
    assert gig_count(db) == 0


def vars_of(moved: TokenTransfer) -> dict[str, object]:
    names = ("payer", "nonce", "value", "transaction", "log_index", "block_number", "block_hash")
    return {name: getattr(moved, name) for name in names}


def test_after_a_reorganisation_it_is_the_same_deposit_in_another_place(db: Connection) -> None:
    [payment_id] = reserved(db, 1)
    arrive(db, transfer(1))
    again = transfer(1, transaction=word(4242), block_number=900, block_hash=word(901), log_index=0)

    assert arrive(db, again) == {}

    row = deposits.find(db, ASSET, address(1), word(1))
    assert row is not None
    place = (row["transaction"], row["block_number"], row["block_hash"], row["log_index"])
    assert place == (word(4242), 900, word(901), 0)
    assert row["payment_id"] == payment_id


def test_a_product_that_fails_takes_the_whole_settlement_back(ledger: Ledger) -> None:
    with ledger.transaction() as db:
        reserved(db, 1)
        db.execute(insert(tables.movements), due_reward(gig_id=1))
    with pytest.raises(IntegrityError), ledger.transaction() as db:
        arrive(db, transfer(1))
    with ledger.transaction() as db:
        assert deposits.find(db, ASSET, address(1), word(1)) is None
        assert gig_count(db) == 0
        known = payments.find(db, key(1))
        assert known is not None
        assert known.outcome is None


def due_reward(gig_id: int) -> dict[str, object]:
    row = {"kind": "reward", "subject": gig_id, "payee": address(1), "value": 1, "nonce": "0x", "state": "due"}
    return row | {"created_at": 1}


def test_a_gigs_id_is_never_given_out_twice(db: Connection) -> None:
    """Its wallet and its nonce are derived from it: not even a deleted row frees it."""
    reserved(db, 1, 2)
    arrive(db, transfer(1))
    db.execute(tables.movements.delete())
    db.execute(tables.gigs.delete())
    [outcome] = arrive(db, transfer(2)).values()
    assert outcome.answer["gig_id"] == 2


# What the intake must hold


def test_the_expected_balance_is_what_came_less_what_went(db: Connection) -> None:
    assert deposits.expected_balance(db, 10_000) == 0
    reserved(db, 1)
    arrive(db, transfer(1), transfer(2, value=5))
    assert deposits.expected_balance(db, 10_000) == PRICE + 5
    # Number 1 is in block 101, number 2 in 102.
    assert [deposits.expected_balance(db, block) for block in (100, 101, 102)] == [0, PRICE, PRICE + 5]
    db.execute(tables.movements.update().values(state="done", block_number=103))
    assert deposits.expected_balance(db, 10_000) == PRICE + 5 - REWARD


def test_the_newest_block_is_the_highest_with_a_deposit(db: Connection) -> None:
    assert deposits.newest_block(db) == 0
    arrive(db, transfer(2), transfer(1))
    assert deposits.newest_block(db) == 102


def test_sums_begin_at_a_block_that_is_final_and_say_the_same(db: Connection) -> None:
    chain_state.bind(db, Binding(8453, word(9), address(0x17)), Cursor(50, word(50)), 7)
    deposits.record(db, ASSET, [transfer(1), transfer(2)], NOW)
    heights = [transfer(number).block_number for number in (1, 2)]
    before = [deposits.expected_balance(db, height) for height in (heights[0] - 1, *heights)]
    deposits.count_from(db, heights[0])
    assert [deposits.expected_balance(db, height) for height in (heights[0] - 1, *heights)] == before
    # What comes up in an old block all the same is counted.
    late = replace(transfer(3), block_number=heights[0])
    deposits.will_change(db, [late])
    deposits.record(db, ASSET, [late], NOW)
    assert deposits.expected_balance(db, heights[1]) == before[-1] + late.value


def test_a_product_that_puts_more_on_the_shelf_than_it_sold_fails_and_nobody_waits_for_ever(ledger: Ledger) -> None:
    purchase = Purchase(1, address(1), PRICE, word(1), "eip155:8453", {})

    def twice(db: Connection) -> None:
        with open_shelf(db, 1, wallet_of, reward_nonce) as shelf:
            for _ in range(2):
                shelf.add(purchase, reward_units=1, commission_units=1, start_at=NOW, end_at=NOW)

    async def write() -> None:
        await asyncio.wait_for(ledger.write(twice), 2)

    with pytest.raises(IndexError):
        asyncio.run(write())
