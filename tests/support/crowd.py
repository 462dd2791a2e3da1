"""Several servers with one seed and one ledger, and buyers who ask one after the other until they have their gig."""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount

from tests.support.harness import Chain, Dev, Json, gig_terms, payment_header, running, serve_settings, until
from tests.support.operator import PRICE, REWARD, Desk

PATIENCE_S = 120


class Crowd(list[Dev]):
    """`desk` is their operator's, `processes` are in the order of the servers."""

    desk: Desk
    processes: "list[Popen[str]]"

    def balance_of_commission(self) -> int:
        return self[0].usdc(self.desk.env["X402_GIG_COMMISSION_ADDRESS"])

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Of the ledger."""
        return self.desk.rows(query)

    def shares(self) -> list[int]:
        """How many relayers each process has, the oldest first."""
        query = (
            "select count(leases.name) from processes left join leases on process_id = processes.id "
            "and leases.name <> 'funding' group by processes.id order by processes.id"
        )
        return [count for [count] in self.rows(query)]

    def wait_for_shares(self, *shares: int) -> None:
        until(lambda: self.shares() == list(shares))


@contextmanager
def crowd(chain: Chain, folder: Path, database_url: str, count: int, **settings: Any) -> Iterator[Crowd]:
    """So many servers that start at once, when each has its share of the relayers."""
    relayers = settings.setdefault("relayers", max(2, count))
    env = serve_settings(chain, folder, database_url=database_url, reorg_depth=3, **settings)
    with ExitStack() as stack, ThreadPoolExecutor(count) as threads:

        def start(_: int) -> tuple["Popen[str]", Json]:
            return stack.enter_context(running("serve", env=env, cwd=folder))

        started = list(threads.map(start, range(count)))
        servers = Crowd(Dev(chain.rpc_url, url=ready["url"]) for _, ready in started)
        servers.desk, servers.processes = Desk(env, folder), [process for process, _ in started]
        for server in servers:
            server.intake = server.quote(gig_terms())["payTo"]
        servers.wait_for_shares(*(relayers // count + (rank < relayers % count) for rank in range(count)))
        yield servers


class Order:
    """A payment header and its terms, posted again until it has its gig: to one server after the other."""

    def __init__(self, server: Dev, account: LocalAccount, requirements: Json) -> None:
        self.terms = gig_terms()
        self.account = account
        self.header = payment_header(account, requirements)
        self.server = server

    def gig(self, servers: Sequence[Dev], first: int) -> Json:
        deadline = time.monotonic() + PATIENCE_S
        number = first
        while (answer := self._ask(servers[number % len(servers)])) is None or answer.status_code == 503:
            assert time.monotonic() < deadline, answer and answer.text
            number += 1
        assert answer.status_code == 200, answer.text
        return dict(answer.json())

    def _ask(self, server: Dev) -> httpx.Response | None:
        try:
            return server.post(self.terms, self.header)
        except httpx.TransportError:
            return None


def orders(servers: Sequence[Dev], count: int) -> list[Order]:
    requirements = servers[0].quote(gig_terms())
    return [Order(servers[0], servers[0].buyer(PRICE), requirements) for _ in range(count)]


def bought(servers: Sequence[Dev], wanted: Sequence[Order], meanwhile: Callable[[], None] = lambda: None) -> list[Json]:
    """The gig of each order, all asked for at once."""
    with ThreadPoolExecutor(len(wanted)) as threads:
        asked = [threads.submit(order.gig, servers, number) for number, order in enumerate(wanted)]
        meanwhile()
        return [each.result() for each in asked]


def check_each_is_funded_once(servers: Crowd, asked: Dev, wanted: Sequence[Order], gigs: Sequence[Json]) -> None:
    assert len({gig["gig_id"] for gig in gigs}) == len(wanted)
    for order, gig in zip(wanted, gigs, strict=True):
        asked.funded(gig["gig_id"])
        assert (asked.usdc(order.account.address), asked.usdc(gig["gig_wallet_address"])) == (0, REWARD)
    until(lambda: asked.usdc(asked.intake) == 0)
    assert servers.desk.audit()["ok"] is True
