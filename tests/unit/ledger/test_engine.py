import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import CheckConstraint, Connection, Table, create_engine, func, insert, select, text, update
from sqlalchemy.exc import IntegrityError

from tests.support.cuts import commit_proxy
from tests.support.harness import until
from tests.support.servers import Postgres
from tests.unit.ledger.conftest import DATABASES, on_postgresql, on_sqlite
from tests.unit.ledger.examples import address, reserved
from x402_gig.errors import CannotStart, CommitUnknown, Unavailable
from x402_gig.ledger import engine, schema, tables
from x402_gig.ledger.engine import InsertIgnore, InsertOrReplace, Ledger
from x402_gig.ledger.tables import journal, payments, slots


def slot(nonce: int, **changes: Any) -> dict[str, Any]:
    row = {"relayer": address(1), "nonce": nonce, "purpose": "deposit", "state": "open", "created_at": 1}
    return row | changes


def count(db: Connection) -> int:
    return int(db.execute(select(func.count()).select_from(slots)).scalar_one())


# Schema


@pytest.fixture(scope="module")
def migrated(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Connection]]:
    """Databases that all migrations made, one after the other."""
    databases = {
        "sqlite": f"sqlite:///{tmp_path_factory.mktemp('migrated')}/ledger.db",
        "postgresql": postgres.database().replace("postgresql:", "postgresql+psycopg:"),
    }
    with ExitStack() as stack:
        connections = {}
        for name, url in databases.items():
            connections[name] = stack.enter_context(create_engine(url).connect())
            schema.upgrade(connections[name], "")
        yield connections


def test_the_newest_migration_is_the_revision_of_the_tables() -> None:
    assert ScriptDirectory.from_config(schema.migrations()).get_current_head() == schema.REVISION


@pytest.mark.parametrize("name", DATABASES)
def test_migrations_make_the_tables_that_the_queries_use(migrated: dict[str, Connection], name: str) -> None:
    options = {"compare_type": True, "compare_server_default": True}
    assert compare_metadata(MigrationContext.configure(migrated[name], opts=options), tables.metadata) == []


@pytest.mark.parametrize("table", tables.metadata.sorted_tables, ids=str)
def test_migrations_make_what_alembic_does_not_compare(migrated: dict[str, Connection], table: Table) -> None:
    query = text("select sql from sqlite_master where type = 'table' and name = :name")
    made = migrated["sqlite"].execute(query, {"name": table.name}).scalar_one()
    for check in (c for c in table.constraints if isinstance(c, CheckConstraint)):
        assert f"CONSTRAINT {check.name} CHECK ({check.sqltext})" in made
    assert ("AUTOINCREMENT" in made) == bool(table.kwargs.get("sqlite_autoincrement", False))


CATALOGUE = """
    select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
    where connamespace = 'public'::regnamespace and conrelid <> 'alembic_version'::regclass
    union select tablename, indexname, indexdef from pg_indexes
    where schemaname = 'public' and tablename <> 'alembic_version'
    union select table_name, column_name, concat(data_type, character_maximum_length, is_nullable, column_default)
    from information_schema.columns where table_schema = 'public' and table_name <> 'alembic_version'
"""


@on_postgresql
def test_migrations_make_the_same_database_on_postgresql_as_the_tables(
    migrated: dict[str, Connection], db: Connection
) -> None:
    found, expected = ({tuple(row) for row in each.execute(text(CATALOGUE))} for each in (migrated["postgresql"], db))
    assert len(expected) > 100
    assert found ^ expected == set()


def test_opening_a_ledger_again_changes_nothing(url: str) -> None:
    for expected in (0, 1):
        ledger = Ledger(url)
        with ledger.transaction() as db:
            assert count(db) == expected
            db.execute(insert(slots), slot(expected))
        ledger.close()


