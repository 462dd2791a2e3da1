"""PostgreSQL behind a connection that loses the answer to a commit: was it written, or was it not?"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from tests.e2e.attacks import STRANGER, Answer, Purchase
from tests.e2e.odd_facilitator import NETWORK, OddFacilitator, reply, settled, transaction_of
from tests.support import ledgers
from tests.support.creators import Creator
from tests.support.cuts import CommitProxy, commit_proxy
from tests.support.faults import RpcProxy, rpc_proxy
from tests.support.harness import USDC, Chain, Dev, Json, running, serve_settings, until
from tests.support.operator import PRICE, Desk
from tests.support.servers import Postgres
from tests.support.tokens import Erc20

GIGS = 3
BUYERS = 20
# An open payment that nobody sends ends soon after its authorization, which lives for a minute.
EXPIRED_S = 90
# A process that cannot write is struck off after five seconds by one that can.
STRUCK_OFF_S = 20


@dataclass
class Server(Dev):
    """`ledger` is the database's own URL, past any proxy, and so is the desk's."""

    process: "Popen[str]" = None  # type: ignore[assignment]
    ledger: str = ""
    desk: Desk = None  # type: ignore[assignment]


@contextmanager
def servers(chain: Chain, folder: Path, ledger: str, *urls: str, **settings: Any) -> Iterator[list[Server]]:
    """One for each URL; all URLs lead to the same ledger."""
    env = serve_settings(chain, folder, database_url=ledger, reorg_depth=3, **settings)
    with ExitStack() as stack:
        ready = [
            stack.enter_context(running("serve", env=env | {"X402_GIG_DATABASE_URL": url}, cwd=folder)) for url in urls
        ]
        desk = Desk(env, folder)
        yield [
            Server(chain.rpc_url, url=line["url"], process=process, ledger=ledger, desk=desk) for process, line in ready
        ]


@pytest.fixture(scope="module")
def proxy(postgres: Postgres) -> Iterator[CommitProxy]:
    with commit_proxy(postgres.database()) as running_proxy:
        yield running_proxy


@pytest.fixture(scope="module")
def rpc(chain: Chain) -> Iterator[RpcProxy]:
    with rpc_proxy(chain) as running_proxy:
        yield running_proxy


@pytest.fixture(scope="module")
def shop(rpc: RpcProxy, proxy: CommitProxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with servers(rpc.chain, tmp_path_factory.mktemp("shop"), proxy.upstream, proxy.url, relayers=4) as [server]:
        yield server


@pytest.fixture(autouse=True)
def healed(chain: Chain, proxy: CommitProxy) -> Iterator[None]:
    """What a test broke is whole again after it, also when it failed."""
    yield
    proxy.heal()
    chain.mine()


def purchase_of(shop: Dev) -> Purchase:
    """Its buyer has enough for three gigs."""
    return Purchase(shop, shop.buyer(GIGS * PRICE))


def said(purchase: Purchase) -> str:
    """In the transaction that writes the payment down, and in no other."""
    return purchase.signature[2:]


def paid(purchase: Purchase) -> int:
    return GIGS * PRICE - purchase.shop.usdc(purchase.payer)


def posted(shop: Dev, purchase: Purchase, header: Json) -> Answer:
    answer = shop.post(purchase.terms, header)
    return Answer(answer.status_code, dict(answer.headers), answer.text)


def gig_of(answer: Answer) -> int:
    assert answer.status == 200, answer.text
    return int(answer.json["gig_id"])


def gig_at_last(shop: Dev, purchase: Purchase, header: Json) -> int:
    """The header is repeated until its outcome is known."""
    return gig_of(until(lambda: (last := posted(shop, purchase, header)).status != 503 and last))


def assert_next_is_a_purchase(purchase: Purchase, gig: int) -> None:
    """Its buyer has his answer: no mark is left that the next signature could take."""
    before = paid(purchase)
    purchase.sign_anew()
    assert gig_of(purchase.pay_until(200)) != gig
    assert paid(purchase) == before + PRICE


def test_a_commit_whose_answer_is_lost_is_looked_for_and_its_buyer_has_the_gig(
    shop: Server, proxy: CommitProxy
) -> None:
    purchase = purchase_of(shop)
    cut = proxy.cuts(said(purchase))

    answer = purchase.pay()

    assert cut.is_committed.is_set()
    assert gig_of(answer) == gig_of(purchase.pay())
    assert paid(purchase) == PRICE


def test_whoever_hangs_up_before_it_is_known_and_signs_anew_at_once_is_charged_once(
    shop: Server, proxy: CommitProxy, rpc: RpcProxy
) -> None:
    """His second payment waits to be written down while the first one's commit is not answered."""
    purchase = purchase_of(shop)
    cut = proxy.cuts(said(purchase), holds=True)
    post, header = purchase.post(), purchase.header
    until(cut.is_committed.is_set)
    post.hang_up()
    purchase.sign_anew()
    simulated = rpc.calls["eth_call"]
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(purchase.pay_until, 200)
        until(lambda: rpc.calls["eth_call"] > simulated)
        cut.holds.set()
        gig = gig_of(asked.result())
    assert gig_at_last(shop, purchase, header) == gig
    assert paid(purchase) == PRICE
    assert_next_is_a_purchase(purchase, gig)


