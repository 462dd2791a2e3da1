from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import ledgers, servers
from tests.support.harness import Chain, Dev, devnet, until
from tests.support.operator import dev_anywhere

DATABASES = ["sqlite", "postgresql"]

# How long an example takes says how busy the machine is.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--database", choices=DATABASES, help="The ledgers of all servers; else SQLite, or both by turns.")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What asks for a `database` is run on both."""
    if "database" in metafunc.fixturenames:
        wanted = metafunc.config.getoption("database")
        metafunc.parametrize("database", [wanted] if wanted else DATABASES, indirect=True, scope="module")


@pytest.fixture(scope="session", autouse=True)
def ledgers_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """Where the ledgers of this run are."""
    is_postgresql = request.config.getoption("database") == "postgresql"
    with ledgers.kept_in(request.getfixturevalue("postgres") if is_postgresql else None):
        yield


@pytest.fixture(scope="module")
def database(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the ledgers of this module are: servers that it starts are to be fixtures that ask for this one."""
    name = str(request.param)
    with ledgers.kept_in(request.getfixturevalue("postgres") if name == "postgresql" else None):
        yield name


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    """For the servers that a module starts by itself."""
    with devnet() as running:
        yield running


@pytest.fixture(scope="session")
def dev() -> Iterator[Dev]:
    """One chain and server for all tests that leave both as they found them; each test brings its own buyer."""
    with dev_anywhere() as running:
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
