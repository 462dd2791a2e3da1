import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from tests.support.servers import Postgres
from x402_gig.ledger.engine import Ledger

DATABASES = ["sqlite", "postgresql"]
on_sqlite, on_postgresql = (pytest.mark.parametrize("kind", [name], indirect=True) for name in DATABASES)

COUNT_ANEW = "SELECT setval(sequencename::regclass, 1, false) FROM pg_sequences WHERE last_value IS NOT NULL"


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


@pytest.fixture(scope="session")
def left_empty(postgres: Postgres, empty_database: str) -> Iterator[Ledger]:
    """On PostgreSQL, for all who leave no rows: a database takes longer to make than most tests."""
    opened = Ledger(postgres.database(empty_database))
    yield opened
    opened.close()


@pytest.fixture(params=DATABASES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def url(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> str:
    """Of a ledger without rows."""
    if kind == "sqlite":
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
def db(request: pytest.FixtureRequest, kind: str) -> Iterator[Connection]:
    """One transaction on such a ledger, which is taken back in the end."""
    opened: Ledger = request.getfixturevalue("ledger" if kind == "sqlite" else "left_empty")
    with opened.transaction() as connection:
        yield connection
        connection.rollback()
    if kind == "postgresql":  # which does not take ids back
        with opened.transaction() as connection:
            connection.exec_driver_sql(COUNT_ANEW)
