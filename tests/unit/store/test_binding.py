import pytest
from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from tests.unit.store.examples import address, word
from x402_gig.store import binding
from x402_gig.store.binding import Binding, Cursor

OURS = Binding(8453, word(1), address(1))
START = Cursor(5, word(5))


@pytest.fixture
def bound(db: Connection) -> Connection:
    binding.bind(db, OURS, START, 0)
    return db


def test_a_fresh_ledger_belongs_to_nobody(db: Connection) -> None:
    assert binding.bound_to(db) is None


def test_a_ledger_belongs_to_one_chain_and_intake(bound: Connection) -> None:
    assert binding.bound_to(bound) == OURS
    with pytest.raises(IntegrityError):
        binding.bind(bound, Binding(1, word(2), address(2)), START, 0)


def test_the_cursor_moves(bound: Connection) -> None:
    assert binding.cursor(bound) == START
    binding.move_cursor(bound, Cursor(9, word(9)))
    assert binding.cursor(bound) == Cursor(9, word(9))


def test_funding_halts_for_the_first_reason(bound: Connection) -> None:
    assert binding.funding_halt(bound) == ""
    binding.halt_funding(bound, "an old backup")
    binding.halt_funding(bound, "something later")
    assert binding.funding_halt(bound) == "an old backup"