@pytest.mark.parametrize(
    ("table", "row"),
    [
        (slots, slot(1, state="somewhere")),
        (payments, {"state": "refunded"}),
        (tables.movements, {"state": "done", "kind": "gift"}),
        (tables.deposits, {"payment_id": 1, "refund_id": 1}),
        (tables.ledger, {"id": 2}),
    ],
    ids=lambda value: str(value)[:20],
)
def test_no_row_has_a_state_of_its_own_invention(db: Connection, table: Any, row: dict[str, Any]) -> None:
    filled = {c.name: "0" if "CHAR" in str(c.type) or "TEXT" in str(c.type) else 1 for c in table.columns}
    with pytest.raises(IntegrityError, match=r"(?i)check constraint"):
        db.execute(insert(table), filled | row)


def test_rows_refer_to_rows_that_exist(db: Connection) -> None:
    with pytest.raises(IntegrityError, match=r"(?i)foreign key"):
        db.execute(insert(tables.slot_payments), {"slot_id": 77, "payment_id": 78})


@pytest.mark.parametrize(
    ("url", "said"),
    [("nonsense", "must be sqlite"), ("oracle-of-delphi://user:hunter2@host/db", "must be sqlite"),
     ("postgresql+nothing://user:hunter2@host/db", "must be sqlite"),
     ("mysql://user:hunter2@host/db", "must be sqlite"),
     ("postgresql://user:hunter2@127.0.0.1:1/db", "PostgreSQL does not answer"),
     ("sqlite:////no/such/folder/x.db", "is there such a folder")],
)  # fmt: skip
def test_a_ledger_that_cannot_be_opened_says_which_setting_and_no_password(url: str, said: str) -> None:
    with pytest.raises(CannotStart, match=f"X402_GIG_DATABASE_URL: .*{said}") as caught:
        Ledger(url)
    assert "hunter2" not in caught.value.detail


@pytest.mark.parametrize("is_guest", [False, True])
@pytest.mark.parametrize("form", ["sqlite:///{}?uri=true", "sqlite:///file:{}?uri=true", "sqlite:///file:{}?uri=false"])
def test_a_file_has_one_kind_of_name_and_so_one_lock(tmp_path: Path, form: str, is_guest: bool) -> None:
    file = f"{tmp_path}/ledger.db"
    first = Ledger(f"sqlite:///{file}")
    with pytest.raises(CannotStart, match="must be sqlite:///FILE, without `uri`"):
        Ledger(form.format(file), is_guest=is_guest)
    first.close()


def test_a_file_that_has_a_second_name_by_a_hard_link_is_refused(tmp_path: Path) -> None:
    """Each name would have a lock of its own."""
    first = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    (tmp_path / "other.db").hardlink_to(tmp_path / "ledger.db")
    with pytest.raises(CannotStart, match=r"DATABASE_URL: the file has another name .* remove all but one"):
        Ledger(f"sqlite:///{tmp_path}/other.db")
    first.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_text("Dear diary, today I sold a gig." * 100)
    with pytest.raises(CannotStart, match="DATABASE_URL"):
        Ledger(f"sqlite:///{tmp_path}/ledger.db")


def test_a_ledger_of_a_newer_version_is_refused(ledger: Ledger, url: str) -> None:
    with ledger.transaction() as db:
        db.execute(text("update alembic_version set version_num = '9999'"))
    ledger.close()
    with pytest.raises(CannotStart, match="DATABASE_URL: another version"):
        Ledger(url)


