import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from x402_gig.store.engine import Ledger


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a ledger without rows. Making one anew for each test would take most of its time."""
    path = tmp_path_factory.mktemp("empty") / "ledger.db"
    Ledger(f"sqlite:///{path}").close()
    return path


@pytest.fixture
def ledger(empty_ledger: Path, tmp_path: Path) -> Iterator[Ledger]:
    """A ledger on disk, as `serve` opens it."""
    shutil.copy(empty_ledger, tmp_path / "ledger.db")
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def db(ledger: Ledger) -> Iterator[Connection]:
    """One transaction on it, which is taken back in the end."""
    with ledger.engine.connect() as connection:
        yield connection
        connection.rollback()
