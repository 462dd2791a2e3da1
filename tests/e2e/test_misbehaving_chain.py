"""A chain that is away, slow, wrong or full: every payment ends as a gig or uncharged, and nothing blocks the next."""

import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

import httpx
import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.support import faults, ledgers
from tests.support.faults import RpcProxy, Rule, rpc_proxy
from tests.support.harness import USDC, Dev, Json, calldata, decode, devnet, gig_terms, payment_header, served, until

SEND = ("eth_sendRawTransactionSync", "eth_sendRawTransaction")
PRICE = 11_000_000

# On both databases.
pytestmark = pytest.mark.usefixtures("database")


@dataclass
class Shop:
    """A server whose connection to the chain can be broken; `dev` asks the chain itself."""

    dev: Dev
    proxy: RpcProxy
    seed: str
    ledger: str

    def rows(self, query: str, *values: object) -> list[tuple[object, ...]]:
        return ledgers.rows(self.ledger, query, *values)

    def asked(self, *methods: str) -> int:
        """How often the server has called these."""
        return sum(self.proxy.calls[method] for method in methods)

    def relayer(self, index: int) -> LocalAccount:
        account: LocalAccount = Account.from_mnemonic(self.seed, account_path=f"m/44'/60'/1'/0/{index}")
        return account


