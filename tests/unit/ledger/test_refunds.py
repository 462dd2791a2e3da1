"""Money without an order goes back once, and to nobody twice."""

import pytest
from msgspec.structs import replace
from sqlalchemy import Connection, select

from tests.unit.ledger.conftest import on_sqlite
from tests.unit.ledger.examples import ASSET, SHOP, address, plan, reserved, transfer, word
from tests.unit.payments.examples import NOW, PRICE
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger import deposits, movements, payments, refunds, tables
from x402_gig.ledger.refunds import Deposit
from x402_gig.payments.outcome import Rejected

LIMITS = {"up_to_block": 101, "before_s": NOW, "minimum": PRICE}
WALLETS = Wallets("test test test test test test test test test test test junk")


def arrived(db: Connection, **changes: object) -> Deposit:
    deposits.record(db, ASSET, [transfer(1, **changes)], NOW)
    [found] = refunds.unclaimed(db, 10)
    return found


def pay_back(db: Connection, deposit: Deposit) -> bool:
    return refunds.write_refund(db, deposit, deposit.payer, WALLETS.refund_nonce)


def test_what_is_old_final_authorized_and_no_dust_is_ripe(db: Connection) -> None:
    deposit = arrived(db)
    assert refunds.ripe(db, 10, **LIMITS) == [deposit]


@pytest.mark.parametrize("limit", [{"up_to_block": 100}, {"before_s": NOW - 1}, {"minimum": PRICE + 1}])
def test_what_is_not_yet_final_or_old_or_is_dust_is_not_ripe(db: Connection, limit: dict[str, int]) -> None:
    arrived(db)
    assert refunds.ripe(db, 10, **LIMITS | limit) == []


@on_sqlite
def test_what_is_ripe_is_found_without_reading_the_dust(db: Connection) -> None:
    """Anybody can make any number of deposits of nothing much, and each second it is looked for."""
    found_by = plan(db, lambda: refunds.ripe(db, 1, **LIMITS))
    assert found_by[0].endswith("INDEX ix_deposits_refundable (refund_id=? AND payment_id=? AND value>?)")
    assert not [step for step in found_by if "SCAN" in step or "B-TREE" in step]


def test_a_plain_transfer_is_never_ripe(db: Connection) -> None:
    assert arrived(db, nonce=None).nonce is None
    assert refunds.ripe(db, 10, **LIMITS) == []


def test_an_order_that_is_open_keeps_its_deposit(db: Connection) -> None:
    reserved(db, 1)
    deposits.record(db, ASSET, [transfer(1)], NOW)
    assert refunds.unclaimed(db, 10) == []


def test_a_refund_is_written_once_and_owns_the_deposit(db: Connection) -> None:
    deposit = arrived(db)
    assert pay_back(db, deposit)
    assert not pay_back(db, deposit)
    [due] = movements.due(db, "refund", 10)
    assert (due.payee, due.value, due.subject) == (address(1), PRICE, deposit.id)
    assert due.nonce == WALLETS.refund_nonce(ASSET, address(1), word(1))


def test_a_late_order_loses_against_a_refund(db: Connection) -> None:
    pay_back(db, arrived(db))
    [payment_id] = reserved(db, 1)
    assert deposits.settle(db, SHOP, [word(1)]) == {}
    # And it does not stay open for ever because its deposit is there.
    assert payments.reject(db, payment_id, Rejected("refunded", "in words"))


def test_a_deposit_that_somebody_owns_is_not_refunded(db: Connection) -> None:
    deposit = arrived(db)
    reserved(db, 1)
    assert deposits.settle(db, SHOP, [word(1)])
    assert not pay_back(db, deposit)
    assert db.execute(select(tables.movements.c.kind)).scalars().all() == ["reward"]


def test_a_deposit_that_is_off_the_chain_is_not_paid_back(db: Connection) -> None:
    deposit = arrived(db)
    pay_back(db, deposit)
    deposits.forget_block(db, 101, word(9999))
    assert movements.due(db, "refund", 10) == []
    assert refunds.unclaimed(db, 10) == []


def test_every_source_has_a_nonce_of_its_own() -> None:
    first = Deposit(1, ASSET, address(1), word(1), 1, word(5), 0, 1, 1)
    others = [replace(first, payer=address(2)), replace(first, nonce=word(2)), replace(first, nonce=None)]
    others += [replace(first, nonce=None, log_index=1), replace(first, nonce=None, transaction=word(6))]
    nonces = {WALLETS.refund_nonce(*deposit.source) for deposit in [first, *others]}
    assert len(nonces) == 6
    # The same money in another row or block is the same refund.
    assert WALLETS.refund_nonce(*replace(first, id=9, block_number=9, transaction=word(9)).source) in nonces