def test_while_the_database_is_away_nobody_is_charged_twice(shop: Server, proxy: CommitProxy) -> None:
    purchase, other = purchase_of(shop), purchase_of(shop)
    cut = proxy.cuts(said(purchase), stays_away=True)
    post, header = purchase.post(), purchase.header
    until(cut.is_made.is_set)
    # New payments are refused at once, and truthfully: nothing of them was sent.
    assert other.pay().json["reason"] == "unavailable"
    post.hang_up()
    purchase.sign_anew()
    assert purchase.pay().json["reason"] == "unavailable"
    proxy.come_back()

    gig = gig_of(purchase.pay_until(200))

    assert gig_at_last(shop, purchase, header) == gig
    assert (paid(purchase), paid(other)) == (PRICE, 0)
    gig_of(other.pay_until(200))
    assert paid(other) == PRICE


def test_a_commit_that_never_arrived_is_told_as_such(shop: Server, proxy: CommitProxy) -> None:
    purchase = purchase_of(shop)
    proxy.cuts(said(purchase), passed_on=False)
    answer = purchase.pay()
    assert (answer.status, answer.json["reason"]) == (503, "unavailable")
    assert paid(purchase) == 0
    gig_of(purchase.pay_until(200))
    assert paid(purchase) == PRICE


def test_a_buyer_who_leaves_while_the_database_is_away_is_marked_when_it_is_back(
    shop: Server, proxy: CommitProxy
) -> None:
    purchase = purchase_of(shop)
    shop.rpc("evm_setAutomine", False)
    post, header = purchase.post(), purchase.header
    until(lambda: int(shop.rpc("txpool_status")["pending"], 16))
    proxy.go_away()
    post.hang_up()
    # Asked later, and so answered when the server knows that the buyer has left.
    assert posted(shop, purchase, header).status == 503
    tries = proxy.refused + 5
    until(lambda: proxy.refused >= tries)
    proxy.come_back()
    purchase.sign_anew()
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(purchase.pay_until, 200)
        shop.mine()
        gig = gig_of(asked.result())
    assert gig_at_last(shop, purchase, header) == gig
    assert paid(purchase) == PRICE
    assert_next_is_a_purchase(purchase, gig)


def test_a_payment_that_a_stranger_executed_is_answered_though_the_commit_of_its_claim_was_lost(
    shop: Server, proxy: CommitProxy
) -> None:
    purchase = purchase_of(shop)
    shop.send(STRANGER, USDC, purchase.transfer)
    cut = proxy.cuts(said(purchase))
    answer = purchase.pay()
    assert cut.is_committed.is_set()
    assert gig_of(answer) == gig_of(purchase.pay())
    assert paid(purchase) == PRICE


def test_another_name_of_a_payment_whose_commit_was_lost_has_the_gig(shop: Server, proxy: CommitProxy) -> None:
    """The mark is taken in that commit: without it a third signature would be a second purchase."""
    purchase = purchase_of(shop)
    shop.rpc("evm_setAutomine", False)
    post, header = purchase.post(), purchase.header
    until(lambda: int(shop.rpc("txpool_status")["pending"], 16))
    post.hang_up()
    until(lambda: ledgers.rows(shop.ledger, "select id from payments where state = 'open' and abandoned = 1"))
    purchase.sign_anew()
    cut = proxy.cuts(said(purchase))
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(purchase.pay)
        until(cut.is_made.is_set)
        shop.mine()
        gig = gig_of(asked.result())
    assert gig_at_last(shop, purchase, header) == gig
    assert paid(purchase) == PRICE


def test_a_gig_is_funded_though_the_commit_that_made_it_was_lost(shop: Server, proxy: CommitProxy) -> None:
    """Nothing else is sold that would have the gig looked at."""
    purchase = purchase_of(shop)
    cut = proxy.cuts("INSERT INTO gigs")
    gig = gig_of(purchase.pay_until(200))
    assert cut.is_committed.is_set()
    shop.funded(gig)


@pytest.mark.parametrize(("passed_on", "stays_away"), [(True, False), (False, False), (True, True)])
def test_a_start_whose_commit_is_lost_is_looked_for_and_told_as_made(
    shop: Server, proxy: CommitProxy, *, passed_on: bool, stays_away: bool
) -> None:
    creator = Creator(shop, shop.desk)
    made = creator.funded(Erc20(shop, USDC))
    cut = proxy.cuts("UPDATE gigs SET state=", passed_on=passed_on, stays_away=stays_away)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(creator.start, made)
        until(cut.is_made.is_set)
        if stays_away:
            tries = proxy.refused + 3
            until(lambda: proxy.refused >= tries)
        proxy.come_back()
        answer = asked.result()
    assert (answer.status_code, answer.json()["data"]["gig_id"]) == (200, made["gig_id"])
    assert cut.is_committed.is_set() == passed_on
    assert creator.start(made).json() == {"error": "Gig is already live"}
    creator.paid_up(made)
    assert shop.desk.rows("select count(*) from movements where source_gig = ?", made["gig_id"]) == [(1,)]