@pytest.fixture(scope="module")
def shop(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    seed, ledger = Account.create_with_mnemonic()[1], ledgers.new(tmp_path_factory.mktemp("shop"))
    settings = {"seed": seed, "database_url": ledger, "max_timeout_s": 10}
    with devnet() as chain, rpc_proxy(chain) as proxy, served(proxy.chain, **settings) as server:
        yield Shop(
            Dev(chain.rpc_url, url=server.url, intake=server.quote(gig_terms())["payTo"]),
            proxy,
            seed,
            ledger,
        )


@dataclass
class Sale:
    """A buyer with the price of one gig, who repeats the same header until there is an answer."""

    dev: Dev
    buyer: LocalAccount
    terms: Json
    header: Json

    def post(self) -> httpx.Response:
        return self.dev.post(self.terms, self.header)

    def gig(self) -> Json:
        """The gig, however often it takes; funded to the last unit, and charged once."""
        answer = until(lambda: (got := self.post()).status_code != 503 and got, timeout_s=60)
        assert answer.status_code == 200, answer.text
        gig = dict(answer.json())
        until(lambda: self.dev.usdc(gig["gig_wallet_address"]) == PRICE - 1_000_000, timeout_s=60)
        assert self.dev.usdc(self.buyer.address) == 0
        return gig


def sale(dev: Dev, **changes: object) -> Sale:
    terms, buyer = gig_terms(), dev.buyer(PRICE)
    return Sale(dev, buyer, terms, payment_header(buyer, dev.quote(terms), **changes))


@contextmanager
def meanwhile(*sales: Sale) -> Iterator[list["Future[httpx.Response]"]]:
    """Post them all at once, and go on."""
    with ThreadPoolExecutor(len(sales)) as pool:
        yield [pool.submit(one.post) for one in sales]


@contextmanager
def no_blocks(dev: Dev) -> Iterator[None]:
    dev.rpc("evm_setAutomine", False)
    try:
        yield
    finally:
        dev.rpc("evm_setAutomine", True)
        dev.rpc("evm_mine")


def in_pool(dev: Dev, count: int = 1) -> list[Json]:
    def waiting() -> list[Json]:
        return [t for kind in dev.rpc("txpool_content").values() for txs in kind.values() for t in txs.values()]

    return list(until(lambda: len(found := waiting()) >= count and found))


# Steps of a purchase: what the server asks the chain then
STEPS = {
    "simulate": ("eth_call",),
    "send": SEND,
    "receipt": ("eth_getTransactionReceipt", *SEND),
    "watch": ("eth_getLogs", "eth_getBlockByNumber"),
}
FAULTS: dict[str, Rule] = {
    "down": faults.down,
    "429": faults.status(429),
    "500": faults.status(500),
    "garbage": faults.garbage,
    "lost": faults.lose_reply,
    "refused": faults.refuses(-32000, "internal error"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_any_step_costs_nobody_anything(shop: Shop, step: str, fault: str) -> None:
    one = sale(shop.dev)
    asked = shop.asked(*STEPS[step])
    with meanwhile(one) as [first]:
        with shop.proxy.broken(FAULTS[fault], *STEPS[step]):
            until(lambda: first.done() or shop.asked(*STEPS[step]) > asked + 4)
        # Whatever is answered by now, it is no refusal.
        assert first.result().status_code in (200, 503), first.result().text
    one.gig()


@pytest.mark.parametrize("time", ["0x" + "f" * 4500, hex(2**63), hex(4_102_444_800)], ids=["huge", "2^63", "2100"])
def test_one_block_of_an_absurd_time_neither_ends_the_server_nor_refuses_a_payment(shop: Shop, time: str) -> None:
    seen: list[Json] = []

    def absurd(request: Json, forward: faults.Forward) -> faults.Reply:
        answer = forward()
        if request["params"][0] == "latest" and not seen:
            seen.append(answer)
            answer["result"]["timestamp"] = time
        return answer

    one = sale(shop.dev)
    with shop.proxy.broken(absurd, "eth_getBlockByNumber"):
        looked = shop.asked("eth_getBlockByNumber")
        until(lambda: seen and shop.asked("eth_getBlockByNumber") > looked + 1)
    one.gig()


def test_a_nodes_own_words_are_not_for_strangers(shop: Shop) -> None:
    key = "9aa3d95b3bc440fa88ea12eaa4456161"
    one = sale(shop.dev)
    words = faults.refuses(-32005, f"your quota is used up: https://rpc.example/v3/{key}, key {key}")
    with shop.proxy.broken(words):
        # It may tell of an earlier fault for a moment.
        ready = until(lambda: (t := shop.dev.http.get(shop.dev.url + "/readyz").text) and "-32005" in t and t)
        refused = one.post().text
    assert "the chain node refuses it (error -32005)" in ready
    assert [said for said in (ready, refused) if "quota" in said or key in said] == []
    until(lambda: json.loads(shop.dev.http.get(shop.dev.url + "/readyz").text)["status"] == "ready", timeout_s=60)


def test_whoever_watches_hears_of_a_node_that_hangs_before_he_gives_up(shop: Shop) -> None:
    """Prometheus waits for ten seconds."""

    def seen(path: str) -> str:
        return str(shop.dev.http.get(shop.dev.url + path, timeout=9).text)

    with shop.proxy.broken(faults.slow(20)):
        until(lambda: 'x402_gig_problem{name="chain"} 1.0' in seen("/metrics"))
        assert "chain" in json.loads(seen("/readyz"))["problems"]
    until(lambda: json.loads(seen("/readyz"))["status"] == "ready", timeout_s=60)


def test_a_slow_chain_is_only_slow(shop: Shop) -> None:
    one = sale(shop.dev)
    with shop.proxy.broken(faults.slow(0.7)):
        one.gig()


def test_receipts_that_are_missing_for_a_while_double_nothing(shop: Shop) -> None:
    one = sale(shop.dev)
    with (
        shop.proxy.broken(faults.lose_reply, "eth_sendRawTransactionSync"),
        shop.proxy.broken(faults.times(12, faults.answers(None)), "eth_getTransactionReceipt"),
        meanwhile(one) as [first],
    ):
        assert first.result().status_code in (200, 503)
    one.gig()


@pytest.mark.parametrize("seconds", [0.6, 2])
def test_receipts_that_come_later_than_the_nonces_they_use_lose_no_slot(shop: Shop, seconds: float) -> None:
    before = shop.rows("select count(*) from slots where state = 'lost'")
    with (
        shop.proxy.broken(faults.lose_reply, "eth_sendRawTransactionSync"),
        shop.proxy.broken(faults.late_receipts(seconds), "eth_getTransactionReceipt"),
    ):
        for _ in range(2):
            sale(shop.dev).gig()
        until(lambda: shop.rows("select count(*) from slots where state = 'open'") == [(0,)])
    assert shop.rows("select count(*) from slots where state = 'lost'") == before


def test_a_block_that_is_only_promised_is_waited_for_without_asking_again_and_again(shop: Shop) -> None:
    one = sale(shop.dev)

    def promise(request: Json, _: faults.Forward) -> faults.Reply:
        """A pre-confirmation: the block that is named does not exist, and the one that comes has another hash."""
        transaction = shop.dev.rpc("eth_sendRawTransaction", *request["params"])
        number = hex(int(shop.dev.rpc("eth_blockNumber"), 16) + 1)
        block = {"blockNumber": number, "blockHash": "0x" + "ab" * 32}
        receipt = {"transactionHash": transaction, "status": "0x1", "gasUsed": "0x1", "logs": [], **block}
        return faults.answers(receipt)(request, _)

    with shop.proxy.broken(promise, SEND[0]), meanwhile(one) as [first]:
        with no_blocks(shop.dev):
            in_pool(shop.dev)
            sent, looked = shop.asked(*SEND, "eth_getTransactionReceipt"), shop.asked("eth_getBlockByNumber")
            until(lambda: shop.asked("eth_getBlockByNumber") > looked + 2)
            assert not first.done()
            assert shop.asked(*SEND, "eth_getTransactionReceipt") == sent
        assert first.result().status_code == 200
    one.gig()


def test_a_node_that_is_behind_and_makes_things_up_misses_nothing(shop: Shop) -> None:
    """A load balancer: every second answer, more or less, is of a node that does not have the newest blocks."""
    chance = Random(1)

    def behind(request: Json, forward: faults.Forward) -> faults.Reply:
        if chance.random() < 0.5:
            return forward()
        if request["method"] != "eth_getLogs":
            return faults.answers(None)(request, forward)
        if "blockHash" in request["params"][0]:
            return faults.refuses(-32000, "unknown block")(request, forward)
        return faults.answers([])(request, forward)

    sales = [sale(shop.dev) for _ in range(2)]
    late = ("eth_getBlockByNumber", "eth_getTransactionReceipt", "eth_getLogs")
    with shop.proxy.broken(behind, *late), meanwhile(*sales) as answers:
        assert {answer.result().status_code for answer in answers} <= {200, 503}
    for one in sales:
        one.gig()


def test_a_node_that_tells_of_ten_blocks_at_once_is_read_also_after_many(shop: Shop) -> None:
    one = sale(shop.dev)
    with shop.proxy.broken(faults.narrow(10), "eth_getLogs"):
        shop.dev.rpc("anvil_mine", hex(700), "0x0")
        shop.dev.send(Account.create().address, USDC, calldata(decode(one.header["PAYMENT-SIGNATURE"])["payload"]))
        one.gig()


def test_while_the_intake_holds_less_than_the_ledger_says_nothing_is_paid_out_of_it(shop: Shop) -> None:
    """As when a reorganisation has dropped a deposit, and its reward was executed all the same."""
    one = sale(shop.dev)
    until(lambda: shop.dev.usdc(shop.dev.intake) == 0)
    with shop.proxy.broken(faults.nothing_of_a_block, "eth_call"):
        gig = one.post().json()
        shop.dev.give_usdc(shop.dev.intake, PRICE - 1)
        shop.dev.rpc("evm_mine")

    def said() -> str:
        return str(shop.dev.http.get(shop.dev.url + "/readyz").json()["warnings"].get("funding", ""))

    until(lambda: f"holds {PRICE - 1} base units and should hold {PRICE}" in said())
    sent, asked = shop.asked(*SEND), shop.asked("eth_call")
    until(lambda: shop.asked("eth_call") > asked + 1)  # it has tried again
    assert shop.asked(*SEND) == sent
    assert shop.dev.usdc(gig["gig_wallet_address"]) == 0
    shop.dev.give_usdc(shop.dev.intake, PRICE)
    shop.dev.rpc("evm_mine")
    one.gig()


def test_a_transaction_that_the_pool_drops_is_sent_again_as_it_is(shop: Shop) -> None:
    one = sale(shop.dev)
    with meanwhile(one) as [first]:
        with no_blocks(shop.dev):
            [lost] = in_pool(shop.dev)
            shop.dev.rpc("anvil_dropTransaction", lost["hash"])
            [again] = in_pool(shop.dev)
            assert again["hash"] == lost["hash"]
        assert first.result().status_code == 200
    one.gig()


def test_a_transaction_whose_fee_is_too_low_is_outbid_under_its_nonce(shop: Shop) -> None:
    one = sale(shop.dev)
    with meanwhile(one) as [first]:
        with no_blocks(shop.dev):
            [stuck] = in_pool(shop.dev)
            high = int(stuck["maxFeePerGas"], 16) * 3
            shop.dev.rpc("anvil_setNextBlockBaseFeePerGas", hex(high))
            shop.dev.rpc("evm_mine")
            [better] = until(lambda: [t for t in in_pool(shop.dev) if t["hash"] != stuck["hash"]])
            assert better["nonce"] == stuck["nonce"]
            assert better["input"] == stuck["input"]
            assert int(better["maxFeePerGas"], 16) > high
        assert first.result().status_code == 200
    one.gig()
    kept = shop.rows(
        "select hash from attempts where slot_id = (select slot_id from attempts where hash = ?)", stuck["hash"]
    )
    assert {(stuck["hash"],), (better["hash"],)} <= set(kept)
    shop.dev.rpc("anvil_setNextBlockBaseFeePerGas", hex(10**9))
    shop.dev.rpc("evm_mine")


def test_a_nonce_that_somebody_else_used_costs_a_slot_and_nothing_else(shop: Shop) -> None:
    one = sale(shop.dev)
    with meanwhile(one) as [first]:
        with no_blocks(shop.dev):
            [ours] = in_pool(shop.dev)
            relayer = next(r for r in (shop.relayer(0), shop.relayer(1)) if r.address.lower() == ours["from"].lower())
            foreign: Json = {
                "chainId": 8453,
                "nonce": int(ours["nonce"], 16),
                "to": relayer.address,
                "gas": 21_000,
                "maxFeePerGas": int(ours["maxFeePerGas"], 16) * 2,
                "maxPriorityFeePerGas": int(ours["maxPriorityFeePerGas"], 16) * 2,
            }
            raw = relayer.sign_transaction(foreign).raw_transaction
            shop.dev.rpc("eth_sendRawTransaction", "0x" + bytes(raw).hex())
        assert first.result().status_code in (200, 503)
    one.gig()
    assert ("lost",) in shop.rows("select state from slots where relayer = ?", relayer.address.lower())


def test_a_block_that_is_smaller_than_a_batch_takes_smaller_ones(shop: Shop) -> None:
    sales = [sale(shop.dev) for _ in range(20)]
    shop.dev.rpc("evm_setBlockGasLimit", hex(1_000_000))
    try:
        shop.dev.rpc("evm_mine")
        with meanwhile(*sales) as answers:
            assert {answer.result().status_code for answer in answers} <= {200, 503}
        for one in sales:
            one.gig()
    finally:
        shop.dev.rpc("evm_setBlockGasLimit", hex(120_000_000))
        shop.dev.rpc("evm_mine")


def test_a_batch_that_no_block_takes_any_more_is_taken_back_and_sent_in_parts(shop: Shop) -> None:
    sales = [sale(shop.dev) for _ in range(20)]
    try:
        with meanwhile(*sales) as answers:
            with no_blocks(shop.dev):
                in_pool(shop.dev, 2)
                # Both relayers were under way; now they take what has come up meanwhile.
                shop.dev.rpc("evm_mine")
                until(lambda: [t for t in in_pool(shop.dev) if int(t["gas"], 16) > 600_000])
                shop.dev.rpc("evm_setBlockGasLimit", hex(600_000))
            assert {answer.result().status_code for answer in answers} <= {200, 503}
        for one in sales:
            one.gig()
        assert ("filled",) in shop.rows("select state from slots")
    finally:
        shop.dev.rpc("evm_setBlockGasLimit", hex(120_000_000))
        shop.dev.rpc("evm_mine")


@pytest.mark.parametrize("lever", ["pause", "blacklist"])
def test_while_the_token_stands_still_nobody_is_refused_or_charged(shop: Shop, lever: str) -> None:
    one = sale(shop.dev)
    on, off = {"pause": ("0x8456cb59", "0x3f4ba83a"), "blacklist": ("0xf9f92be4", "0x1a895266")}[lever]
    account = "" if lever == "pause" else shop.dev.intake[2:].lower().rjust(64, "0")
    shop.dev.send(Account.create().address, USDC, on + account)
    try:
        answer = one.post()
        assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
        ready = until(lambda: (r := shop.dev.http.get(shop.dev.url + "/readyz")).status_code == 503 and r.json())
        assert "token" in ready["problems"]
        assert shop.dev.usdc(one.buyer.address) == PRICE
    finally:
        shop.dev.send(Account.create().address, USDC, off + account)
    one.gig()


def test_a_token_that_returns_false_instead_of_reverting_has_moved_nothing(shop: Shop) -> None:
    one = sale(shop.dev)
    code = shop.dev.rpc("eth_getCode", USDC, "latest")
    with meanwhile(one) as [first]:
        try:
            with no_blocks(shop.dev):
                in_pool(shop.dev)
                # PUSH1 32 PUSH1 0 RETURN: whatever is asked, the answer is no.
                shop.dev.rpc("anvil_setCode", USDC, "0x60206000f3")
            assert first.result().status_code == 503
        finally:
            shop.dev.rpc("anvil_setCode", USDC, code)
    one.gig()