def test_servers_that_start_at_once_make_one_ledger(postgres: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long that takes."""
    monkeypatch.setitem(engine.SESSION, "lock_timeout", "10ms")
    url = postgres.database()
    with ThreadPoolExecutor(3) as threads:
        for ledger in threads.map(Ledger, [url] * 3):
            assert asyncio.run(ledger.read(count)) == 0
            ledger.close()


# Transactions


@on_sqlite
@pytest.mark.parametrize(("pragma", "value"), [("journal_mode", "wal"), ("synchronous", 2), ("foreign_keys", 1)])
def test_what_is_committed_is_on_disk(ledger: Ledger, pragma: str, value: object) -> None:
    """synchronous 2 is FULL: every commit waits for the disk."""

    async def both() -> list[object]:
        def ask(db: Connection) -> object:
            return db.execute(text(f"pragma {pragma}")).scalar_one()

        return [await ledger.write(ask), await ledger.read(ask)]

    assert asyncio.run(both()) == [value, value]


@on_postgresql
def test_transactions_on_postgresql_are_what_they_are_on_sqlite(ledger: Ledger) -> None:
    names = ("transaction_isolation", "transaction_read_only", "synchronous_commit")

    def ask(db: Connection) -> list[str]:
        return [db.execute(text(f"show {name}")).scalar_one() for name in names]

    assert asyncio.run(ledger.write(ask)) == ["read committed", "off", "on"]
    assert asyncio.run(ledger.read(ask)) == ["repeatable read", "on", "on"]
    assert asyncio.run(ledger.write(ask)) == ["read committed", "off", "on"]


@on_postgresql
def test_a_writer_whose_turn_does_not_come_gives_up(ledger: Ledger, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(engine.SESSION, "lock_timeout", "100ms")
    other = Ledger(url)
    with ledger.transaction():
        with pytest.raises(Unavailable, match="OperationalError"):
            asyncio.run(other.write(count))
        assert asyncio.run(other.read(count)) == 0
    assert asyncio.run(other.write(count)) == 0
    other.close()


@on_postgresql
def test_a_database_that_was_restarted_is_found_again(ledger: Ledger, url: str) -> None:
    """Its connections are dead, and nobody but the ledger notices."""
    asyncio.run(ledger.write(count))
    asyncio.run(ledger.read(count))
    ours = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    with psycopg.connect(url) as other:
        assert other.execute(f"select count(pg_terminate_backend(pid, 5000)) {ours}".encode()).fetchone() != (0,)
    asyncio.run(ledger.write(lambda c: c.execute(insert(slots), slot(1))))
    assert asyncio.run(ledger.read(count)) == 1


@on_sqlite
def test_a_commit_is_seen_by_others(ledger: Ledger, tmp_path: Path) -> None:
    asyncio.run(ledger.write(lambda db: db.execute(insert(slots), slot(1))))
    assert asyncio.run(ledger.read(count)) == 1
    with sqlite3.connect(tmp_path / "ledger.db") as other:
        assert other.execute("select count(*) from slots").fetchone() == (1,)


class Slipped(Exception):
    pass


def test_a_transaction_that_fails_leaves_nothing(ledger: Ledger) -> None:
    def work(db: Connection) -> None:
        db.execute(insert(slots), slot(1))
        db.execute(insert(slots), slot(2))
        raise Slipped

    with pytest.raises(Slipped):
        asyncio.run(ledger.write(work))
    assert asyncio.run(ledger.read(count)) == 0


def test_an_error_of_the_database_is_unavailable_and_leaves_nothing(ledger: Ledger) -> None:
    def work(db: Connection) -> None:
        db.execute(insert(slots), slot(1))
        db.execute(insert(slots), slot(1))

    with pytest.raises(Unavailable, match="IntegrityError") as caught:
        asyncio.run(ledger.write(work))
    assert "INSERT" not in caught.value.detail
    assert asyncio.run(ledger.read(count)) == 0


@on_sqlite
def test_a_commit_that_fails_keeps_nobody_from_writing(ledger: Ledger) -> None:
    """SQLite leaves such a transaction open, for its writer to mend."""

    def work(db: Connection) -> None:
        db.execute(text("pragma defer_foreign_keys = on"))
        db.execute(insert(tables.slot_payments), {"slot_id": 77, "payment_id": 78})

    with pytest.raises(Unavailable, match="IntegrityError"):
        asyncio.run(ledger.write(work))
    asyncio.run(ledger.write(lambda db: db.execute(insert(slots), slot(1))))
    assert asyncio.run(ledger.read(count)) == 1


def test_writers_take_turns_so_that_what_was_read_still_holds(ledger: Ledger, url: str) -> None:
    """Also those of another process."""
    asyncio.run(ledger.write(lambda db: db.execute(insert(slots), slot(0))))
    ledgers = [ledger, Ledger(url, is_guest=True)]

    def count_up(number: int) -> None:
        for _ in range(20):
            with ledgers[number % 2].transaction() as db:
                seen = db.execute(select(slots.c.gas_used)).scalar_one() or 0
                db.execute(update(slots).values(gas_used=seen + 1))

    threads = [threading.Thread(target=count_up, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledgers[1].close()
    assert asyncio.run(ledger.read(lambda db: db.execute(select(slots.c.gas_used)).scalar_one())) == 80


def test_readers_do_not_wait_for_a_writer(ledger: Ledger) -> None:
    with ledger.transaction() as writer:
        writer.execute(insert(slots), slot(1))
        assert asyncio.run(ledger.read(count)) == 0


def test_what_was_asked_to_be_written_is_written_though_the_asker_leaves(ledger: Ledger) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(db: Connection) -> None:
        db.execute(insert(slots), slot(1))
        begun.set()
        may_end.wait(5)

    async def hang_up() -> int:
        running = asyncio.ensure_future(ledger.write(slow))
        queued = asyncio.ensure_future(ledger.write(lambda db: db.execute(insert(slots), slot(2))))
        await asyncio.to_thread(begun.wait, 5)
        for writing in (running, queued):
            writing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await writing
        may_end.set()
        return await ledger.write(count)

    assert asyncio.run(hang_up()) == 2


def _asks(ledger: Ledger, *works: Callable[[Connection], Any]) -> list[Any]:
    """What comes of these when all readers are busy until the last of them was asked."""
    busy, may_end = threading.Barrier(3), threading.Event()

    def slow(_: Connection) -> None:
        busy.wait(5)
        may_end.wait(5)

    async def ask() -> list[Any]:
        occupied = []
        for _ in range(2):
            occupied.append(asyncio.ensure_future(ledger.read(slow)))
            await asyncio.sleep(0)
            await asyncio.to_thread(until, lambda: not ledger._asked)
        await asyncio.to_thread(busy.wait, 5)
        asked = [asyncio.ensure_future(ledger.read(work)) for work in works]
        await asyncio.sleep(0)
        may_end.set()
        return (await asyncio.gather(*asked, *occupied, return_exceptions=True))[: len(works)]

    return asyncio.run(ask())


def test_questions_that_come_together_share_a_transaction(ledger: Ledger) -> None:
    connections = _asks(ledger, *[lambda db: db] * 3)
    assert connections[0] is connections[1] is connections[2]


def test_a_question_that_cannot_be_answered_does_not_touch_the_others(ledger: Ledger) -> None:
    def wrong(db: Connection) -> int:
        return int(db.execute(text("select x from nowhere")).scalar_one())

    def mistaken(_: Connection) -> int:
        raise ZeroDivisionError

    first, second, third, fourth = _asks(ledger, count, wrong, count, mistaken)
    assert (first, third) == (0, 0)
    assert isinstance(second, Unavailable)
    assert isinstance(fourth, ZeroDivisionError)


def test_whatever_a_question_raises_nobody_waits_for_ever(ledger: Ledger) -> None:
    class Rare(BaseException):
        pass

    def rare(_: Connection) -> None:
        raise Rare

    first, second, third = _asks(ledger, count, rare, count)
    assert (first, third) == (0, 0)
    assert isinstance(second, Rare)


def test_a_query_that_runs_out_of_rows_is_an_error_and_not_a_wait_for_ever(ledger: Ledger) -> None:
    nothing: Iterator[int] = iter(())
    for ask in (ledger.read, ledger.write):
        with pytest.raises(RuntimeError, match="StopIteration"):
            asyncio.run(asyncio.wait_for(ask(lambda _: next(nothing)), 10))


def test_whoever_asks_and_leaves_keeps_nobody_from_an_answer(ledger: Ledger) -> None:
    async def leave() -> int:
        asked = asyncio.ensure_future(ledger.read(count))
        other = asyncio.ensure_future(ledger.read(count))
        await asyncio.sleep(0)
        asked.cancel()
        return await other

    assert asyncio.run(leave()) == 0


def test_nothing_is_asked_of_a_closed_ledger(ledger: Ledger) -> None:
    ledger.close()
    for _ in range(2):
        with pytest.raises(Unavailable, match="closed"):
            asyncio.run(ledger.read(count))
    with pytest.raises(Unavailable, match="closed"):
        asyncio.run(ledger.write(count))


# A commit whose answer is lost


@on_postgresql
@pytest.mark.parametrize("is_passed_on", [True, False])
def test_a_commit_that_is_not_answered_is_neither_done_nor_failed(url: str, *, is_passed_on: bool) -> None:
    with commit_proxy(url) as proxy, closing(Ledger(proxy.url)) as ledger:
        proxy.cuts("INSERT INTO slots", passed_on=is_passed_on)
        with pytest.raises(CommitUnknown, match="did not say whether"):
            asyncio.run(ledger.write(lambda db: db.execute(insert(slots), slot(1))))
        assert asyncio.run(ledger.read(count)) == int(is_passed_on)


@on_postgresql
@pytest.mark.parametrize("is_passed_on", [True, False])
def test_what_is_to_be_known_surely_is_written_again_until_it_is(url: str, *, is_passed_on: bool) -> None:
    new = InsertIgnore(slots, slots.c.nonce)
    with commit_proxy(url) as proxy, closing(Ledger(proxy.url)) as ledger:
        proxy.cuts("INSERT INTO slots", passed_on=is_passed_on)
        found = asyncio.run(ledger.write_surely(lambda db: len(new(db, [slot(1)]).all())))
        assert (found, asyncio.run(ledger.read(count))) == (int(not is_passed_on), 1)


def test_what_fails_before_its_commit_was_not_written(ledger: Ledger) -> None:
    def fails(db: Connection) -> None:
        db.execute(insert(slots), [slot(1), slot(1)])

    with pytest.raises(Unavailable, match="IntegrityError") as caught:
        asyncio.run(ledger.write_surely(fails))
    assert not isinstance(caught.value, CommitUnknown)


# Conflicts


def test_the_second_writer_of_a_key_loses(db: Connection) -> None:
    insert_ignore = InsertIgnore(slots, slots.c.nonce)

    def write(*nonces: int) -> list[int]:
        return list(insert_ignore(db, [slot(nonce) for nonce in nonces]).scalars())

    assert write(1, 2) == [1, 2]
    assert write(2, 3) == [3]
    assert count(db) == 3


def test_of_rows_with_one_key_the_last_one_counts(db: Connection) -> None:
    rows = [slot(1, gas_used=1), slot(2, gas_used=2), slot(1, gas_used=3)]
    for _ in range(2):
        InsertOrReplace(slots, ["relayer", "nonce"], ["gas_used"])(db, rows)
        query = select(slots.c.nonce, slots.c.gas_used).order_by(slots.c.nonce)
        assert [tuple(row) for row in db.execute(query)] == [(1, 3), (2, 2)]


def test_insert_or_replace_changes_the_named_columns_only(db: Connection) -> None:
    db.execute(insert(slots), slot(1, gas_used=1))
    again = slot(1, gas_used=2, purpose="funding")
    InsertOrReplace(slots, ["relayer", "nonce"], ["gas_used"])(db, [again])
    [row] = db.execute(select(slots.c.gas_used, slots.c.purpose)).all()
    assert tuple(row) == (2, "deposit")


def test_an_id_is_never_given_out_twice(db: Connection) -> None:
    first, second = reserved(db, 1, 2)
    db.execute(journal.delete())
    db.execute(payments.delete().where(payments.c.id == second))
    assert reserved(db, 3) == [second + 1] == [first + 2]


# One server on SQLite


@on_sqlite
def test_a_second_server_on_one_file_is_refused_whatever_it_calls_the_file(ledger: Ledger, tmp_path: Path) -> None:
    (tmp_path / "same.db").symlink_to(tmp_path / "ledger.db")
    for name in ("ledger.db", "./ledger.db", "same.db"):
        with pytest.raises(CannotStart, match="another server is at work on this file"):
            Ledger(f"sqlite:///{tmp_path}/{name}")


@on_sqlite
def test_the_file_is_free_again_when_the_server_is_gone(ledger: Ledger, url: str) -> None:
    ledger.close()
    Ledger(url).close()


@on_postgresql
def test_any_number_of_servers_have_one_postgresql(ledger: Ledger, url: str) -> None:
    other = Ledger(url)
    assert not other.is_alone
    other.close()


def test_a_ledger_in_memory_needs_no_lock() -> None:
    first, second = Ledger("sqlite://"), Ledger("sqlite://")
    assert first.is_alone
    first.close()
    second.close()
