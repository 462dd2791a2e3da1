from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection

from x402_gig.store.engine import Ledger


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """A ledger on disk, as `serve` opens it."""
    opened = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def db(ledger: Ledger) -> Iterator[Connection]:
    """One transaction on it."""
    with ledger.engine.begin() as connection:
        yield connection
