"""The chain changes its mind: what it dropped is sent again; nothing is lost, doubled, or paid by a neighbour."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.e2e import attacks
from tests.support import faults, ledgers
from tests.support.faults import rpc_proxy
from tests.support.harness import (
    USDC,
    Chain,
    Dev,
    Json,
    calldata,
    decode,
    devnet,
    gig_terms,
    payment_header,
    served,
    until,
)
from tests.support.operator import operated

PRICE, REWARD = 11_000_000, 10_000_000
# The default.
REORG_DEPTH = 64

# On both databases.
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def shop(database: str) -> Iterator[Dev]:
    with started() as running:
        yield running


@contextmanager
def started(**settings: object) -> Iterator[Dev]:
    with devnet() as chain, served(chain, **settings) as server:
        # Deep enough that no reorganisation reaches the token and the batcher.
        chain.rpc("anvil_mine", "0x10")
        yield Dev(chain.rpc_url, url=server.url, intake=server.quote(gig_terms())["payTo"])


def bought(shop: Dev, buyer: LocalAccount, lifetime_s: int = 3600) -> tuple[Json, Json, Json]:
    """Terms, payment header and answer of a purchase."""
    terms = gig_terms()
    header = payment_header(buyer, shop.quote(terms), validBefore=str(int(time.time()) + lifetime_s))
    return terms, header, ok(shop.post(terms, header))


def ok(answer: httpx.Response) -> Json:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def height(shop: Dev) -> int:
    return int(shop.rpc("eth_blockNumber"), 16)


def block_of(shop: Dev, transaction: str) -> int:
    return int(shop.rpc("eth_getTransactionReceipt", transaction)["blockNumber"], 16)


def funded(shop: Dev, gig: Json) -> None:
    until(lambda: shop.usdc(gig["gig_wallet_address"]) == REWARD)


def test_slots_that_are_open_again_are_finished_though_nobody_was_told(chain: Chain, tmp_path: Path) -> None:
    """The answer to the commit that opened them was lost, and they were looked for before it had ended."""
    nowhere = '"transaction" = null, block_number = null, block_hash = null, gas_used = null, closed_at = null'
    with operated(chain, tmp_path) as shop:
        shop.bought()
        mined = shop.desk.rows("select id, state from slots order by id")
        ledgers.change(shop.desk.ledger, f"update slots set state = 'open', {nowhere}")
        until(lambda: shop.desk.rows("select id, state from slots order by id") == mined)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5])
def test_what_was_dropped_comes_back_whole(shop: Dev, depth: int) -> None:
    """Two gigs, deposited and funded in four blocks or fewer, and then the newest `depth` blocks are others."""
    buyers = [shop.buyer(PRICE), shop.buyer(PRICE)]
    shop.rpc("anvil_mine", "0x5")
    sales = [bought(shop, buyer) for buyer in buyers]
    for _, _, gig in sales:
        shop.funded(gig["gig_id"])

    shop.rpc("anvil_reorg", depth, [])

    for buyer, (terms, header, gig) in zip(buyers, sales, strict=True):
        funded(shop, gig)
        again = until(lambda t=terms, h=header: (a := shop.post(t, h)).status_code == 200 and a).json()  # type: ignore[misc]
        assert again["gig_id"] == gig["gig_id"]
        assert shop.usdc(buyer.address) == 0
    until(lambda: shop.usdc(shop.intake) == 0)


def test_a_batch_that_was_dropped_before_its_funding_is_sent_again(shop: Dev) -> None:
    buyer = shop.buyer(PRICE)
    shop.rpc("anvil_mine", "0x5")
    shop.rpc("evm_setAutomine", False)
    terms = gig_terms()
    header = payment_header(buyer, shop.quote(terms), validBefore=str(int(time.time()) + 3600))
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(shop.post, terms, header)
        until(lambda: int(shop.rpc("txpool_status")["pending"], 16))
        shop.rpc("evm_mine")
        gig = ok(answer.result())
    # The funding waits in the pool when the block of the deposit is replaced.
    until(lambda: int(shop.rpc("txpool_status")["pending"], 16))
    shop.rpc("anvil_reorg", 1, [])
    until(lambda: shop.gig(gig["gig_id"])["status"] == "suspended" or shop.usdc(gig["gig_wallet_address"]))
    shop.rpc("evm_setAutomine", True)
    shop.rpc("evm_mine")
    funded(shop, gig)
    until(lambda: shop.usdc(shop.intake) == 0)
    assert shop.gig(gig["gig_id"])["status"] == "active"


def test_a_deposit_that_cannot_come_back_takes_its_gig_with_it_and_nothing_of_its_neighbours(tmp_path: Path) -> None:
    """The payer's balance is gone on the new chain: nobody was charged, nobody is paid, and commissions go on."""
    with started() as shop:
        honest, poor = shop.buyer(PRICE), shop.buyer(PRICE)
        first = bought(shop, honest)[2]
        shop.funded(first["gig_id"])
        start = height(shop)
        terms, header, lost = bought(shop, poor, lifetime_s=20)
        shop.funded(lost["gig_id"])

        # On the chain that replaces it, the payer has moved the money away.
        shop.rpc("anvil_reorg", height(shop) - start, [])
        shop.rpc("anvil_dealERC20", poor.address, USDC, hex(0))
        shop.rpc("evm_mine")

        until(lambda: shop.gig(lost["gig_id"])["status"] == "suspended")
        assert shop.post(terms, header).status_code == 503
        assert shop.usdc(lost["gig_wallet_address"]) == 0
        # Expired for good: the payment was never made.
        shop.rpc("evm_increaseTime", 700)
        shop.rpc("evm_mine")
        answer = until(lambda: (a := shop.post(terms, header)).status_code != 503 and a)
        assert answer.status_code == 402
        assert shop.gig(lost["gig_id"])["status"] == "suspended"
        assert shop.usdc(first["gig_wallet_address"]) == REWARD
        # The commission of the next gig does not wait for the one that is gone, once its signatures' end is final.
        shop.rpc("anvil_mine", hex(REORG_DEPTH))
        buyer = shop.buyer(PRICE)
        quote, now = shop.quote(gig_terms()), int(shop.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)
        terms = gig_terms()
        third = ok(shop.post(terms, payment_header(buyer, quote, validBefore=str(now + 600))))
        shop.funded(third["gig_id"])
        until(lambda: shop.usdc(shop.intake) == 0)


