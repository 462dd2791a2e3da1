"""Several servers on one ledger: who may use which relayer, and what becomes of those that are paused or have none."""

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import pytest

from tests.support.crowd import Crowd, Order, bought, check_each_is_funded_once, crowd, orders
from tests.support.harness import Chain, Dev, gig_terms, payment_header, running, until
from tests.support.operator import PRICE
from tests.support.servers import Postgres

# A frozen process may have its turn to write, and keeps it for five seconds.
STRUCK_OFF_S = 20


@pytest.fixture(scope="module")
def two(chain: Chain, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with crowd(chain, tmp_path_factory.mktemp("two"), postgres.database(), 2, relayers=3) as servers:
        yield servers


@contextmanager
def paused(process: "Popen[str]") -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def assert_sells(servers: Crowd, asked: Dev) -> None:
    [order] = orders(servers, 1)
    check_each_is_funded_once(servers, asked, [order], [order.gig([asked], 0)])


def test_a_server_that_comes_later_gets_its_share_and_leaves_it_at_once_when_it_ends(two: Crowd) -> None:
    assert two.shares() == [2, 1]
    with running("serve", env=two.desk.env, cwd=two.desk.folder) as (_, ready):
        two.wait_for_shares(1, 1, 1)
        assert_sells(two, Dev(two[0].rpc_url, url=ready["url"], intake=two[0].intake))
    assert len(two.shares()) == 2
    two.wait_for_shares(2, 1)


def test_a_server_that_was_paused_for_too_long_writes_nothing_and_begins_anew(two: Crowd) -> None:
    """While it is paused, another one has outbid its transaction: what it knows of the slot is not all there is."""
    chain, process = two[0], two.processes[0]
    [order] = orders(two, 1)
    chain.rpc("evm_setAutomine", False)
    with ThreadPoolExecutor(1) as buyer:
        asked = buyer.submit(order.gig, two, 0)
        [slot] = until(lambda: two.rows("select id from slots where state = 'open'"))
        until(lambda: int(chain.rpc("txpool_status")["pending"], 16))
        with paused(process):
            until(lambda: len(two.shares()) == 1, STRUCK_OFF_S)
            outbid(two, chain)
            chain.rpc("anvil_dropAllTransactions")
        two.wait_for_shares(2, 1)
        chain.mine()
        check_each_is_funded_once(two, two[1], [order], [asked.result()])

    # The watcher may have read the deposit before the relayer has looked for its receipt again.
    until(lambda: two.rows("select count(*) from slots where state = 'open'") == [(0,)])
    assert two.rows(f"select state from slots where id = {slot[0]}") == [("mined",)]
    assert two.rows("select count(*) from slots where state = 'lost'") == [(0,)]
    until(lambda: two[0].http.get(two[0].url + "/readyz").json()["status"] == "ready")
    assert_sells(two, two[0])


def outbid(servers: Crowd, chain: Chain) -> None:
    """No block takes the transactions that there are, until whoever has the relayer now has signed others."""
    [before] = servers.rows("select count(*) from attempts")
    chain.rpc("anvil_setNextBlockBaseFeePerGas", hex(50 * 10**9))
    chain.rpc("evm_mine")
    until(lambda: servers.rows("select count(*) from attempts") > [before])


def test_whoever_signs_anew_when_his_server_was_killed_is_charged_once(
    chain: Chain, postgres: Postgres, tmp_path: Path
) -> None:
    with crowd(chain, tmp_path, postgres.database(), 2) as servers, ThreadPoolExecutor(1) as threads:
        victim, other = servers
        order = Order(victim, victim.buyer(2 * PRICE), victim.quote(gig_terms()))
        chain.rpc("evm_setAutomine", False)
        threads.submit(victim.post, order.terms, order.header)
        until(lambda: int(chain.rpc("txpool_status")["pending"], 16))
        servers.processes[0].kill()
        servers.wait_for_shares(2)
        order.header = payment_header(order.account, other.quote(order.terms))
        chain.mine()

        order.gig([other], 0)

        assert other.usdc(order.account.address) == PRICE
        assert servers.rows("select count(*) from gigs") == [(1,)]


def test_a_server_without_a_relayer_sells_what_another_one_settles(
    chain: Chain, postgres: Postgres, tmp_path: Path
) -> None:
    with crowd(chain, tmp_path, postgres.database(), 2, relayers=1) as servers:
        wanted = orders(servers, 10)
        gigs = [*bought(servers[:1], wanted[:5]), *bought(servers[1:], wanted[5:])]
        check_each_is_funded_once(servers, servers[0], wanted, gigs)
        for server in servers:
            ready = server.http.get(server.url + "/readyz").json()
            assert "2 servers share 1 relayer" in ready["warnings"]["relayers"]
        poor = [buyer.post(gig_terms(), payment_header(server.buyer(0), server.quote(gig_terms())))
                for server, buyer in ((s, s) for s in servers)]  # fmt: skip
        assert {answer.status_code for answer in poor} == {402}
