"""Evidence meets payments, in whatever order the two arrive."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select

from tests.support.cuts import CommitProxy, commit_proxy
from tests.support.servers import Postgres
from tests.unit.ledger.examples import (
    ASSET,
    REWARD,
    SHOP,
    address,
    key,
    reservation,
    reserved,
    transfer,
    wallet_of,
    word,
)
from tests.unit.payments.examples import INTAKE, NOW
from x402_gig.errors import CommitUnknown, Unavailable
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block
from x402_gig.gigs.records import TokenInfo
from x402_gig.ledger import abandonment, chain_state, deposits, keyed_gigs, movements, payments, refunds, slots, tables
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.keyed_gigs import Draft, Fee, Started
from x402_gig.ledger.slots import End
from x402_gig.payments.outcome import Outcome, Rejected, Settled
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.work import Work

USED = Rejected("invalid_exact_evm_nonce_already_used", "used")


def nothing_due() -> Work:
    work = Work()
    work.funding_since = None
    return work


def outcome_after(tmp_path: Path, *, deposited: bool) -> tuple[Outcome, bool]:
    """A deposit is read (or not), then its payment is written down, then the chain says that its nonce is used."""

    async def main() -> tuple[Outcome, bool]:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        settling = Settling(ledger, SHOP, work := nothing_due(), intake=INTAKE.lower(), asset=ASSET)
        if deposited:
            await settling.record([transfer(1)])
        [payment_id] = await ledger.write(lambda c: reserved(c, 1))
        waiting = asyncio.ensure_future(settling.wait(payment_id))
        await settling.close(payment_id, word(1), USED, 0)
        async with asyncio.timeout(10):
            outcome = await waiting
        assert await ledger.read(lambda c: payments.outcomes(c, [payment_id])) == {payment_id: outcome}
        ledger.close()
        return outcome, work.funding_since is not None

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
        await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
        [payment_id] = await ledger.write(lambda c: reserved(c, 1))
        before = await ledger.read(chain_state.doubts)
        now = await ledger.write(chain_state.doubt)
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
        await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
        await settling.record([transfer(1, payer=INTAKE.lower(), payee=key(5).payer)])
        kept = await ledger.read(chain_state.funding_halt)
        ledger.close()
        return settling.halt, kept

    halt, kept = asyncio.run(main())
    assert transfer(1).transaction in halt
    assert halt == kept


def test_a_halt_is_learned_from_the_ledger_though_its_commit_was_lost_or_is_anothers(postgres: Postgres) -> None:
    async def main(ledger: Ledger, proxy: CommitProxy) -> None:
        await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling, other = (Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET) for _ in range(2))
        proxy.cuts("funding_halt")
        with pytest.raises(CommitUnknown):
            await settling.record([transfer(1, payer=INTAKE.lower(), payee=key(5).payer)])
        for one in (settling, other):
            await one.learn_halt()
            assert transfer(1).transaction in one.halt
            with pytest.raises(Unavailable, match="does not sell"):
                one.check_selling()

    with commit_proxy(postgres.database()) as proxy, closing(Ledger(proxy.url)) as ledger:
        asyncio.run(main(ledger, proxy))


def test_a_transfer_of_nothing_in_the_intakes_name_stops_nothing(tmp_path: Path) -> None:
    """`transferFrom(intake, anybody, 0)` needs no allowance, and any token may call it in our transaction."""

    async def main() -> tuple[str, str]:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
        nothing: dict[str, Any] = {"payer": INTAKE.lower(), "payee": key(5).payer, "value": 0}
        await settling.record([transfer(1, nonce=None, **nothing)])
        unsigned = settling.halt
        await settling.record([transfer(1, **nothing)])
        ledger.close()
        return unsigned, settling.halt

    unsigned, signed = asyncio.run(main())
    assert unsigned == ""
    assert transfer(1).transaction in signed


def test_whoever_stops_waiting_leaves_a_mark(tmp_path: Path) -> None:
    async def main() -> bool:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
        [payment_id] = await ledger.write(lambda c: reserved(c, 1))
        waiting = asyncio.ensure_future(settling.wait(payment_id))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait({waiting})
        known = await ledger.read(lambda c: payments.find(c, reservation(1).key))
        ledger.close()
        return known is not None and known.abandoned

    assert asyncio.run(main())


def test_what_the_intake_pays_to_itself_is_no_deposit(tmp_path: Path) -> None:
    async def main() -> tuple[int, list[refunds.Deposit]]:
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
        await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
        await settling.record([transfer(1, payer=INTAKE.lower())])
        found = await ledger.read(lambda c: (deposits.expected_balance(c, 1000), refunds.unclaimed(c, 10)))
        ledger.close()
        return found

    assert asyncio.run(main()) == (0, [])


HEIGHT = transfer(1).block_number
PLACE: dict[str, Any] = {"block_number": HEIGHT, "block_hash": transfer(1).block_hash}


def test_a_block_that_was_replaced_takes_everything_back_that_was_seen_in_it(tmp_path: Path) -> None:
    """A deposit, a reward, the slot that carried it, and the funding of a gig that was created with a key."""

    async def main() -> tuple[tuple[object, ...], tuple[object, ...], int]:
        ledger, work = Ledger(f"sqlite:///{tmp_path}/ledger.db"), Work()
        await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        settling = Settling(ledger, SHOP, work, intake=INTAKE.lower(), asset=ASSET)
        await ledger.write(lambda c: reserved(c, 1))
        await settling.record([transfer(1)])
        await settling.record([await ledger.write(_reward_in_a_slot)])
        await ledger.write(_funded_gig)
        before = await ledger.read(_states)
        await settling.forget([Block(HEIGHT, word(4242), word(1), NOW, 7, 30_000_000)])
        after = await ledger.read(_states)
        ledger.close()
        return before, after, work.reopenings

    before, after, reopened = asyncio.run(main())
    assert before == ("settled", "done", "mined", 1, 0)
    assert after == ("open", "due", "open", 0, 1)
    assert reopened == 1


def test_when_the_answer_to_a_commit_is_lost_all_that_may_follow_it_is_due(postgres: Postgres) -> None:
    """The same work finds nothing new when it is repeated."""

    async def main(ledger: Ledger, proxy: CommitProxy) -> None:
        settling = Settling(ledger, SHOP, to_do := Work(), intake=INTAKE.lower(), asset=ASSET)
        block = Block(HEIGHT, word(4242), word(1), NOW, 7, 30_000_000)
        await ledger.write(lambda c: chain_state.bind(c, Binding(8453, word(9), INTAKE.lower()), Cursor(1, word(8)), 0))
        await ledger.write(lambda c: reserved(c, 1, 2))
        works: dict[str, Callable[[], Awaitable[object]]] = {
            "INSERT INTO gigs": lambda: settling.record([transfer(1)]),
            "UPDATE ledger SET doubts": lambda: settling.forget([block]),
            "some_reason": lambda: settling.close(2, word(2), Rejected("some_reason", ""), 1),
        }
        for said, work in works.items():
            to_do.funding_since, to_do.reopenings = None, 0
            proxy.cuts(said)
            with pytest.raises(CommitUnknown):
                await work()
            assert (to_do.funding_since is not None, to_do.reopenings) == (True, 1), said

    with commit_proxy(postgres.database()) as proxy, closing(Ledger(proxy.url)) as ledger:
        asyncio.run(main(ledger, proxy))


def _take(connection: Connection) -> None:
    assert abandonment.take_abandoned(connection, key(2), 1, b"2")


def _leave_again(connection: Connection) -> None:
    _take(connection)
    abandonment.mark_abandoned(connection, [1])


@pytest.mark.parametrize(
    ("meanwhile", "passed_on", "is_marked"),
    [
        pytest.param(_take, True, False, id="taken by another signature"),
        pytest.param(lambda c: abandonment.mark_abandoned(c, [1], False), True, False, id="answered"),
        pytest.param(_leave_again, True, True, id="taken by one who has left too"),
        pytest.param(lambda _: None, False, True, id="never written"),
    ],
)
def test_a_mark_whose_commit_was_lost_is_not_set_again_when_it_was_taken_meanwhile(
    postgres: Postgres, meanwhile: Callable[[Connection], None], passed_on: bool, is_marked: bool
) -> None:
    async def main(ledger: Ledger, proxy: CommitProxy) -> int:
        settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
        await ledger.write(lambda c: reserved(c, 1))
        proxy.cuts("UPDATE payments SET abandoned", passed_on=passed_on)
        await settling.abandon(1)
        await ledger.write(meanwhile)
        await settling.mark_left()
        assert settling.left == set()
        return await ledger.read(lambda c: c.execute(select(tables.payments.c.abandoned)).scalar_one())

    with commit_proxy(postgres.database()) as proxy, closing(Ledger(proxy.url)) as ledger:
        assert asyncio.run(main(ledger, proxy)) == int(is_marked)


def test_a_mark_whose_commit_was_lost_is_set_again_when_the_one_who_took_it_has_left_here_too(
    postgres: Postgres,
) -> None:
    async def main(ledger: Ledger, proxy: CommitProxy) -> int:
        settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
        await ledger.write(lambda c: reserved(c, 1))
        proxy.cuts("UPDATE payments SET abandoned")
        await settling.abandon(1)
        await ledger.write(_take)
        await settling.abandon(1)
        return await ledger.read(lambda c: c.execute(select(tables.payments.c.abandoned)).scalar_one())

    with commit_proxy(postgres.database()) as proxy, closing(Ledger(proxy.url)) as ledger:
        assert asyncio.run(main(ledger, proxy)) == 1


def test_who_leaves_again_while_the_mark_is_written_is_marked_again(tmp_path: Path) -> None:
    """Between the two, another signature has taken the first mark."""

    async def main() -> int:
        with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
            settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
            await ledger.write(lambda c: reserved(c, 1))
            busy = threading.Event()
            blocked = asyncio.ensure_future(ledger.write(lambda _: busy.wait()))
            first = asyncio.ensure_future(settling.abandon(1))
            await asyncio.sleep(0)
            taken = asyncio.ensure_future(ledger.write(_take))
            await asyncio.sleep(0)
            again = asyncio.ensure_future(settling.abandon(1))
            await asyncio.sleep(0)
            busy.set()
            await asyncio.gather(blocked, first, taken, again)
            return await ledger.read(lambda c: c.execute(select(tables.payments.c.abandoned)).scalar_one())

    assert asyncio.run(main()) == 1


def _reward_in_a_slot(connection: Connection) -> TokenTransfer:
    """What shows that it was paid."""
    [reward] = movements.due(connection, movements.REWARD, 1)
    slot = slots.open_slot(connection, address(9), slots.FUNDING, 0)
    movements.enter_slot(connection, slot.slot_id, [reward], NOW)
    slots.close(connection, slot, "mined", End(**PLACE))
    moved = {"payer": INTAKE.lower(), "payee": reward.payee, "nonce": reward.nonce, "value": REWARD}
    return transfer(2, **moved, **PLACE)


def _funded_gig(connection: Connection) -> None:
    connection.execute(insert(tables.api_keys).values(name="A", prefix="gig_1", hash=word(1), created_at=NOW))
    draft = Draft(1, {}, TokenInfo(address(0x0DD), "ODD", 18), 10, 1, NOW, NOW + 60, 41)
    gig_id, _ = keyed_gigs.create(connection, wallet_of, draft)
    gig, fence = keyed_gigs.find(connection, gig_id), keyed_gigs.take_turn(connection, gig_id, 0)
    assert gig is not None
    assert fence is not None
    came = transfer(3, nonce=None, payee=gig.wallet, **PLACE)
    assert keyed_gigs.go_live(connection, gig, fence, Started([came], 0, NOW, NOW + 60), Fee(address(5), word(5), None))


def _states(connection: Connection) -> tuple[object, ...]:
    """Of the payment, its reward and its slot; whether the other gig is funded; and the doubts."""
    states = [
        select(table.c.state).where(table.c.id == 1) for table in (tables.payments, tables.movements, tables.slots)
    ]
    is_funded = select(tables.gigs.c.is_funded).where(tables.gigs.c.key_id == 1)
    found = [connection.execute(query).scalar_one() for query in (*states, is_funded)]
    return *found, chain_state.doubts(connection)