@contextmanager
def behind_a_proxy(**settings: object) -> Iterator[tuple[Dev, faults.RpcProxy]]:
    with devnet() as chain, rpc_proxy(chain) as proxy, served(proxy.chain, **settings) as server:
        chain.rpc("anvil_mine", "0x10")
        yield Dev(chain.rpc_url, url=server.url, intake=server.quote(gig_terms())["payTo"]), proxy


@dataclass
class Neighbour:
    """A payment that a stranger executes: money in the intake, and nobody knows yet whose."""

    shop: Dev

    def __post_init__(self) -> None:
        self.terms = gig_terms()
        lifetime = str(int(time.time()) + 3600)
        self.header = payment_header(self.shop.buyer(PRICE), self.shop.quote(self.terms), validBefore=lifetime)

    def is_executed(self) -> None:
        payload = decode(self.header["PAYMENT-SIGNATURE"])["payload"]
        self.shop.send(Account.create().address, USDC, calldata(payload))

    def has_his_money(self, lost: Json) -> None:
        """And it was not paid out for the gig that has `lost` its own."""
        until(lambda: self.shop.gig(lost["gig_id"])["status"] == "suspended")
        funded(self.shop, ok(self.shop.post(self.terms, self.header)))
        assert self.shop.usdc(lost["gig_wallet_address"]) == 0


def test_a_reward_is_not_paid_out_of_a_deposit_that_is_not_read_yet_when_its_own_was_dropped() -> None:
    """Somebody looks at the newest block of the other chain before anybody reads what is in it."""
    with behind_a_proxy() as (shop, proxy):
        poor, neighbour = shop.buyer(PRICE), Neighbour(shop)
        with proxy.broken(faults.status(429), "eth_getLogs"):
            with proxy.broken(faults.nothing_of_a_block, "eth_call"):
                lost = bought(shop, poor)[2]
                shop.rpc("anvil_reorg", height(shop) - block_of(shop, lost["payment"]["transaction"]) + 1, [])
                shop.rpc("anvil_dealERC20", poor.address, USDC, hex(0))
                neighbour.is_executed()
            asked = proxy.calls["eth_getLogs"]
            until(lambda: proxy.calls["eth_getLogs"] > asked + 4)
        neighbour.has_his_money(lost)


def test_a_receipt_that_is_written_down_after_its_height_was_read_on_another_chain_pays_no_reward(
    tmp_path: Path,
) -> None:
    """However long the node does not tell that the block was replaced."""
    ledger, mined, told, of_blocks = ledgers.new(tmp_path), threading.Event(), threading.Event(), list[Json]()

    def tell_late(_: Json, forward: faults.Forward) -> Json:
        receipt = forward()
        mined.set()
        told.wait(30)
        return receipt

    def call(request: Json, forward: faults.Forward) -> Json:
        if request["params"][1] != "latest":
            of_blocks.append(request)
        return forward()

    with behind_a_proxy(database_url=ledger) as (shop, proxy), ThreadPoolExecutor(1) as pool:
        poor, neighbour = shop.buyer(PRICE), Neighbour(shop)
        unread = {"eth_getLogs": faults.status(429)}
        proxy.rules |= {"eth_sendRawTransactionSync": tell_late, "eth_call": call, **unread}
        buying = pool.submit(bought, shop, poor)
        assert mined.wait(30)
        replaced = height(shop)
        with ledgers.locked(ledger):
            told.set()
            asked = proxy.calls["eth_getBlockByNumber"]
            until(lambda: proxy.calls["eth_getBlockByNumber"] > asked + 3)
            shop.rpc("anvil_reorg", 1, [])
            shop.rpc("anvil_dealERC20", poor.address, USDC, hex(0))
            shop.rpc("anvil_mine", "0x3")
            of_blocks.clear()
            del proxy.rules["eth_getLogs"]
            until(lambda: of_blocks)  # the balance, at the end of a reading
            proxy.rules |= {"eth_getBlockByNumber": without(replaced), **unread}
            neighbour.is_executed()
        lost = buying.result()[2]
        of_blocks.clear()
        until(lambda: len(of_blocks) > 1 or shop.usdc(lost["gig_wallet_address"]))
        proxy.rules.clear()
        neighbour.has_his_money(lost)


