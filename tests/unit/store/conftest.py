import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.servers import Postgres
from x402_gig.store.engine import Ledger

DATABASES = ["sqlite", "postgresql"]
on_sqlite, on_postgresql = (pytest.mark.parametrize("url", [name], indirect=True) for name in DATABASES)


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SQLite ledger without rows. Making one anew for each test would take most of its time."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    Ledger(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def empty_database(postgres: Postgres) -> str:
    """The same on PostgreSQL."""
    url = postgres.database()
    Ledger(url).close()
    return url


@pytest.fixture(params=DATABASES)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of a ledger without rows."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("empty_file"), tmp_path / "ledger.db")
        return f"sqlite:///{tmp_path}/ledger.db"
    postgres: Postgres = request.getfixturevalue("postgres")
    return postgres.database(request.getfixturevalue("empty_database"))


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    """A ledger on disk, as `serve` opens it."""
    opened = Ledger(url)
    yield opened
    opened.close()


@pytest.fixture
def db(ledger: Ledger) -> Iterator[Connection]:
    """One transaction on it, which is taken back in the end."""
    with ledger.engine.connect() as connection:
        yield connection
        connection.rollback()
