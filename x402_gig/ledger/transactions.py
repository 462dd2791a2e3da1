"""Where a transaction begins, and whose turn it is.

SQLAlchemy's event for it is not used: an engine with a listener looks for listeners at every statement, and takes a
third longer for each.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from sqlalchemy import Connection, Engine, func, select

# The lock that writers take on PostgreSQL: any number, the same in every version.
WRITERS = 402_402
_CLOCK = select(func.extract("epoch", func.clock_timestamp()))


def take_turn(connection: Connection) -> None:
    """The first statement of a transaction. One that writes waits until no other writes; `is_patient`: for ever."""
    options = connection.get_execution_options()
    is_reader = options.get("read_only", False)
    if connection.dialect.name == "sqlite":
        # IMMEDIATE: a transaction that reads first and writes later must not lose its turn in between.
        connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")
        return
    if options.get("is_patient", False):
        connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
    if not is_reader:
        # What BEGIN IMMEDIATE is to SQLite; it is given back with the commit.
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITERS})")


def clock_s(connection: Connection) -> int:
    """Unix seconds by the database's clock: those of the machines may differ. A file's is this machine's."""
    if connection.dialect.name == "sqlite":
        return int(time.time())
    return int(connection.execute(_CLOCK).scalar_one())


def transactions(engine: Engine) -> Callable[[], AbstractContextManager[Connection]]:
    """Each call is a transaction, committed at its end.

    With SQLite a thread keeps its connection as long as all goes well: nothing can cut it off, and to take it out of
    the pool each time takes longer than to begin and to commit.
    """
    own = threading.local()

    @contextmanager
    def pooled() -> Iterator[Connection]:
        with engine.begin() as connection:
            take_turn(connection)
            yield connection

    @contextmanager
    def kept() -> Iterator[Connection]:
        connection = vars(own).pop("connection", None) or engine.connect()
        try:
            with connection.begin():
                take_turn(connection)
                yield connection
        except BaseException:
            connection.close()  # whatever state it is in
            raise
        own.connection = connection

    return kept if engine.dialect.name == "sqlite" else pooled