def test_a_reward_that_waits_for_a_block_is_not_paid_out_of_a_neighbours_deposit_when_its_own_is_dropped() -> None:
    """Its transaction is signed and in the pool, and on the new chain the intake holds somebody else's money."""
    with started(relayers=1) as shop:
        poor, neighbour = attacks.buyer(shop), attacks.buyer(shop)
        shop.rpc("evm_setAutomine", False)
        post = poor.post()
        until(lambda: any(poor.is_in(sent["input"]) for sent in attacks.pool(shop).values()))
        shop.rpc("evm_mine")
        lost = post.answer().json
        [reward] = until(lambda: list(attacks.pool(shop)))

        shop.rpc("anvil_reorg", 1, [])
        shop.rpc("anvil_dealERC20", poor.payer, USDC, hex(0))
        theirs = attacks.submit(shop, attacks.STRANGER, USDC, neighbour.transfer)
        shop.rpc("evm_mine")
        assert attacks.succeeded(shop, theirs)
        shop.mine()

        assert not attacks.succeeded(shop, reward)
        assert shop.usdc(lost["gig_wallet_address"]) == 0
        funded(shop, neighbour.pay_until(200).json)
        until(lambda: shop.gig(lost["gig_id"])["status"] == "suspended")


def test_a_nonce_that_was_used_in_a_block_that_is_replaced_before_it_is_read_refuses_nobody() -> None:
    with behind_a_proxy() as (shop, proxy):
        paid, told = attacks.buyer(shop), list[Json]()

        def note(request: Json, forward: faults.Forward) -> Json:
            answer = forward()
            if paid.is_in(request["params"][0]["data"]):
                told.append(answer)
            return answer

        with proxy.broken(faults.status(429), "eth_getLogs"), proxy.broken(note, "eth_call"):
            attacks.execute(shop, paid.cancellation)
            post = paid.post()
            until(lambda: len(told) == 2)  # that it fails, and that its nonce is used
            shop.rpc("anvil_reorg", 1, [])

        answer = post.answer()
        assert answer.status == 503, answer.text
        gig = paid.pay_until(200).json
        assert shop.usdc(paid.payer) == 0
        shop.funded(gig["gig_id"])


def without(number: int) -> faults.Rule:
    """The node does not tell of this block."""

    def rule(request: Json, forward: faults.Forward) -> Json:
        if request["params"][0] == hex(number):
            raise faults.HangUp
        return forward()

    return rule


def test_a_deposit_that_a_stranger_sent_is_sent_by_us_when_the_chain_drops_it(shop: Dev) -> None:
    buyer, terms = shop.buyer(PRICE), gig_terms()
    header = payment_header(buyer, shop.quote(terms), validBefore=str(int(time.time()) + 3600))
    payload = decode(header["PAYMENT-SIGNATURE"])["payload"]
    shop.rpc("anvil_mine", "0x5")
    shop.send(Account.create().address, USDC, calldata(payload))
    gig = ok(shop.post(terms, header))
    shop.funded(gig["gig_id"])

    shop.rpc("anvil_reorg", height(shop) - block_of(shop, gig["payment"]["transaction"]) + 1, [])

    funded(shop, gig)
    again = until(lambda: (a := shop.post(terms, header)).status_code == 200 and a).json()
    assert again["gig_id"] == gig["gig_id"]
    assert again["payment"]["transaction"] != gig["payment"]["transaction"]
    assert shop.usdc(buyer.address) == 0
    until(lambda: shop.usdc(shop.intake) == 0)


def test_a_reorganisation_while_the_server_is_down_is_noticed_at_its_start(tmp_path: Path) -> None:
    shop_settings = {
        "seed": Account.create_with_mnemonic()[1],
        "database_url": ledgers.new(tmp_path),
    }
    with devnet() as chain:
        with served(chain, **shop_settings) as server:
            chain.rpc("anvil_mine", "0x10")
            shop = Dev(chain.rpc_url, url=server.url)
            buyer = shop.buyer(PRICE)
            chain.rpc("evm_mine")
            terms, header, gig = bought(shop, buyer)
            shop.funded(gig["gig_id"])
        chain.rpc("anvil_reorg", 2, [])
        assert Chain(chain.rpc_url).usdc(buyer.address) == PRICE
        with served(chain, **shop_settings) as server:
            shop = Dev(chain.rpc_url, url=server.url)
            funded(shop, gig)
            again = until(lambda: (a := shop.post(terms, header)).status_code == 200 and a).json()
            assert again["gig_id"] == gig["gig_id"]
