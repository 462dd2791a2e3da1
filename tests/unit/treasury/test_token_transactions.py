"""A payout that takes long is named, and says what it waits for; one that is not due any more is not signed."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from sqlalchemy import update

from tests.unit.ledger.examples import word
from tests.unit.relaying.test_closing import commission_due
from x402_gig.evm.batcher import Call, Result
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger import keyed_gigs, tables
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.relaying.fees import Fees
from x402_gig.relaying.leases import Leases
from x402_gig.relaying.relayer import Batch, Plan
from x402_gig.settlement.work import Work
from x402_gig.treasury.token_transactions import SLOW_S, Payouts, WalletWork

WALLETS = Wallets("test test test test test test test test test test test junk")


def problem(seconds: float, waits_for: str = "", stuck: str = "") -> str:
    agent = cast(Any, SimpleNamespace(gig_id=12, waits_for=waits_for, stuck=stuck))
    return WalletWork(agent, time.monotonic() - seconds).problem


def test_a_payout_is_named_after_a_minute() -> None:
    assert problem(SLOW_S - 5) == ""
    assert "gig 12: its payout has been under way for 61 s" in problem(SLOW_S + 1.5)


@pytest.mark.parametrize("waits_for", ["its funding is off the chain", ""])
def test_it_says_what_it_waits_for(waits_for: str) -> None:
    assert problem(100, waits_for).endswith(waits_for or "the log says what it waits for")


def test_one_that_waits_for_the_operator_is_named_at_once() -> None:
    assert problem(0, stuck="x402-gig gigs unblock 12") == "x402-gig gigs unblock 12"


class Rich:
    """A chain on which every wallet has gas; `meanwhile` happens while the token is asked what its transfer takes."""

    def __init__(self, meanwhile: Callable[[], None]) -> None:
        self._meanwhile = meanwhile

    async def nonce(self, _: str) -> int:
        return 0

    async def native_balance(self, _: str) -> int:
        return 10**18

    async def estimate_gas(self, *_: object) -> int:
        self._meanwhile()
        return 50_000

    async def call_as(self, _: str, __: Call) -> Result:
        return Result(True, True, 0, bytes(31) + b"\1")


class Pen:
    """A gig's wallet that holds enough: `planned` is what it was to sign, which it does not send."""

    gig_id = 1
    planned: Batch | None = None

    def __init__(self, ledger: Ledger, address: str) -> None:
        self._ledger = ledger
        self.wallet = SimpleNamespace(address=address)

    async def market(self) -> Fees:
        return Fees(1, 1)

    async def weigh(self, _: str) -> None:
        pass

    def check_bid(self, _: Connection) -> None:
        pass

    async def write_down(self, _: str, plan: Plan) -> None:
        self.planned = await self._ledger.write(plan)


@pytest.mark.parametrize(
    ("changed", "is_signed"),
    [
        pytest.param(lambda db: None, True, id="nothing"),
        pytest.param(lambda db: keyed_gigs.doubt(db, 1), False, id="its funding is off the chain"),
        pytest.param(lambda db: db.execute(update(tables.movements).values(state="done")), False, id="it is paid"),
    ],
)
def test_a_payout_that_is_not_due_any_more_is_not_signed(
    tmp_path: Path, changed: Callable[[Connection], object], *, is_signed: bool
) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with ledger.transaction() as db:
        address, move = commission_due(db)

    def meanwhile() -> None:
        with ledger.transaction() as db:
            changed(db)

    pen: Any = Pen(ledger, address)
    nothing: Any = None
    payouts = Payouts(ledger, cast(Any, Rich(meanwhile)), WALLETS, Leases(ledger, [word(1)]), Work(), nothing)
    asyncio.run(payouts._send(pen, move))
    assert (pen.planned is not None) == is_signed
    ledger.close()
