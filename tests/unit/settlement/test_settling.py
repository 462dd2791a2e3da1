"""Evidence meets payments, in whatever order the two arrive."""

import asyncio
from pathlib import Path

from tests.unit.payments.examples import INTAKE
from tests.unit.store.examples import ASSET, SHOP, key, reservation, reserved, transfer, word
from x402_gig.payments.outcome import Outcome, Rejected, Settled
from x402_gig.settlement.settling import Settling
from x402_gig.store import binding, payments
from x402_gig.store.binding import Binding, Cursor
from x402_gig.store.engine import Ledger

USED = Rejected("invalid_exact_evm_nonce_already_used", "used")


def outcome_after(tmp_path: Path, *, deposited: bool) -> tuple[Outcome, bool]:
    """A deposit is read (or not), then its payment is written down, then the chain says that its nonce is used."""

    async def main() -> tuple[Outcome, bool]:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        settling = Settling(ledger, SHOP, intake=INTAKE.lower(), asset=ASSET)
        funding: list[bool] = []
        settling.funding_due = lambda: funding.append(True)
        if deposited:
            await settling.record([transfer(1)])
        [payment_id] = await ledger.write(lambda c: reserved(c, 1))
        waiting = asyncio.ensure_future(settling.wait(payment_id))
        await settling.close(payment_id, word(1), USED, 0)
        outcome = await waiting
        assert await ledger.read(lambda c: payments.outcomes(c, [payment_id])) == {payment_id: outcome}
        ledger.close()
        return outcome, bool(funding)

    return asyncio.run(main())


def test_a_deposit_that_was_read_before_its_payment_was_written_settles_it(tmp_path: Path) -> None:
    outcome, funding_due = outcome_after(tmp_path, deposited=True)
    assert isinstance(outcome, Settled)
    assert outcome.transaction == transfer(1).transaction
    assert funding_due


def test_without_a_deposit_a_used_nonce_is_a_rejection(tmp_path: Path) -> None:
    assert outcome_after(tmp_path, deposited=False) == (USED, False)


def test_nobody_is_rejected_while_what_was_undone_is_not_read_again(tmp_path: Path) -> None:
    async def main() -> list[Outcome | None]:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        await ledger.write(lambda c: binding.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling = Settling(ledger, SHOP, intake=INTAKE.lower(), asset=ASSET)
        [payment_id] = await ledger.write(lambda c: reserved(c, 1))
        before = await ledger.read(binding.doubts)
        now = await ledger.write(binding.doubt)
        found = list[Outcome | None]()
        for doubts in (before, now):
            await settling.close(payment_id, word(1), USED, doubts)
            found.append((await ledger.read(lambda c: payments.outcomes(c, [payment_id]))).get(payment_id))
        ledger.close()
        return found

    assert asyncio.run(main()) == [None, USED]


def test_money_that_left_the_intake_unknown_to_the_ledger_stops_the_sale(tmp_path: Path) -> None:
    async def main() -> tuple[str, str]:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        await ledger.write(lambda c: binding.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling = Settling(ledger, SHOP, intake=INTAKE.lower(), asset=ASSET)
        await settling.record([transfer(1, payer=INTAKE.lower(), payee=key(5).payer)])
        kept = await ledger.read(binding.funding_halt)
        ledger.close()
        return settling.halt, kept

    halt, kept = asyncio.run(main())
    assert transfer(1).transaction in halt
    assert halt == kept


def test_whoever_stops_waiting_leaves_a_mark(tmp_path: Path) -> None:
    async def main() -> bool:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        settling = Settling(ledger, SHOP, intake=INTAKE.lower(), asset=ASSET)
        [payment_id] = await ledger.write(lambda c: reserved(c, 1))
        waiting = asyncio.ensure_future(settling.wait(payment_id))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        known = await ledger.read(lambda c: payments.find(c, reservation(1).key))
        ledger.close()
        return known is not None and known.abandoned

    assert asyncio.run(main())
