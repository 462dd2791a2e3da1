"""The server's end of a connection: offers to upgrade, headers without end, and connections without a request."""

import json
import re
import resource
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.support import ledgers
from tests.support.harness import (
    CREATE,
    Chain,
    Dev,
    Json,
    decode,
    gig_terms,
    payment_header,
    running,
    serve_settings,
    served,
)
from x402_gig.ledger.tables import gigs
from x402_gig.web.connection import MAX_UNSENT_BYTES

OFFERS = {
    "h2c": {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AAEAAEAAAAIAAAABAAMAAABk"},
    "websocket": {"Connection": "Upgrade", "Upgrade": "websocket"},
}
METRICS = b"GET /metrics HTTP/1.1\r\nHost: gigs.example\r\n\r\n"


def connect(shop: Dev) -> socket.socket:
    host, port = shop.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_whoever_offers_an_upgrade_is_asked_for_the_price_of_the_order_and_can_pay_it(dev: Dev, offer: Json) -> None:
    terms = gig_terms(amount=25)
    answer = dev.post(terms, offer)
    [quote] = decode(answer.headers["PAYMENT-REQUIRED"])["accepts"]
    assert (answer.status_code, quote["amount"]) == (402, "27500000")
    assert dev.post(gig_terms(amount=1), offer).status_code == 400
    paid = dev.post(terms, {**payment_header(dev.buyer(27_500_000), quote), **offer})
    assert (paid.status_code, paid.json()["gig_balance"]) == (200, "25")


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_a_body_behind_an_offer_is_never_another_request(dev: Dev, offer: Json) -> None:
    fields = "".join(f"{name}: {value}\r\n" for name, value in offer.items())
    head = f"POST {CREATE} HTTP/1.1\r\nHost: gigs.example\r\n{fields}Content-Length: {len(METRICS)}\r\n\r\n"
    last = b"GET /healthz HTTP/1.1\r\nHost: gigs.example\r\nConnection: close\r\n\r\n"
    with connect(dev) as client:
        client.sendall(head.encode())
        client.sendall(METRICS)
        client.sendall(last)
        received = client.makefile("rb").read()
    assert received.count(b"HTTP/1.1 ") == 2
    assert received.startswith(b"HTTP/1.1 400 ")
    assert b"The body is not valid JSON" in received
    assert received.endswith(b'{"status":"ok"}')


@dataclass
class Process(Dev):
    """`x402-gig serve`, with 1,024 descriptors unless it asks for more."""

    pid: int = 0
    ledger: str = ""

    def memory_mb(self) -> float:
        """The most it has ever taken."""
        [peak] = re.findall(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{self.pid}/status").read_text())
        return int(peak) / 1024


@pytest.fixture(scope="module")
def process(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("process")
    was = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, was)
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, was[1]))
        env = serve_settings(chain, folder)
        started, ready = stack.enter_context(running("serve", env=env, cwd=folder))
        resource.setrlimit(resource.RLIMIT_NOFILE, (was[1], was[1]))
        yield Process(chain.rpc_url, url=ready["url"], pid=started.pid, ledger=env["X402_GIG_DATABASE_URL"])


def test_headers_without_end_cost_no_memory(process: Process) -> None:
    before = process.memory_mb()
    with connect(process) as client, suppress(OSError):
        client.sendall(b"GET /healthz HTTP/1.1\r\nX-Endless: ")
        for _ in range(140):
            client.sendall(b"x" * 1024 * 1024)
    assert process.http.get(f"{process.url}/healthz").json() == {"status": "ok"}
    assert process.memory_mb() - before < 10


@pytest.fixture(scope="module")
def full_list(process: Process) -> bytes:
    """A request for a list of 500 gigs with the longest texts, which is larger than 5 MB."""
    texts = {"how_to_earn": "x" * 2000, "earning_criteria": "x" * 2000}
    gig_id = process.buy(process.buyer(), gig_terms(**texts)).json()["gig_id"]
    names = ", ".join(column.name for column in gigs.columns if column.name not in ("id", "payment_id"))
    numbers = "with recursive numbers (n) as (select 1 union all select n + 1 from numbers where n < 500) "
    insert = f"insert into gigs (id, {names}) {numbers} select 1000 + n, {names} from gigs, numbers where id = {gig_id}"
    ledgers.change(process.ledger, insert)
    assert len(process.http.get(f"{process.url}/api/gigs?limit=500").content) > 5_000_000
    return b"GET /api/gigs?limit=500 HTTP/1.1\r\nHost: gigs.example\r\n\r\n"


def test_lists_that_nobody_takes_have_their_share_of_the_memory_and_no_more(process: Process, full_list: bytes) -> None:
    before = process.memory_mb()
    with ExitStack() as stack:
        clients = [stack.enter_context(connect(process)) for _ in range(150)]
        for client in clients:
            client.sendall(full_list)
        for client in clients:
            assert select.select([client], [], [], 60)[0]
        assert process.http.get(f"{process.url}/api/gigs?limit=500").json()["data"][0]["id"] == 1500
    assert process.memory_mb() - before < 6 * MAX_UNSENT_BYTES / 1024 / 1024


def test_a_thousand_connections_without_a_request_keep_nobody_out(process: Process) -> None:
    with ExitStack() as stack:
        for _ in range(1100):
            stack.enter_context(connect(process))
        # A client that has no connection yet.
        assert httpx.get(f"{process.url}/healthz").json() == {"status": "ok"}


def test_a_connection_without_a_request_is_kept_for_as_long_as_the_setting_says(chain: Chain) -> None:
    with served(chain, keep_alive_s=1) as shop, connect(shop) as silent:
        assert silent.recv(1) == b""
        assert shop.http.get(f"{shop.url}/healthz").json() == {"status": "ok"}


def test_what_is_no_request_is_refused_in_json(dev: Dev) -> None:
    with connect(dev) as client:
        client.sendall(b"GET / HTTP/1.1\nHost: gigs.example\n\n")
        head, _, body = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 ")
    assert json.loads(body) == {"error": "The request is not valid HTTP", "reason": "bad_request"}
