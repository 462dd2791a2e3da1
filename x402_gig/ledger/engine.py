"""The ledger: one function, one transaction, on a thread of its own.

Queries are plain functions of a connection, so nothing can wait in the middle of a transaction. The statements of what
every purchase needs are made once, at import: building one takes six times as long as running it. The database has one
writer at a time, so there is one writing thread; readers see the last commit. SQLite is like that by itself (WAL); on
PostgreSQL whoever writes takes a lock first, whichever process or machine he is on. Questions that come together are
answered out of one view.
"""

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from msgspec import Struct
from sqlalchemy import URL, Column, ColumnElement, Connection, CursorResult, Engine, Table, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, OperationalError, SQLAlchemyError

from x402_gig.errors import CannotStart, CommitUnknown, LedgerUnavailable
from x402_gig.ledger.schema import check_schema, migrate
from x402_gig.ledger.transactions import transactions

# Connection too: its users outside this room only hand it on, and need not import SQLAlchemy for that.
__all__ = ["Connection", "InsertIgnore", "InsertOrReplace", "Ledger"]

T = TypeVar("T")
log = logging.getLogger(__name__)

LOCK_TIMEOUT_S = 10
AGAIN_S = 0.5
CONNECT_TIMEOUT_S = 5
# A frozen process must not keep its turn for ever, nor may a setting of the database make commits asynchronous.
SESSION = {
    "lock_timeout": f"{LOCK_TIMEOUT_S}s",
    "idle_in_transaction_session_timeout": "5s",
    "synchronous_commit": "on",
}
# A host that is gone does not say so (seconds).
KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}

NO_FILE = "the file cannot be opened: is there such a folder, may it be written to, and is there room on the disk?"
IN_USE = "another server is at work on this file; several servers can share a ledger on PostgreSQL only"
LINKED = "the file has another name (a hard link), and each name has a lock of its own: remove all but one of its names"


class Ledger:
    """Opens the database at `url` (SQLAlchemy form) and brings its schema up to date. Raises CannotStart.

    A guest leaves it as it is, for a server may be at work on it: it takes the schema it finds or none, and until it
    writes it cannot change a byte.
    """

    def __init__(self, url: str, *, is_guest: bool = False) -> None:
        try:
            parts = _parts(url)
            self._engine = _engine(parts)
            self._lock = None if is_guest else _locked(parts)
            self._reading = _reading(_engine(_read_only(parts)) if is_guest else self._engine)
            check_schema(self._reading) if is_guest else migrate(self._engine)
        except (SQLAlchemyError, ImportError) as exc:
            # `from None`: a driver's message may repeat the URL, and with it the password.
            raise CannotStart([f"X402_GIG_DATABASE_URL: {_why(url, exc, is_guest)}"]) from None
        self._writing, self._looking = transactions(self._engine), transactions(self._reading)
        self._writer = ThreadPoolExecutor(1, "ledger-write")
        self._readers = ThreadPoolExecutor(2, "ledger-read")
        self._asked: list[_Asked] = []
        self._asking = threading.Lock()

    async def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in one transaction; it is on disk when this returns.

        Raises LedgerUnavailable when nothing changed, and CommitUnknown when the answer to the commit was lost. The
        next transaction sees what became of it: writers take turns, and a turn lasts until its transaction has ended.
        """
        # A transaction that was asked for is not torn, nor left out, when a client hangs up.
        asked = _Asked(work, asyncio.get_running_loop().create_future())
        _submit(self._writer, lambda: self._write(asked))
        with _as_unavailable():
            result: T = await asked.answer
            return result

    async def write_surely(self, work: Callable[[Connection], T]) -> T:
        """`write`, repeated while the answer to the commit is lost: `work` must recognise what it has written before.

        Raises LedgerUnavailable when nothing changed.
        """
        is_unknown = False
        while True:
            try:
                return await self.write(work)
            except LedgerUnavailable as exc:
                is_unknown = is_unknown or isinstance(exc, CommitUnknown)
                if not is_unknown:
                    raise
                log.warning("%s: looking again", exc.detail)
                await asyncio.sleep(AGAIN_S)

    def _write(self, asked: "_Asked") -> None:
        is_committing = False
        try:
            with self._writing() as connection:
                result = asked.work(connection)
                is_committing = True
        except BaseException as exc:  # noqa: BLE001 - as in `_read`
            result = _commit_unknown(exc) if is_committing else exc
        _tell([asked], [result])

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on a consistent view. Raises LedgerUnavailable.

        What is asked while the threads are at work shares the next transaction.
        """
        asked = _Asked(work, asyncio.get_running_loop().create_future())
        with self._asking:
            if not self._asked:
                _submit(self._readers, self._read_all)
            self._asked.append(asked)
        with _as_unavailable():
            result: T = await asked.answer
            return result

    def _read_all(self) -> None:
        with self._asking:
            asked, self._asked = self._asked, []
        self._read(asked)

    def _read(self, asked: Sequence["_Asked"]) -> None:
        try:
            with self._looking() as connection:
                results = [one.work(connection) for one in asked]
        except BaseException as exc:  # noqa: BLE001 - whatever it is, it belongs to the one who asked, who waits for it
            if len(asked) == 1:
                _tell(asked, [exc])
                return
            for one in asked:
                self._read([one])
        else:
            _tell(asked, results)

    def transaction(self) -> AbstractContextManager[Connection]:
        """One that may write, in the calling thread."""
        return self._writing()

    @property
    def is_alone(self) -> bool:
        """Can no other server be at work on it?"""
        return self._engine.dialect.name == "sqlite"

    def close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        self._engine.dispose()
        self._reading.dispose()
        if self._lock is not None:
            self._lock.close()


