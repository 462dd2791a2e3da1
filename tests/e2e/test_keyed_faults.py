"""Gigs created with a key under kills, outages and reorganisations: started once, their commission paid once."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account

from tests.e2e.attacks import calldata
from tests.support import ledgers
from tests.support.crashes import Victim, victim
from tests.support.creators import CREATE, START, Creator
from tests.support.faults import Forward, Reply, RpcProxy, Rule, Then, answers, down, lose_reply, narrow, rpc_proxy
from tests.support.harness import USDC, Dev, Json, NotTrue, devnet, gig_terms, served, until
from tests.support.operator import Desk
from tests.support.tokens import Erc20, deploy
from x402_gig.market.keyed_gigs import MAX_DEPOSITS

SEND = ("eth_sendRawTransactionSync", "eth_sendRawTransaction")
# A node tells of so many blocks at once. Behind as many of them as hold all that is kept of a gig, there is more dust.
LOG_BLOCKS = 40
DUST = MAX_DEPOSITS + LOG_BLOCKS


@contextmanager
def opened(folder: Path, **settings: Any) -> Iterator[tuple[Victim, RpcProxy, Creator]]:
    with devnet() as chain, rpc_proxy(chain) as proxy, victim(chain, proxy, folder, **settings) as shop:
        yield shop, proxy, Creator(shop, Desk(shop.environment, folder))


@pytest.fixture(scope="module")
def away(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Victim, RpcProxy, Creator]]:
    with opened(tmp_path_factory.mktemp("faults")) as all_of_it:
        yield all_of_it


def usdc_of(shop: Dev) -> Erc20:
    return Erc20(shop, USDC)


def test_a_gig_that_was_funded_long_ago_is_found(away: tuple[Victim, RpcProxy, Creator]) -> None:
    shop, proxy, creator = away
    made = creator.funded(deploy(shop, "OddToken"))
    shop.rpc("anvil_mine", hex(150))
    with proxy.broken(narrow(40), "eth_getLogs"):
        assert creator.start(made).status_code == 200
    gig = creator.paid_up(made)
    assert gig["payment"]["transaction"]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_dust_of_a_stranger_neither_names_the_payer_nor_hides_the_funding(
    away: tuple[Victim, RpcProxy, Creator], moment: str
) -> None:
    shop, proxy, creator = away
    odd = deploy(shop, "OddToken")
    made, payer, stranger = creator.create(odd.address), odd.holder(10**30), odd.holder(DUST)

    def send_dust() -> None:
        for _ in range(DUST):
            odd.send(stranger, made["gig_wallet_address"], 1)

    if moment == "before":
        send_dust()
    paid = shop.send(payer, odd.address, made["tx_data"])["transactionHash"]
    if moment == "after":
        send_dust()
    with proxy.broken(narrow(LOG_BLOCKS), "eth_getLogs"):
        assert creator.start(made).status_code == 200
    gig = creator.gig(made)
    assert (gig["creator"], gig["payment"]["payer"]) == (payer.lower(), payer.lower())
    assert {gig["payment"]["transaction"], gig["funding"]["deposit_transaction"]} == {paid}
    rows = creator.desk.rows("select payer from gig_deposits where gig_id = ?", made["gig_id"])
    assert (len(rows), rows.count((payer.lower(),))) == (MAX_DEPOSITS, 1)


@pytest.mark.parametrize("methods", [(), ("eth_call",), ("eth_getLogs",)], ids=["all", "eth_call", "eth_getLogs"])
def test_a_start_without_the_chain_is_503_and_can_be_repeated(
    away: tuple[Victim, RpcProxy, Creator], methods: tuple[str, ...]
) -> None:
    shop, proxy, creator = away
    made = creator.funded(usdc_of(shop))
    with proxy.broken(down, *methods):
        refused = creator.start(made)
    assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
    assert creator.gig(made)["status"] == "created"
    assert until(lambda: creator.start(made).status_code == 200)
    creator.paid_up(made)


@pytest.mark.parametrize("token", ["OddToken", "USDC"])
@pytest.mark.parametrize(
    ("rule", "methods"),
    [(lose_reply, SEND), (answers(None), ("eth_getTransactionReceipt",)), (down, SEND), (down, ("eth_estimateGas",))],
    ids=["replies lost", "no receipts", "nothing sent", "no estimates"],
)
def test_a_commission_leaves_its_wallet_once_whatever_the_chain_answers(
    away: tuple[Victim, RpcProxy, Creator], token: str, rule: Rule, methods: tuple[str, ...]
) -> None:
    shop, proxy, creator = away
    erc20 = usdc_of(shop) if token == "USDC" else deploy(shop, token)
    before = erc20.balance(shop.commission)
    with proxy.broken(rule, *methods):
        made = creator.started(erc20)
        with suppress(AssertionError):
            creator.paid_up(made, timeout_s=2)
    gig = creator.paid_up(made, timeout_s=60)
    unit = 10 ** gig["token"]["decimals"]
    assert erc20.balance(shop.commission) == before + unit
    assert erc20.balance(made["gig_wallet_address"]) == 10 * unit


def test_a_commission_that_is_refused_is_held_back_also_where_the_node_tells_of_few_blocks(tmp_path: Path) -> None:
    """Somebody else may have executed it, which cannot be looked up there; signed again and again it would cost gas."""
    with opened(tmp_path) as (shop, proxy, creator), proxy.broken(narrow(10), "eth_getLogs"):
        shop.send(Account.create().address, USDC, calldata("blacklist(address)", shop.commission))
        made = creator.funded(usdc_of(shop))
        shop.rpc("anvil_mine", "0x14")
        assert creator.start(made).status_code == 200
        until(lambda: "fee 1" in shop.http.get(shop.url + "/readyz").json()["warnings"].get("funding", ""))


def test_whoever_is_killed_while_starting_starts_each_gig_once(tmp_path: Path) -> None:
    """SIGKILL again and again while twelve gigs in two tokens are started and their commissions leave."""
    with opened(tmp_path) as (shop, _, creator):
        tokens = [deploy(shop, "OddToken"), usdc_of(shop)]
        gigs = [creator.funded(tokens[i % 2]) for i in range(12)]
        before = [token.balance(shop.commission) for token in tokens]
        moments = random.Random(7)

        def kill() -> None:
            for _ in range(3):
                time.sleep(moments.uniform(0.01, 0.4))
                shop.kill()
                shop.start()

        with ThreadPoolExecutor(len(gigs) + 1) as threads:
            killing = threads.submit(kill)
            answers = [*threads.map(lambda made: _insist(creator, made), gigs)]
            killing.result()

        assert {answer.status_code for answer in answers} <= {200, 400}
        for made in gigs:
            creator.paid_up(made, timeout_s=90)
        for token, held in zip(tokens, before, strict=True):
            unit = 10**11 if token is tokens[0] else 10**6
            assert token.balance(shop.commission) == held + 6 * unit
        for i, made in enumerate(gigs):
            assert tokens[i % 2].balance(made["gig_wallet_address"]) == (10**12, 10**7)[i % 2]
        audit = creator.desk.audit()
        assert (audit["ok"], audit["keyed_gigs"]) == (True, 12)


def _insist(creator: Creator, made: Json) -> httpx.Response:
    """Ask until it is started, by this or an earlier request."""

    def ask() -> httpx.Response | None:
        with suppress(httpx.HTTPError):
            answer = creator.post(START, {"gig_id": made["gig_id"]})
            if answer.status_code == 200 or answer.json() == {"error": "Gig is already live"}:
                return answer
        return None

    answer: httpx.Response = until(ask, 90, pause_s=0.1)
    return answer


@pytest.mark.parametrize("token", ["OddToken", "USDC"])
def test_a_reorganisation_that_takes_the_funding_away_suspends_the_gig_until_it_is_back(
    tmp_path: Path, token: str
) -> None:
    with opened(tmp_path, reorg_depth=16) as (shop, _, creator):
        erc20 = usdc_of(shop) if token == "USDC" else deploy(shop, token)
        made = creator.create(erc20.address)
        payer = erc20.holder(10**30)
        shop.rpc("anvil_mine", "0x10")
        shop.send(payer, erc20.address, made["tx_data"])
        assert creator.start(made).status_code == 200
        creator.paid_up(made)

        shop.rpc("anvil_reorg", 8, [])
        until(lambda: creator.gig(made)["status"] == "suspended")
        assert erc20.balance(shop.commission) == 0

        shop.send(payer, erc20.address, made["tx_data"])
        until(lambda: creator.gig(made)["status"] == "active")
        creator.paid_up(made, timeout_s=60)
        unit = 10 ** creator.gig(made)["token"]["decimals"]
        assert (erc20.balance(shop.commission), erc20.balance(made["gig_wallet_address"])) == (unit, 10 * unit)


def test_a_surplus_that_was_given_back_is_not_given_back_out_of_the_reward_after_a_reorganisation(
    tmp_path: Path,
) -> None:
    with opened(tmp_path, reorg_depth=16) as (shop, _, creator):
        odd = deploy(shop, "OddToken")
        made, owner = creator.create(odd.address), str(Account.create().address)
        payer, wallet = odd.holder(10**30), made["gig_wallet_address"]
        shop.rpc("anvil_mine", "0x10")
        shop.send(payer, odd.address, made["tx_data"])
        odd.send(payer, wallet, 5 * 10**11)
        assert creator.start(made).status_code == 200
        creator.paid_up(made)
        assert creator.desk.run("gigs", "refund", str(made["gig_id"]), "--to", owner, "--yes").returncode == 0
        until(lambda: odd.balance(owner) == 5 * 10**11)

        shop.rpc("anvil_reorg", 12, [])
        until(lambda: creator.gig(made)["status"] == "suspended")
        shop.send(payer, odd.address, made["tx_data"])
        shop.rpc("anvil_mine", "0x3")
        assert not _happens(lambda: odd.balance(owner) > 0)
        assert creator.gig(made)["status"] == "suspended"
        odd.send(payer, wallet, 5 * 10**11)
        until(lambda: odd.balance(owner) == 5 * 10**11)
        until(lambda: odd.balance(wallet) == 10**12)


def _happens(check: Callable[[], bool]) -> bool:
    """Within the time that a payout takes."""
    with suppress(NotTrue):
        return bool(until(check, 3))
    return False


@pytest.mark.parametrize("moment", ["before the logs", "after the logs"])
def test_a_gig_whose_funding_is_dropped_while_it_is_started_is_suspended(tmp_path: Path, moment: str) -> None:
    """Its height is read on the other chain before the start is written down, so nobody reads it again by himself."""
    with opened(tmp_path, reorg_depth=16) as (shop, proxy, creator):
        odd = deploy(shop, "OddToken")
        shop.rpc("anvil_mine", "0x10")
        made = creator.funded(odd)

        def drop(_: Json, forward: Forward) -> Json:
            found = forward() if moment == "after the logs" else None
            proxy.rules.clear()
            _reorganise(shop, 4)
            return found or forward()

        with proxy.broken(of_token(odd, drop), "eth_getLogs"):
            assert creator.start(made).status_code == 200
        until(lambda: creator.gig(made)["status"] == "suspended")
        # The replaced block's deposit, if the logs were of that block.
        undone = [(0,)] if moment == "after the logs" else []
        assert creator.desk.rows("select on_chain from gig_deposits where gig_id = ?", made["gig_id"]) == undone


def _reorganise(shop: Victim, blocks: int) -> None:
    """Other blocks without transactions, which the ledger has read, instead of the newest ones."""
    shop.rpc("anvil_reorg", blocks, [])
    shop.rpc("anvil_mine", "0x3")
    head = int(shop.rpc("eth_blockNumber"), 16)
    until(lambda: ledgers.rows(shop.ledger, "select cursor_number from ledger")[0][0] >= head)


def test_a_gig_whose_funding_is_dropped_while_it_is_looked_at_again_is_suspended_again(tmp_path: Path) -> None:
    with opened(tmp_path, reorg_depth=16) as (shop, proxy, creator), proxy.broken(down, *SEND):
        odd = deploy(shop, "OddToken")
        made, payer = creator.create(odd.address), odd.holder(10**30)
        shop.rpc("anvil_mine", "0x10")
        shop.send(payer, odd.address, made["tx_data"])
        assert creator.start(made).status_code == 200
        _reorganise(shop, 1)
        until(lambda: creator.gig(made)["status"] == "suspended")

        def drop(_: Json, forward: Forward) -> Json:
            found = forward()
            proxy.rules.pop("eth_getLogs")
            _reorganise(shop, 1)
            return found

        with proxy.broken(of_token(odd, drop), "eth_getLogs"):
            again = shop.send(payer, odd.address, made["tx_data"])["transactionHash"]
            until(lambda: "eth_getLogs" not in proxy.rules)
        query = 'select 1 from gig_deposits where "transaction" = ?'
        until(lambda: ledgers.rows(shop.ledger, query, again))
        until(lambda: creator.gig(made)["status"] == "suspended")


def test_a_payout_whose_funding_is_dropped_while_it_is_prepared_is_not_signed(tmp_path: Path) -> None:
    with opened(tmp_path, reorg_depth=16) as (shop, proxy, creator):
        odd = deploy(shop, "OddToken")
        made = creator.create(odd.address)
        wallet, payer = made["gig_wallet_address"], odd.holder(10**30)
        shop.rpc("anvil_mine", "0x10")
        shop.send(payer, odd.address, made["tx_data"])

        dropped = threading.Event()

        def drop(request: Json, forward: Forward) -> Reply:
            if request["params"][0] != wallet.lower():
                return forward()
            proxy.rules.clear()
            shop.rpc("anvil_reorg", 4, [])
            until(lambda: creator.gig(made)["status"] == "suspended")
            shop.rpc("anvil_setBalance", wallet, hex(10**18))  # the gas is there already
            return Then(forward(), dropped.set)

        with proxy.broken(drop, "eth_getBalance"):
            assert creator.start(made).status_code == 200
            assert dropped.wait(30)
        asked = proxy.calls["eth_call"]
        until(lambda: proxy.calls["eth_call"] > asked + 2)  # its balance is looked at again
        shop.send(payer, odd.address, made["tx_data"])
        creator.paid_up(made, timeout_s=60)
        assert creator.desk.rows("select state from slots where purpose = 'payout'") == [("mined",)]


def of_token(token: Erc20, rule: Rule) -> Rule:
    """The rule for logs of this token only."""
    return lambda request, forward: (
        rule(request, forward) if request["params"][0]["address"] == token.address.lower() else forward()
    )


def test_a_start_counts_confirmations(tmp_path: Path) -> None:
    with opened(tmp_path, confirmations=3) as (shop, _, creator):
        made = creator.funded(usdc_of(shop))
        shop.rpc("evm_setAutomine", False)
        for blocks, status in ((0, 400), (1, 400), (1, 200)):
            for _ in range(blocks):
                shop.rpc("evm_mine")
            assert creator.start(made).status_code == status


@pytest.mark.parametrize("token", ["OddToken", "USDC"])
def test_a_seed_that_started_gigs_needs_the_ledger_that_knows_them(tmp_path: Path, token: str) -> None:
    with opened(tmp_path) as (shop, _, creator):
        creator.paid_up(creator.started(usdc_of(shop) if token == "USDC" else deploy(shop, token)))
        shop.stop()
        fresh = creator.desk.start("serve", database_url=ledgers.new(tmp_path, "fresh.db"))
    assert fresh.returncode == 1
    assert "this seed has funded gigs before" in fresh.stderr


def test_a_halted_server_creates_and_starts_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as (shop, _, creator):
        with served(shop, seed=shop.environment["X402_GIG_SEED"]) as twin:
            made = creator.funded(usdc_of(shop))
            twin.funded(twin.buy(twin.buyer()).json()["gig_id"])
            until(lambda: "halted" in shop.http.get(shop.url + "/readyz").json()["problems"])
        for answer in (creator.start(made), creator.post(CREATE, gig_terms())):
            assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
        assert creator.gig(made)["status"] == "created"
