"""The server does what its document says, whatever it is sent: no crash, no answer that is not described."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import devnet
from tests.operator import Shop, operated

# Not that wrong data is refused: to us "" is as good as absent, and an empty body asks for a price.
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "ignored_auth",
)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    limits = {"rate_limit_address": "off", "rate_limit_key": "off"}
    with devnet() as chain, operated(chain, tmp_path_factory.mktemp("shop"), **limits) as running:
        yield running


def test_no_request_gets_an_answer_that_is_not_described(shop: Shop, tmp_path: Path) -> None:
    key = shop.desk.run("keys", "create", "Somebody curious").stdout.strip()
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("schemathesis"), "run", f"{shop.url}/openapi.json"),
            *("--checks", ",".join(CHECKS), "--phases", "examples,coverage,fuzzing"),
            *("--seed", "402", "--max-examples", "80"),
            *("--header", f"x-api-key:{key}", "--no-shrink", "--no-color", "--warnings", "off"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