class _Asked(Struct, frozen=True):
    work: Callable[[Connection], Any]
    answer: "asyncio.Future[Any]"

    def tell(self, result: Any) -> None:
        if self.answer.done():  # whoever asked has gone
            return
        if isinstance(result, StopIteration):  # a future takes none
            result = RuntimeError("a query ended in StopIteration")
        if isinstance(result, BaseException):
            self.answer.set_exception(result)
        else:
            self.answer.set_result(result)


def _tell(asked: Sequence[_Asked], results: Sequence[Any]) -> None:
    def tell() -> None:
        for one, result in zip(asked, results, strict=True):
            one.tell(result)

    with contextlib.suppress(RuntimeError):  # the event loop has ended
        asked[0].answer.get_loop().call_soon_threadsafe(tell)


def _submit(threads: ThreadPoolExecutor, work: Callable[[], T]) -> "Future[T]":
    try:
        return threads.submit(work)
    except RuntimeError:
        raise LedgerUnavailable("The ledger is closed") from None


@contextmanager
def _as_unavailable() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OverflowError) as exc:  # OverflowError: an amount of more than 63 bits
        if isinstance(exc, InvalidRequestError):
            log.exception("a query is wrong")  # a mistake of ours; its text has no values in it
        raise LedgerUnavailable(f"The ledger cannot be used right now ({_kind(exc)})") from exc


def _commit_unknown(exc: BaseException) -> CommitUnknown:
    unknown = CommitUnknown(f"The ledger did not say whether it was written to ({_kind(exc)})")
    unknown.__cause__ = exc
    return unknown


def _kind(exc: BaseException) -> str:
    """With what the database calls it, such as SQLITE_FULL or 53100: never its text, which may hold values."""
    cause = getattr(exc, "orig", None)
    name = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None)
    return f"{type(exc).__name__}, {name}" if name else type(exc).__name__


def _why(url: str, exc: Exception, is_guest: bool) -> str:
    """For the operator, without the URL."""
    if isinstance(exc, ArgumentError | ImportError):
        return "must be sqlite:///FILE, without `uri`, or postgresql://USER:PASSWORD@HOST/DATABASE"
    if not isinstance(exc, OperationalError):
        return f"the ledger cannot be opened ({_kind(exc)})"
    if not url.startswith("sqlite"):
        return (
            "PostgreSQL does not answer there, does not know the database, refuses this user and password, or does not "
            "have the TLS that sslmode asks for (verify-full needs sslrootcert too)"
        )
    if is_guest:
        return "there is no ledger in that file (`x402-gig serve` makes it), or it cannot be read"
    return NO_FILE


def _insert(dialect: str, table: Table) -> Any:
    """Knows ON CONFLICT. Only the database at hand is imported: the other takes its time at each start."""
    return import_module(f"sqlalchemy.dialects.{dialect}").insert(table)


