"""`uvicorn x402_gig.serving:app --factory --workers N`: several processes behind one socket."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from tests.support.harness import START_TIMEOUT_S, Chain, Dev, gig_terms, payment_header, serve_settings, until
from tests.support.operator import PRICE
from tests.support.servers import Postgres
from x402_gig.devnet.anvil import free_port
from x402_gig.server.http import PROTOCOL

WORKERS = 3


@contextmanager
def workers(count: int, port: int, folder: Path, env: dict[str, str]) -> Iterator["subprocess.Popen[bytes]"]:
    """Uvicorn and its workers, which write to the file `log`."""
    command = [sys.executable, "-m", "uvicorn", "x402_gig.serving:app", "--factory", "--http", PROTOCOL]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--no-proxy-headers", "--workers", str(count), "--port", str(port)],
            env={**os.environ, **env}, cwd=folder, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def is_up(url: str) -> bool:
    try:
        return httpx.get(url + "/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_three_workers_sell_from_one_ledger_and_release_their_leases(
    chain: Chain, postgres: Postgres, tmp_path: Path
) -> None:
    database_url, port = postgres.database(), free_port(0)
    env = serve_settings(chain, tmp_path, database_url=database_url, relayers=WORKERS)

    def processes() -> int:
        with psycopg.connect(database_url) as connection:
            [[count]] = connection.execute("select count(distinct process_id) from leases").fetchall()
            return int(count)

    with workers(WORKERS, port, tmp_path, env):
        shop = Dev(chain.rpc_url, url=f"http://127.0.0.1:{port}")
        until(lambda: is_up(shop.url) and processes() == WORKERS, START_TIMEOUT_S)
        sales = [one_sale(shop) for _ in range(30)]
        with ThreadPoolExecutor(len(sales)) as threads:
            # A connection each, so that all workers get some.
            answers = list(threads.map(lambda sale: httpx.post(**sale, timeout=90), sales))
        assert [answer.status_code for answer in answers] == [200] * len(sales)
        for answer in answers:
            shop.funded(answer.json()["gig_id"])
    assert processes() == 0


def one_sale(shop: Dev) -> dict[str, Any]:
    terms = gig_terms()
    header = payment_header(shop.buyer(PRICE), shop.quote(terms))
    return {"url": shop.url + "/api/gigs/create/x402", "json": terms, "headers": header}


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "another server is at work on this file"), ({"seed": None}, "X402_GIG_SEED_FILE: set this")],
    ids=["two workers on one file", "no seed"],
)
def test_what_keeps_a_worker_from_starting_is_said_and_ends_them_all(
    chain: Chain, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    file = {"database_url": f"sqlite:///{tmp_path}/ledger.db"}
    with workers(2, free_port(0), tmp_path, serve_settings(chain, tmp_path, **file | changes)) as process:
        assert process.wait(START_TIMEOUT_S) is not None
    log = (tmp_path / "log").read_text()
    assert said in log
    assert "Traceback" not in log
