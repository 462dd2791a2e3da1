from collections.abc import Iterator

import pytest

from tests.harness import Dev, dev_server


@pytest.fixture(scope="session")
def dev() -> Iterator[Dev]:
    """One chain and server for all tests that leave both as they found them; each test brings its own buyer."""
    with dev_server() as running:
        yield running