class InsertIgnore:
    """INSERT … ON CONFLICT DO NOTHING of any number of rows, on either database."""

    def __init__(self, table: Table, *returning: Column[Any]) -> None:
        self._statement = cache(lambda dialect: _insert(dialect, table).on_conflict_do_nothing().returning(*returning))

    def __call__(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> CursorResult[Any]:
        """Those that are new."""
        return connection.execute(self._statement(connection.dialect.name), list(rows))


class InsertOrReplace:
    """INSERT … ON CONFLICT (key) DO UPDATE of `columns`; `where` is the condition of a partial unique index."""

    def __init__(
        self, table: Table, key: Sequence[str], columns: Sequence[str], where: ColumnElement[bool] | None = None
    ) -> None:
        self._key = key
        self._statement = cache(lambda dialect: _replacing(_insert(dialect, table), key, columns, where))

    def __call__(self, connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
        """Of rows with the same key the last one counts: PostgreSQL takes no two in one statement."""
        different = {tuple(row[name] for name in self._key): row for row in rows}
        connection.execute(self._statement(connection.dialect.name), list(different.values()))


def _replacing(statement: Any, key: Sequence[str], columns: Sequence[str], where: ColumnElement[bool] | None) -> Any:
    new = {name: statement.excluded[name] for name in columns}
    return statement.on_conflict_do_update(index_elements=key, index_where=where, set_=new)


def _locked(url: URL) -> sqlite3.Connection | None:
    """Held by the one server of a SQLite ledger; it ends with the process, however that ends. Raises CannotStart.

    A lock of the ledger itself would keep the operator's commands out, so it is that of an empty database beside it.
    """
    if url.get_backend_name() != "sqlite" or url.database in (None, "", ":memory:"):
        return None
    path = os.path.realpath(str(url.database))
    try:
        lock = sqlite3.connect(f"{path}.lock", timeout=0, isolation_level=None, check_same_thread=False)
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError as exc:
        said = IN_USE if exc.sqlite_errorname == "SQLITE_BUSY" else NO_FILE
        raise CannotStart([f"X402_GIG_DATABASE_URL: {said}"]) from None
    if Path(path).exists() and Path(path).stat().st_nlink > 1:
        lock.close()
        raise CannotStart([f"X402_GIG_DATABASE_URL: {LINKED}"])
    return lock


def _parts(url: str) -> URL:
    """Raises ArgumentError. SQLite's URIs would be more names for one file, and the lock goes by its name."""
    parts = make_url(url)
    if parts.get_backend_name() == "sqlite" and "uri" in parts.query:
        raise ArgumentError("a URI of SQLite")
    return parts


def _read_only(url: URL) -> URL:
    """The same database; of SQLite's the file can only be read, and nobody who writes waits for that."""
    if url.get_backend_name() != "sqlite":
        return url
    only_read = {"mode": "ro", "uri": "true"}
    return url.set(database=f"file:{quote(url.database or '')}").update_query_dict(only_read)


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    if url.get_backend_name() == "postgresql":
        return _postgresql(url)
    raise ArgumentError("neither SQLite nor PostgreSQL")


def _reading(engine: Engine) -> Engine:
    """The same, for transactions that see one consistent view and cannot write."""
    if engine.dialect.name == "sqlite":
        return engine.execution_options(read_only=True)
    return engine.execution_options(read_only=True, isolation_level="REPEATABLE READ", postgresql_readonly=True)


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": LOCK_TIMEOUT_S})
    lasting = () if url.query.get("mode") == "ro" else ("journal_mode=WAL", "synchronous=FULL")

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver's own BEGIN comes too late: see `take_turn`
        for pragma in (*lasting, "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _postgresql(url: URL) -> Engine:
    return create_engine(
        url.set(drivername="postgresql+psycopg") if url.drivername == "postgresql" else url,
        # What is read after the turn has come must be what the one before has written: no snapshot of earlier.
        isolation_level="READ COMMITTED",
        pool_pre_ping=True,  # after a restart of the database its connections are dead
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": " ".join(f"-c {name}={value}" for name, value in SESSION.items()),
            **KEEPALIVES,
        },
    )
