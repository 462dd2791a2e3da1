"""A halted ledger: nothing is signed, wherever money would leave from."""

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from tests.unit.ledger.examples import word
from tests.unit.payments.examples import INTAKE
from tests.unit.relaying.test_closing import commission_under_way
from x402_gig.errors import Unavailable
from x402_gig.evm.wallets import Wallet, Wallets
from x402_gig.ledger import chain_state, slots, tables
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.metrics import Metrics
from x402_gig.relaying.fees import Fees
from x402_gig.relaying.leases import Leases
from x402_gig.relaying.relayer import Relayer
from x402_gig.settlement.work import Work
from x402_gig.treasury.funding import Funding
from x402_gig.treasury.token_transactions import Payouts

WALLETS = Wallets("test test test test test test test test test test test junk")
NOTHING: Any = None


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    """Of a process that moves money on; a commission is on its way out of a gig's wallet."""
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.transaction() as db:
        chain_state.bind(db, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0)
        commission_under_way(db)
    leases = Leases(ledger, ["0x1"])
    asyncio.run(leases.renew())
    yield leases
    ledger.close()


def halt(ledger: Ledger, reason: str = "somebody else has the seed") -> str:
    asyncio.run(ledger.write(lambda c: c.execute(update(tables.ledger).values(funding_halt=reason))))
    return reason


def test_the_intake_signs_nothing(leases: Leases) -> None:
    funding = Funding(leases.ledger, NOTHING, WALLETS, leases, Work())
    reason = halt(leases.ledger)
    assert asyncio.run(funding._send_batch(NOTHING, None)) == reason


def test_the_gigs_wallets_send_nothing(leases: Leases) -> None:
    asked: list[Wallet] = []

    def agent_of(wallet: Wallet, **_: Any) -> Any:
        asked.append(wallet)
        raise NotImplementedError

    payouts = Payouts(leases.ledger, NOTHING, WALLETS, leases, Work(), agent_of)
    with pytest.raises(NotImplementedError):
        asyncio.run(payouts._begin(NOTHING))
    halt(leases.ledger)
    asyncio.run(payouts._begin(NOTHING))
    assert len(asked) == 1


def test_a_halt_that_was_written_meanwhile_stops_what_was_to_be_signed(leases: Leases) -> None:
    """Between a look at the halt and the signature the chain is asked, which takes a while."""
    wallet = WALLETS.relayer(0)
    relayer = Relayer(wallet, "0x1", NOTHING, leases.ledger, NOTHING, NOTHING, NOTHING, leases, 1, 64, Metrics())
    relayer._fence = leases.fence("0x1")
    planned: list[bool] = []

    def write_down() -> None:
        plan = partial(_note, planned)
        asyncio.run(leases.ledger.write(lambda c: relayer._write_down(c, slots.FUNDING, plan, Fees(1, 1))))

    write_down()
    halt(leases.ledger)
    with pytest.raises(Unavailable, match="halted"):
        write_down()
    assert planned == [True]


def _note(planned: list[bool], _: Connection) -> None:
    planned.append(True)
