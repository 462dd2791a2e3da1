from collections.abc import Iterator

import pytest

from tests import servers
from tests.harness import Dev, dev_server, until


@pytest.fixture(scope="session")
def dev() -> Iterator[Dev]:
    """One chain and server for all tests that leave both as they found them; each test brings its own buyer."""
    with dev_server() as running:
        yield running


@pytest.fixture
def stalled(dev: Dev) -> Iterator[Dev]:
    """The same with a chain that makes no blocks until it is told to. Nothing of other tests waits for one."""
    until(lambda: dev.usdc(dev.intake) == 0)
    dev.rpc("evm_setAutomine", False)
    yield dev
    dev.mine()
    until(lambda: dev.usdc(dev.intake) == 0)


@pytest.fixture(scope="session")
def postgres() -> Iterator[servers.Postgres]:
    """One PostgreSQL for all tests of this process that do not stop it; each makes databases of its own."""
    with servers.postgres() as running:
        yield running
