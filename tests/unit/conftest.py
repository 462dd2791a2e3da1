from collections.abc import Iterator

import pytest

from tests.support import ledgers


@pytest.fixture(scope="session", autouse=True)
def wallets_looked_at() -> Iterator[None]:
    """Nothing here has a chain to look at."""
    with ledgers.all_looked_at():
        yield
