"""Where the tests' servers keep their ledgers, by URL: in files of SQLite, or in databases of one PostgreSQL."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import update

from x402_gig.ledger import tables

if TYPE_CHECKING:
    from tests.support.servers import Postgres

FILE = "sqlite:///"
WRITERS = 402_402
_kept_in: "list[Postgres | None]" = [None]


@contextmanager
def kept_in(postgres: "Postgres | None") -> Iterator[None]:
    """All that are made from here on; None is for files."""
    _kept_in.append(postgres)
    try:
        yield
    finally:
        _kept_in.pop()


def is_file(url: str) -> bool:
    return url.startswith(FILE)


def are_files() -> bool:
    return _kept_in[-1] is None


def new(folder: Path, name: str = "ledger.db") -> str:
    """The URL of a ledger that is not there yet; a file has this name."""
    postgres = _kept_in[-1]
    return f"{FILE}{folder / name}" if postgres is None else postgres.database()


class Reader:
    """A connection that sees each commit; values are `?` in its queries."""

    def __init__(self, connection: Any, mark: str) -> None:
        self._connection = connection
        self._mark = mark

    def execute(self, query: str, values: Sequence[object] = ()) -> Any:
        return self._connection.execute(query.replace("?", self._mark), values)


@contextmanager
def reading(url: str) -> Iterator[Reader]:
    if not is_file(url):
        with psycopg.connect(url, autocommit=True) as connection:
            yield Reader(connection, "%s")
        return
    file = f"file:{url.removeprefix(FILE)}?mode=ro"
    with closing(sqlite3.connect(file, uri=True, timeout=10)) as connection:
        yield Reader(connection, "?")


def rows(url: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    with reading(url) as ledger:
        return list(ledger.execute(query, values).fetchall())


def change(url: str, *statements: str) -> None:
    """Behind the server's back, and whatever refers to the rows; each statement changes something."""
    with _connected(url) as connection:
        assert all(connection.execute(statement).rowcount for statement in statements)


def let_leases_end(url: str) -> None:
    """Of all processes there are; a killed one may not have got so far as to be among them."""
    with _connected(url) as connection:
        connection.execute("update processes set ends_at = 0")


def _connected(url: str) -> Any:
    if is_file(url):
        return sqlite3.connect(url.removeprefix(FILE))
    return psycopg.connect(url, options="-c session_replication_role=replica")


def copy(url: str, folder: Path, name: str = "copy.db") -> str:
    """Of a ledger that may be in use, as a backup makes it."""
    if not is_file(url):
        postgres = _kept_in[-1]
        assert postgres is not None
        return postgres.copy(url)
    with sqlite3.connect(url.removeprefix(FILE)) as source, sqlite3.connect(folder / name) as copied:
        source.backup(copied)
    return f"{FILE}{folder / name}"


@contextmanager
def locked(url: str) -> Iterator[None]:
    """Nobody else can write to the ledger."""
    if not is_file(url):
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(%s)", [WRITERS])
            yield
        return
    with closing(sqlite3.connect(url.removeprefix(FILE), timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


@contextmanager
def all_looked_at() -> Iterator[None]:
    """Of ledgers that are made within and have no chain: their gigs get wallets as if all had been looked at."""

    def make_all(connection: Any) -> None:
        make(connection)
        connection.execute(update(tables.gig_ids).values(looked_to=10**9))

    make = tables.make
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "make", make_all)
        yield
