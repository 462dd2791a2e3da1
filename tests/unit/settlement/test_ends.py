"""When what nobody waits for ends: payments at their last second, deposits without an order two hours later."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import select

from tests.unit.ledger.examples import ASSET, END, SHOP, address, reserved, transfer, word
from tests.unit.payments.examples import INTAKE, NOW
from x402_gig.evm.node import Block
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger import deposits, movements, payments, slots, tables
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.metrics import Metrics
from x402_gig.payments.payment import Authorization
from x402_gig.settlement.reconciler import EXPIRED, Reconciler
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.work import Work

WALLETS = Wallets("test test test test test test test test test test test junk")
VALID_BEFORE = NOW + 60
DEPTH, TWO_HOURS = 64, 7200


class Unused:
    """A chain on which no authorization was executed; `asked_of` is the block of the last question.

    Its blocks up to `final`, that one included, are not replaced any more.
    """

    asked_of: Block | None = None
    is_used: bool | None = False
    final: Block | None = None

    async def existing(self, number: int) -> Block | None:
        return self.final if self.final is not None and self.final.number == number else None

    async def are_used(self, authorizations: Sequence[Authorization], block: Block | None = None) -> list[bool | None]:
        self.asked_of = block
        return [self.is_used for _ in authorizations]


def block(number: int, timestamp: int) -> Block:
    return Block(number, word(number), word(number - 1), timestamp, 7, 30_000_000)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


def reconciler(ledger: Ledger, cursor: Block, now_s: int = NOW) -> Reconciler:
    """One that has read everything up to `cursor`."""
    settling = Settling(ledger, SHOP, Work(), intake=INTAKE.lower(), asset=ASSET)
    watcher: Any = SimpleNamespace(cursor=cursor, doubts=0)
    node: Any = Unused()
    nothing: Any = None
    return Reconciler(
        node, ledger, settling, watcher, nothing, WALLETS.refund_nonce, Work(), lambda: now_s, DEPTH,
        Metrics(), nothing,
    )  # fmt: skip


def states(ledger: Ledger, table: Any) -> list[str]:
    return list(asyncio.run(ledger.read(lambda c: c.execute(select(table.c.state)).scalars().all())))


@pytest.mark.parametrize(("timestamp", "state"), [(VALID_BEFORE - 1, "open"), (VALID_BEFORE, "rejected")])
def test_a_payment_is_rejected_when_a_block_is_there_that_cannot_have_it(
    ledger: Ledger, timestamp: int, state: str
) -> None:
    asyncio.run(ledger.write(lambda c: reserved(c, 1)))
    cursor = block(7, timestamp)
    it = reconciler(ledger, cursor)

    asyncio.run(it.reconcile())

    assert states(ledger, tables.payments) == [state]
    # Of a later block nobody has read yet whether the deposit is in it.
    assert isinstance(it.node, Unused)
    assert it.node.asked_of == cursor


def test_nobody_is_rejected_by_a_token_that_does_not_tell_whether_the_nonce_is_used(ledger: Ledger) -> None:
    asyncio.run(ledger.write(lambda c: reserved(c, 1)))
    it = reconciler(ledger, block(7, VALID_BEFORE))
    silent: Any = it.node
    silent.is_used = None

    asyncio.run(it.reconcile())

    assert states(ledger, tables.payments) == ["open"]
    assert silent.asked_of is not None


@pytest.mark.parametrize(
    ("blocks", "seconds", "refunds"),
    [
        pytest.param(DEPTH, TWO_HOURS, ["due"], id="final and old"),
        pytest.param(DEPTH - 1, TWO_HOURS, [], id="a reorganisation may take it away"),
        pytest.param(DEPTH, TWO_HOURS - 1, [], id="its order may still come"),
    ],
)
def test_a_deposit_goes_back_when_it_is_final_and_no_order_can_come(
    ledger: Ledger, blocks: int, seconds: int, refunds: list[str]
) -> None:
    came = transfer(1)
    asyncio.run(ledger.write(lambda c: deposits.record(c, ASSET, [came], NOW)))
    it = reconciler(ledger, block(came.block_number + blocks, NOW), NOW + seconds)

    asyncio.run(it.refund())

    assert states(ledger, tables.movements) == refunds


@pytest.mark.parametrize(("final_s", "state"), [(VALID_BEFORE, "due"), (VALID_BEFORE + 1, "void")])
def test_a_reward_without_its_deposit_is_given_up_when_no_signature_lives_in_a_final_block(
    ledger: Ledger, final_s: int, state: str
) -> None:
    """A reorganisation may bring back a time at which the authorization can be executed."""
    asyncio.run(ledger.write(lose_deposit))
    it = reconciler(ledger, block(DEPTH + 7, VALID_BEFORE + 1000))
    chain: Any = it.node
    chain.final = block(7, final_s)

    asyncio.run(it.void())

    assert states(ledger, tables.movements) == [state]


def lose_deposit(db: Connection) -> None:
    """A payment whose reward was signed until `VALID_BEFORE`, and whose deposit never came back."""
    [payment_id] = reserved(db, 1)
    deposits.record(db, ASSET, [transfer(1)], NOW)
    deposits.settle(db, SHOP, [word(1)])
    slot = slots.open_slot(db, address(9), "funding", 0)
    movements.enter_slot(db, slot.slot_id, movements.due(db, movements.REWARD, 1), VALID_BEFORE)
    slots.close(db, slot, "reverted", END)
    deposits.forget_block(db, transfer(1).block_number, word(9999))
    assert payments.reject(db, payment_id, EXPIRED)
