"""A payment whose nonce was seen used: what the ledger and a block that is read say of it together."""

import pytest
from sqlalchemy import Connection

from tests.unit.ledger.examples import ASSET, SHOP, key, reservation, reserved, transfer, word
from tests.unit.payments.examples import INTAKE, NOW, PRICE
from x402_gig.ledger import chain_state, deposits, payments
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.payments.outcome import Outcome, Rejected, Settled, Unknown
from x402_gig.settlement.late_orders import NONCE_USED, Evidence, decide

USED, UNUSED = Evidence(is_used=True, doubts=0), Evidence(is_used=False, doubts=0)


@pytest.fixture(autouse=True)
def bound(db: Connection) -> None:
    """A ledger without doubts."""
    chain_state.bind(db, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0)


def decided(db: Connection, evidence: Evidence) -> Outcome:
    return decide(db, SHOP, reservation(1), evidence)


def written(db: Connection) -> Outcome | None:
    known = payments.find(db, key(1))
    return known.outcome if known is not None else None


def test_a_used_nonce_without_a_deposit_is_a_rejection(db: Connection) -> None:
    assert decided(db, USED) == NONCE_USED
    assert payments.find(db, key(1)) is None


def test_an_open_payment_is_closed_by_it(db: Connection) -> None:
    reserved(db, 1)
    assert decided(db, USED) == written(db) == NONCE_USED


@pytest.mark.parametrize("value", [None, PRICE - 1], ids=["no deposit", "a deposit of another value"])
def test_nobody_is_rejected_when_the_block_that_is_read_shows_the_nonce_unused(
    db: Connection, value: int | None
) -> None:
    reserved(db, 1)
    if value is not None:
        deposits.record(db, ASSET, [transfer(1, value=value)], NOW)
    assert isinstance(decided(db, UNUSED), Unknown)
    assert written(db) is None


@pytest.mark.parametrize("value", [None, PRICE - 1], ids=["no deposit", "a deposit of another value"])
def test_nobody_is_rejected_when_something_was_undone_since_the_block_was_read(
    db: Connection, value: int | None
) -> None:
    reserved(db, 1)
    if value is not None:
        deposits.record(db, ASSET, [transfer(1, value=value)], NOW)
    chain_state.doubt(db)
    assert isinstance(decided(db, USED), Unknown)
    assert written(db) is None
    assert isinstance(decided(db, Evidence(is_used=True, doubts=1)), Rejected)


def test_a_deposit_settles_whatever_else_is_said(db: Connection) -> None:
    deposits.record(db, ASSET, [transfer(1)], NOW)
    chain_state.doubt(db)
    outcome = decided(db, UNUSED)
    assert isinstance(outcome, Settled)
    assert outcome.transaction == transfer(1).transaction
    assert decided(db, USED) == written(db) == outcome
