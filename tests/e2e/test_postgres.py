"""Servers on PostgreSQL: one, and several with one seed and one ledger."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.crowd import Crowd, bought, check_each_is_funded_once, crowd, orders
from tests.support.harness import Chain, gig_terms, payment_header, until
from tests.support.operator import COMMISSION, PRICE
from tests.support.servers import Postgres
from tests.support.servers import postgres as a_postgres
from tests.support.servers import redis as a_redis

BUYERS = 60
MANY = 300


@pytest.fixture(scope="module")
def three(chain: Chain, postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    """They started at once on an empty database."""
    with crowd(chain, tmp_path_factory.mktemp("three"), postgres.database(), 3) as servers:
        yield servers


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


def test_one_of_three_servers_is_killed_and_of_three_hundred_payments_nothing_is_lost(
    chain: Chain, postgres: Postgres, tmp_path: Path
) -> None:
    with a_redis() as redis, crowd(chain, tmp_path, postgres.database(), 3, redis_url=redis.url) as servers:
        victim, *others = servers
        wanted = orders(servers, MANY)

        def kill() -> None:
            until(lambda: chain.usdc(victim.intake) > MANY // 10 * PRICE)
            servers.processes[0].kill()

        gigs = bought(servers, wanted, kill)
        check_each_is_funded_once(servers, others[0], wanted, gigs)
        assert servers.balance_of_commission() == MANY * COMMISSION
        servers.wait_for_shares(2, 1)


def test_what_a_killed_server_never_sent_is_sent_by_another(chain: Chain, postgres: Postgres, tmp_path: Path) -> None:
    """Nobody else buys, so nothing but the slot itself has a relayer look at it."""
    with crowd(chain, tmp_path, postgres.database(), 2) as servers, ThreadPoolExecutor(1) as buyer:
        victim, other = servers
        [order] = orders(servers, 1)
        chain.rpc("evm_setAutomine", False)
        asked = buyer.submit(order.gig, [victim, other], 0)
        until(lambda: chain.rpc("txpool_content")["pending"])
        servers.processes[0].kill()
        chain.rpc("anvil_dropAllTransactions")
        chain.rpc("evm_setAutomine", True)

        check_each_is_funded_once(servers, other, [order], [asked.result()])
        assert servers.balance_of_commission() == COMMISSION


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
