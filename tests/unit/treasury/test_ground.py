"""When a funding transaction is not signed: the ledger has learnt more, or another process moves money."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import update

from tests.unit.ledger.examples import ASSET, transfer, word
from tests.unit.payments.examples import INTAKE, NOW
from x402_gig.errors import LeaseLost
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger import chain_state, deposits, tables
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.engine import Ledger
from x402_gig.relaying.leases import FUNDING, Leases
from x402_gig.settlement.work import Work
from x402_gig.treasury.funding import Funding, Ground, Plan

SEEN = transfer(1)
ANCHOR = Block(SEEN.block_number, SEEN.block_hash, word(1), NOW, 7, 30_000_000)
GROUND = Ground(ANCHOR, ANCHOR.number - 30, frozenset({(SEEN.block_number, SEEN.block_hash)}), SEEN.value, {})
WALLETS = Wallets("test test test test test test test test test test test junk")


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with opened.transaction() as db:
        chain_state.bind(db, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0)
        deposits.record(db, ASSET, [SEEN], NOW)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("learnt", "is_firm"),
    [
        pytest.param(transfer(2, block_number=ANCHOR.number, block_hash=ANCHOR.hash), True, id="of the same block"),
        pytest.param(transfer(2, block_number=ANCHOR.number - 2), False, id="of a block below"),
        pytest.param(transfer(2, block_number=ANCHOR.number), False, id="of another block of that height"),
        pytest.param(transfer(2, block_number=ANCHOR.number + 1), False, id="of a block above"),
    ],
)
def test_nothing_is_signed_when_the_ledger_has_learnt_of_another_block_meanwhile(
    ledger: Ledger, learnt: TokenTransfer, is_firm: bool
) -> None:
    with ledger.transaction() as db:
        assert GROUND.has_all(db)
        deposits.record(db, ASSET, [learnt], NOW)
        assert GROUND.has_all(db) == is_firm


def test_nothing_is_signed_by_who_has_lost_the_lease(ledger: Ledger) -> None:
    leases = Leases(ledger, ["0x1"])
    asyncio.run(leases.renew())
    plan = Plan(Funding(ledger, cast(Any, None), WALLETS, leases, Work()), GROUND, NOW)
    with ledger.transaction() as db:
        assert plan(db) is None  # nothing is due
        taken = update(tables.leases).where(tables.leases.c.name == FUNDING)
        db.execute(taken.values(fence=tables.leases.c.fence + 1))
        with pytest.raises(LeaseLost):
            plan(db)
