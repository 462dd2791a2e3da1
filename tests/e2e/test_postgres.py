"""Servers on PostgreSQL: one, and several with one seed and one ledger."""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from sqlalchemy import select

from tests.harness import Chain, Dev, Json, devnet, gig_terms, payment_header, running, serve_settings, until
from tests.operator import COMMISSION, PRICE, REWARD, Desk
from tests.servers import Postgres
from tests.servers import postgres as a_postgres
from x402_gig.chain.node import SignedTransaction, sign_transaction, unsigned_fields
from x402_gig.chain.wallets import Wallets
from x402_gig.store import slots, tables
from x402_gig.store.engine import Connection, Ledger
from x402_gig.store.slots import Attempt

BUYERS = 60
PATIENCE_S = 60


@pytest.fixture(scope="module")
def chain() -> Iterator[Chain]:
    with devnet() as running_chain:
        yield running_chain


class Crowd(list[Dev]):
    """Servers with one seed and one ledger; `desk` is their operator's, `kills` end them without a word."""

    desk: Desk
    kills: Sequence[Callable[[], None]]

    def balance_of_commission(self) -> int:
        return self[0].usdc(self.desk.env["X402_GIG_COMMISSION_ADDRESS"])


@contextmanager
def crowd(chain: Chain, folder: Path, database_url: str, count: int) -> Iterator[Crowd]:
    """So many servers that start at once."""
    env = serve_settings(chain, folder, database_url=database_url, reorg_depth=3)
    with ExitStack() as stack, ThreadPoolExecutor(count) as threads:

        def start(_: int) -> tuple[Dev, Callable[[], None]]:
            process, ready = stack.enter_context(running("serve", env=env, cwd=folder))
            return Dev(chain.rpc_url, url=ready["url"]), process.kill

        started = list(threads.map(start, range(count)))
        servers = Crowd(server for server, _ in started)
        servers.desk, servers.kills = Desk(env, folder), [kill for _, kill in started]
        for server in servers:
            server.intake = server.quote(gig_terms())["payTo"]
        yield servers


@pytest.fixture(scope="module")
def three(chain: Chain, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """They started at once on an empty database."""
    with crowd(chain, tmp_path_factory.mktemp("three"), postgres.database(), 3) as servers:
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


def test_a_gig_is_bought_and_funded_and_the_audit_adds_up(chain: Chain, postgres: Postgres, tmp_path: Path) -> None:
    with crowd(chain, tmp_path, postgres.database(), 1) as servers:
        [server], wanted = servers, orders(servers, 1)
        gigs = bought(servers, wanted)
        check_each_is_funded_once(servers, server, wanted, gigs)
        assert servers.balance_of_commission() == COMMISSION
        assert [p["id"] for p in servers.desk.shown("payments", "list")] == [1]


def test_one_payment_at_three_servers_at_once_is_charged_once(three: Crowd) -> None:
    buyer, terms = three[0].buyer(3 * PRICE), gig_terms()
    header = payment_header(buyer, three[0].quote(terms))

    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda server: server.post(terms, header), [*three] * 2))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert three[0].usdc(buyer.address) == 2 * PRICE


def test_sixty_buyers_at_three_servers_all_have_gigs_that_are_funded_once(three: Crowd) -> None:
    before = three.balance_of_commission()
    wanted = orders(three, BUYERS)
    gigs = bought(three, wanted)
    check_each_is_funded_once(three, three[0], wanted, gigs)
    assert three.balance_of_commission() - before >= BUYERS * COMMISSION