def test_whatever_commits_are_lost_whoever_signs_anew_after_each_503_is_charged_once(
    shop: Server, proxy: CommitProxy
) -> None:
    purchases = [purchase_of(shop) for _ in range(BUYERS)]

    def insist(purchase: Purchase) -> int:
        while (answer := purchase.pay()).status == 503:
            purchase.sign_anew()
        return gig_of(answer)

    proxy.every = 3
    with ThreadPoolExecutor(BUYERS // 2) as threads:
        gigs = list(threads.map(insist, purchases))
    assert proxy.commits > 2 * BUYERS
    proxy.every = 0
    until(lambda: not ledgers.rows(shop.ledger, "select id from payments where state = 'open'"), EXPIRED_S)
    assert len(set(gigs)) == BUYERS
    assert {paid(purchase) for purchase in purchases} == {PRICE}


def test_one_header_at_two_servers_while_a_commit_is_cut_is_one_gig(
    chain: Chain, proxy: CommitProxy, postgres: Postgres, tmp_path: Path
) -> None:
    ledger = postgres.database()
    with commit_proxy(ledger) as cutting, servers(chain, tmp_path, ledger, cutting.url, ledger) as [first, second]:
        purchase = purchase_of(first)
        cut = cutting.cuts(said(purchase), holds=True)
        with ThreadPoolExecutor(2) as threads:
            asked = threads.submit(purchase.pay)
            until(cut.is_committed.is_set)
            also = threads.submit(posted, second, purchase, purchase.header)
            cut.holds.set()
            answers = [asked.result(), also.result()]
        assert gig_of(answers[0]) == gig_of(answers[1])
        assert paid(purchase) == PRICE


@pytest.mark.parametrize("killed", [True, False])
def test_what_a_server_cut_off_has_committed_is_finished_by_another_and_charged_once(
    chain: Chain, postgres: Postgres, tmp_path: Path, *, killed: bool
) -> None:
    ledger = postgres.database()
    with commit_proxy(ledger) as cutting, servers(chain, tmp_path, ledger, cutting.url, ledger) as [first, second]:
        until(lambda: ledgers.rows(ledger, "select 1 from leases group by 1 having count(distinct process_id) = 2"))
        purchase = purchase_of(first)
        cut = cutting.cuts(said(purchase), stays_away=True)
        post, header = purchase.post(), purchase.header
        until(cut.is_made.is_set)
        if killed:
            first.process.kill()
        until(lambda: ledgers.rows(ledger, "select 1 from payments where state = 'settled'"), STRUCK_OFF_S)
        purchase.sign_anew()
        gig = gig_of(posted(second, purchase, purchase.header))
        assert gig_at_last(second, purchase, header) == gig
        assert paid(purchase) == PRICE
        if not killed:
            cutting.come_back()
            assert gig_of(post.answer()) == gig
            assert paid(purchase) == PRICE


def test_a_facilitator_is_asked_again_though_the_commit_that_counts_the_question_was_lost(
    chain: Chain, postgres: Postgres, tmp_path: Path
) -> None:
    ledger = postgres.database()
    failed = reply({"success": False, "errorReason": "busy", "transaction": "", "network": NETWORK})
    facilitator = OddFacilitator(lambda _: failed)
    with (
        commit_proxy(ledger) as cutting,
        servers(chain, tmp_path, ledger, cutting.url, facilitator=facilitator.url) as [shop],
    ):
        purchase = purchase_of(shop)
        assert purchase.pay().status == 503
        facilitator.settle = lambda payload: settled(chain.send(**transaction_of(payload))["transactionHash"])
        cut = cutting.cuts("the facilitator is asked again")
        gig_of(purchase.pay_until(200))
        assert cut.is_committed.is_set()
        assert paid(purchase) == PRICE
    facilitator.stop()


def test_with_a_remote_facilitator_a_lost_commit_is_looked_for_and_settled(
    chain: Chain, postgres: Postgres, tmp_path: Path
) -> None:
    ledger = postgres.database()
    facilitator = OddFacilitator(lambda payload: settled(chain.send(**transaction_of(payload))["transactionHash"]))
    with (
        commit_proxy(ledger) as cutting,
        servers(chain, tmp_path, ledger, cutting.url, facilitator=facilitator.url) as [shop],
    ):
        purchase = purchase_of(shop)
        cut = cutting.cuts(said(purchase))
        answer = purchase.pay()
        assert cut.is_committed.is_set()
        assert gig_of(answer) == gig_of(purchase.pay())
        assert paid(purchase) == PRICE
    facilitator.stop()
