"""A ledger opened beside a server that is at work on it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, func, insert, select, text

from tests.support.servers import Postgres
from tests.unit.ledger.conftest import DATABASES
from tests.unit.ledger.test_engine import slot
from x402_gig.errors import CannotStart, Unavailable
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.tables import slots


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        return postgres.database()
    # A name that means something in a URL.
    return f"sqlite:///{tmp_path}/led ger#1?.db".replace("?", "%3F").replace("#", "%23")


@pytest.fixture
def server(url: str) -> Iterator[Ledger]:
    opened = Ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def guest(server: Ledger, url: str) -> Iterator[Ledger]:
    opened = Ledger(url, is_guest=True)
    yield opened
    opened.close()


def count(connection: Connection) -> int:
    return int(connection.execute(select(func.count()).select_from(slots)).scalar_one())


def test_a_guest_sees_what_the_server_has_committed(server: Ledger, guest: Ledger) -> None:
    with server.transaction() as connection:
        connection.execute(insert(slots), slot(1))
        assert asyncio.run(guest.read(count)) == 0
    assert asyncio.run(guest.read(count)) == 1


def test_a_guest_who_reads_keeps_nobody_from_writing(server: Ledger, guest: Ledger) -> None:
    def read(connection: Connection) -> tuple[int, int]:
        before = count(connection)
        with server.transaction() as writing:
            writing.execute(insert(slots), slot(1))
        return before, count(connection)

    # One consistent view, whatever is written meanwhile.
    assert asyncio.run(guest.read(read)) == (0, 0)


def test_a_guest_who_reads_cannot_write(guest: Ledger) -> None:
    with pytest.raises(Unavailable):
        asyncio.run(guest.read(lambda c: c.execute(insert(slots), slot(1))))


def test_a_guest_may_write_when_he_says_so(server: Ledger, guest: Ledger) -> None:
    asyncio.run(guest.write(lambda c: c.execute(insert(slots), slot(1))))
    assert asyncio.run(server.read(count)) == 1


def test_a_guest_makes_no_ledger(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="x402-gig serve"):
        Ledger(f"sqlite:///{tmp_path}/none.db", is_guest=True)
    assert list(tmp_path.iterdir()) == []


def test_a_guest_makes_no_tables(postgres: Postgres) -> None:
    url = postgres.database()
    for _ in range(2):
        with pytest.raises(CannotStart, match="x402-gig serve"):
            Ledger(url, is_guest=True)


def test_a_guest_leaves_another_versions_ledger_alone(server: Ledger, url: str) -> None:
    with server.transaction() as connection:
        connection.execute(text("update alembic_version set version_num = '0001'"))
    with pytest.raises(CannotStart, match="revision 0001"):
        Ledger(url, is_guest=True)
    with server.transaction() as connection:
        assert connection.execute(text("select version_num from alembic_version")).scalar_one() == "0001"