def test_a_server_that_is_killed_loses_nothing(chain: Chain, postgres: Postgres, tmp_path: Path) -> None:
    with crowd(chain, tmp_path, postgres.database(), 3) as servers:
        victim, *others = servers
        wanted = orders(servers, BUYERS // 2)

        def kill() -> None:
            until(lambda: chain.usdc(victim.intake) > 0)
            servers.kills[0]()

        gigs = bought(servers, wanted, kill)
        check_each_is_funded_once(servers, others[0], wanted, gigs)
        assert servers.balance_of_commission() == len(wanted) * COMMISSION


def test_what_a_killed_server_never_sent_is_sent_by_another(chain: Chain, postgres: Postgres, tmp_path: Path) -> None:
    """Nobody else buys, so nothing but the slot itself has a relayer look at it."""
    with crowd(chain, tmp_path, postgres.database(), 2) as servers, ThreadPoolExecutor(1) as buyer:
        victim, other = servers
        [order] = orders(servers, 1)
        chain.rpc("evm_setAutomine", False)
        asked = buyer.submit(order.gig, [victim, other], 0)
        until(lambda: chain.rpc("txpool_content")["pending"])
        servers.kills[0]()
        chain.rpc("anvil_dropAllTransactions")
        chain.rpc("evm_setAutomine", True)

        check_each_is_funded_once(servers, other, [order], [asked.result()])
        assert servers.balance_of_commission() == COMMISSION


def test_what_another_process_sent_in_the_same_slot_counts(chain: Chain, postgres: Postgres, tmp_path: Path) -> None:
    """Two that finish one slot may outbid each other, and each knows its own transactions only."""
    url = postgres.database()
    with crowd(chain, tmp_path, url, 1) as servers, ThreadPoolExecutor(1) as buyer:
        [order] = orders(servers, 1)
        chain.rpc("evm_setAutomine", False)
        asked = buyer.submit(order.gig, servers, 0)
        until(lambda: chain.rpc("txpool_content")["pending"])
        ledger = Ledger(url, is_guest=True)
        outbid = asyncio.run(ledger.write(lambda c: outbid_pending(c, Wallets(servers.desk.env["X402_GIG_SEED"]))))
        chain.rpc("eth_sendRawTransaction", outbid.raw)
        chain.mine()
        until(lambda: asked.done() and "open" not in asyncio.run(ledger.read(slot_ends)).values())

        assert asyncio.run(ledger.read(slot_ends))[outbid.hash] == "mined"
        ledger.close()
        check_each_is_funded_once(servers, servers[0], [order], [asked.result()])


def outbid_pending(connection: Connection, wallets: Wallets) -> SignedTransaction:
    """Sign the pending transaction anew for twice the fee, as another process with this seed does."""
    wallet, slot = next(
        (wallet, slot)
        for wallet in map(wallets.relayer, range(2))
        for slot in slots.open_slots(connection, wallet.address)
    )
    [pending] = slots.attempts_of(connection, slot)
    fees = {"maxFeePerGas": 2 * pending.max_fee, "maxPriorityFeePerGas": 2 * pending.priority_fee}
    signed = sign_transaction(wallet.key, unsigned_fields(pending.transaction.raw) | fees)
    attempt = Attempt(signed, fees["maxFeePerGas"], fees["maxPriorityFeePerGas"], pending.gas)
    slots.add_attempt(connection, slot, attempt)
    return signed


def slot_ends(connection: Connection) -> dict[str | None, str]:
    """How each slot ended, by the transaction that ended it."""
    query = select(tables.slots.c.transaction, tables.slots.c.state)
    return {transaction: state for transaction, state in connection.execute(query)}


def test_without_its_database_a_server_charges_nobody_and_goes_on_by_itself(chain: Chain, tmp_path: Path) -> None:
    with a_postgres() as database, crowd(chain, tmp_path, database.database(), 1) as servers:
        [server], [before, after] = servers, orders(servers, 2)
        first = before.gig(servers, 0)

        database.stop()
        answer = server.post(after.terms, after.header)
        assert answer.status_code == 503, answer.text
        assert server.http.get(f"{server.url}/readyz").status_code == 503
        assert server.usdc(after.account.address) == PRICE
        assert "correct-horse" not in answer.text

        database.start()
        gigs = [first, after.gig(servers, 0)]
        check_each_is_funded_once(servers, server, [before, after], gigs)
