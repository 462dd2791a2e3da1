"""The ledger's schema: made at once where there is none, brought up to date by Alembic where it is older."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, Engine, MetaData, String, Table, insert, inspect, select

from x402_gig.errors import CannotStart
from x402_gig.ledger import tables
from x402_gig.ledger.transactions import take_turn

if TYPE_CHECKING:
    from alembic.config import Config

# Of `tables`: the newest of ledger/migrations.
REVISION = "0009"
# Alembic's own table.
version = Table("alembic_version", MetaData(), Column("version_num", String(32), primary_key=True))


def migrate(engine: Engine) -> None:
    """Bring the schema to `REVISION`; wait for whoever is doing that already. Raises CannotStart."""
    patient = engine.execution_options(is_patient=True)
    with patient.connect() as connection, _without_foreign_keys(connection), connection.begin():
        take_turn(connection)
        found = _revision(connection)
        if found is None:
            _make(connection)
        elif found != REVISION:
            upgrade(connection, found)


def check_schema(engine: Engine) -> None:
    """The schema is this version's. Raises CannotStart."""
    with engine.connect() as connection:
        found = _revision(connection)
    if found is None:
        raise CannotStart(["X402_GIG_DATABASE_URL: there is no ledger in the database yet: `x402-gig serve` makes it"])
    if found != REVISION:
        raise _of_another_version(found)


def _of_another_version(found: str) -> CannotStart:
    said = f"another version of x402-gig made the ledger (revision {found}): use the server's own"
    return CannotStart([f"X402_GIG_DATABASE_URL: {said}"])


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table(version.name):
        return None
    return connection.execute(select(version.c.version_num)).scalar()


def _make(connection: Connection) -> None:
    tables.make(connection)
    version.create(connection)
    connection.execute(insert(version).values(version_num=REVISION))


def upgrade(connection: Connection, found: str) -> None:
    """Run the migrations that are missing. Raises CannotStart for a revision that only a newer version knows."""
    # Imported here: a server that finds its schema up to date does without.
    from alembic import command
    from alembic.util.exc import CommandError

    config = migrations()
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError:
        raise _of_another_version(found) from None


def migrations() -> "Config":
    """Alembic's configuration."""
    from alembic.config import Config

    config = Config()
    # The parser of the option takes a single % for an interpolation.
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    return config


@contextmanager
def _without_foreign_keys(connection: Connection) -> Iterator[None]:
    """SQLite changes a table by making it anew, and rows that refer to it are in the way of that."""
    driver: Any = connection.connection.driver_connection
    if connection.dialect.name != "sqlite":
        yield
        return
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")
