import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from tests.unit.ledger.examples import address, word
from x402_gig.ledger import chain_state
from x402_gig.ledger.chain_state import Binding, Cursor

OURS = Binding(8453, word(1), address(1))
START = Cursor(5, word(5))


@pytest.fixture
def bound(db: Connection) -> Connection:
    chain_state.bind(db, OURS, START, 0)
    return db


def test_a_fresh_ledger_belongs_to_nobody(db: Connection) -> None:
    assert chain_state.bound_to(db) is None


def test_a_ledger_belongs_to_one_chain_and_intake(bound: Connection) -> None:
    assert chain_state.bound_to(bound) == OURS
    with pytest.raises(IntegrityError):
        chain_state.bind(bound, Binding(1, word(2), address(2)), START, 0)


def test_the_cursor_moves(bound: Connection) -> None:
    assert chain_state.cursor(bound) == START
    chain_state.move_cursor(bound, Cursor(9, word(9)))
    assert chain_state.cursor(bound) == Cursor(9, word(9))


def test_funding_halts_for_the_first_reason(bound: Connection) -> None:
    assert chain_state.funding_halt(bound) == ""
    chain_state.halt_funding(bound, "an old backup")
    chain_state.halt_funding(bound, "something later")
    assert chain_state.funding_halt(bound) == "an old backup"
