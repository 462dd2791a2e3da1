"""A deposit that came without its order is given to one order, also when two ask for it at once."""

import asyncio
from pathlib import Path

import pytest
from msgspec.structs import replace

from tests.unit.ledger.examples import ASSET, ORDER, SHOP, reservation, transfer
from tests.unit.payments.examples import INTAKE
from x402_gig.errors import PaymentConflict
from x402_gig.ledger.engine import Ledger
from x402_gig.payments.outcome import Outcome, Settled
from x402_gig.settlement.late_orders import Claims
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.work import Work

OTHER_TERMS = replace(ORDER, terms={"size": 2})


class Used:
    """A chain on which every authorization was executed."""

    async def is_used(self, authorization: object, block: object) -> bool:
        return True


class ReadAll:
    """A watcher that has read every block."""

    doubts = 0
    read_to = None

    async def passed(self, number: int) -> None:
        pass


def test_the_second_of_two_orders_for_one_deposit_is_a_conflict(tmp_path: Path) -> None:
    async def main() -> Outcome:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        watcher, work = ReadAll(), Work()
        settling = Settling(ledger, SHOP, work, intake=INTAKE.lower(), asset=ASSET)
        claims = Claims(Used(), ledger, SHOP, watcher, work)  # type: ignore[arg-type]
        await settling.record([transfer(1)])
        first = await claims.claim(reservation(1), 101)
        assert await claims.claim(reservation(1), 101) == first
        with pytest.raises(PaymentConflict):
            await claims.claim(reservation(1, OTHER_TERMS), 101)
        ledger.close()
        return first

    assert isinstance(asyncio.run(main()), Settled)
