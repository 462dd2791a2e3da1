"""What a process may write that has lost a lease and does not know it: nothing in its name."""

import asyncio
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec.structs import replace
from sqlalchemy import func, select, update

from tests.support.servers import Postgres
from x402_gig.errors import LeaseLost
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger import slots, tables
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.slots import End, Slot
from x402_gig.metrics import Metrics
from x402_gig.relaying.fees import Fees
from x402_gig.relaying.leases import FUNDING, Leases
from x402_gig.relaying.relayer import Batch, Relayer

WALLET = Wallets("test test test test test test test test test test test junk").relayer(0)
NAME = WALLET.address
BATCH = Batch(b"", 21_000)


@pytest.fixture
def two(postgres: Postgres) -> Iterator[list[Leases]]:
    """Two processes and one relayer, which the first one holds."""
    url = postgres.database()
    ledgers = [Ledger(url), Ledger(url)]
    processes = [Leases(ledger, [NAME]) for ledger in ledgers]
    for process in processes:
        asyncio.run(process.renew())
    yield processes
    for ledger in ledgers:
        ledger.close()


def relayer(leases: Leases) -> Relayer:
    """With as much of a node as signing needs."""
    node, none = cast(Any, SimpleNamespace(token=SimpleNamespace(chain_id=1))), cast(Any, None)
    made = Relayer(WALLET, NAME, node, leases.ledger, none, none, none, leases, 1, 64, Metrics())
    made._fence = leases.fence(NAME)
    return made


def opened(sender: Relayer) -> Slot:
    written = asyncio.run(sender.ledger.write(lambda c: sender._write_down(c, "deposit", lambda _: BATCH, Fees(2, 1))))
    assert written is not None
    return written[0]


def lose(first: Leases, second: Leases) -> None:
    """The first one is paused past its deadline, and the second one renews."""
    asyncio.run(first.ledger.write(lambda c: c.execute(update(tables.processes).values(ends_at=0))))
    asyncio.run(second.renew())


def counted(connection: Connection) -> list[int]:
    return [
        connection.execute(select(func.count()).select_from(table)).scalar_one()
        for table in (tables.slots, tables.attempts)
    ]


def test_the_holder_opens_slots_and_nobody_else(two: list[Leases]) -> None:
    first, second = two
    opened(relayer(first))
    with pytest.raises(LeaseLost):
        opened(relayer(second))
    assert asyncio.run(first.ledger.read(counted)) == [1, 1]


def test_who_was_paused_opens_no_slot_signs_no_other_transaction_and_gives_none_up_as_lost(two: list[Leases]) -> None:
    first, second = two
    paused = relayer(first)
    slot = opened(paused)
    lose(first, second)
    # It does not know.
    assert first.fence(NAME) is not None

    with pytest.raises(LeaseLost):
        opened(paused)
    for late in (
        lambda c: slots.close(c, slot, "lost", End(1, "0x1")),
        lambda c: slots.add_attempt(
            c, slot, paused.sign(slot, {"to": NAME, "value": 0, "data": b"", "gas": 1}, Fees(9, 9))
        ),
    ):
        with pytest.raises(LeaseLost):
            asyncio.run(paused.write_as_holder(late))

    assert asyncio.run(second.ledger.read(counted)) == [1, 1]
    assert asyncio.run(second.ledger.read(lambda c: slots.open_slots(c, NAME))) == [replace(slot, first=None)]
    opened(relayer(second))


def test_who_has_it_back_does_not_go_on_with_what_was_begun_before(two: list[Leases]) -> None:
    first, second = two
    paused = relayer(first)
    lose(first, second)
    asyncio.run(second.release())
    asyncio.run(first.renew())
    assert first.fence(NAME) is not None
    with pytest.raises(LeaseLost):
        opened(paused)
    with pytest.raises(LeaseLost):
        first.check_known(NAME, paused._fence)
    opened(relayer(first))


def test_money_is_moved_on_by_one_of_them(two: list[Leases]) -> None:
    first, second = two
    assert (first.fence(FUNDING) is None, second.fence(FUNDING) is None) == (False, True)
    lose(first, second)
    assert second.fence(FUNDING) is not None


def test_more_processes_than_relayers_are_told_what_to_set(two: list[Leases]) -> None:
    assert "2 servers share 1 relayers" in two[1].problem
    assert not two[1].can_send
