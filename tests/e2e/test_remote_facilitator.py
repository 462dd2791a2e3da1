"""Purchases through a remote facilitator: the official SDK's, and ones that err, lie, stall and fall over."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Timer
from typing import Any

import httpx
import pytest
from eth_account import Account

from tests.e2e.facilitator_service import official_facilitator
from tests.e2e.odd_facilitator import STRANGER, OddFacilitator, Reply, reply, settled, transaction_of, valid
from tests.support import ledgers
from tests.support.harness import (
    CREATE,
    Chain,
    Dev,
    Json,
    decode,
    encode,
    gig_terms,
    payload_v2,
    payment_header,
    payment_header_v1,
    running,
    serve_settings,
    served,
    until,
)
from x402_gig.server.wiring import READ_INTERVAL_S

PRICE = 11_000_000
# The least there is: a buyer is held six seconds longer than that.
SHORT_S = 10


@pytest.fixture(scope="module")
def official(chain: Chain) -> Iterator[Dev]:
    """A server that has its payments executed by the official SDK's facilitator."""
    commission = Account.create().address
    with (
        official_facilitator(chain.rpc_url) as url,
        served(chain, facilitator=url, commission_address=commission) as shop,
    ):
        shop.commission = commission
        yield shop


@pytest.fixture(scope="module")
def odd_service(chain: Chain) -> Iterator[OddFacilitator]:
    facilitator = OddFacilitator(lambda payload: settled(execute(chain, payload)))
    yield facilitator
    facilitator.stop()


@pytest.fixture(scope="module")
def odd_shop(chain: Chain, odd_service: OddFacilitator) -> Iterator[Dev]:
    with served(chain, facilitator=odd_service.url, max_timeout_s=SHORT_S) as shop:
        yield shop


@pytest.fixture
def odd(odd_service: OddFacilitator) -> OddFacilitator:
    """Honest until the test says otherwise."""
    odd_service.reset()
    return odd_service


@pytest.fixture
def shop(odd_shop: Dev, odd: OddFacilitator) -> Dev:
    """A server whose facilitator is `odd`."""
    return odd_shop


def execute(chain: Chain, payload: Json) -> str:
    """Broadcast a payment and wait until it is mined; the transaction's hash."""
    receipt = chain.send(**transaction_of(payload))
    assert receipt["status"] == "0x1", receipt
    return str(receipt["transactionHash"])


def broadcast(chain: Chain, payload: Json) -> str:
    """Broadcast a payment; the transaction's hash."""
    call = transaction_of(payload)
    chain.rpc("anvil_setBalance", STRANGER, hex(10**20))
    chain.rpc("anvil_impersonateAccount", STRANGER)
    transaction = {"from": STRANGER, "to": call["to"], "data": call["data"], "gas": hex(500_000)}
    return str(chain.rpc("eth_sendTransaction", transaction))


class Purchase:
    """A buyer with exactly enough for one gig, its terms and its signed payment."""

    def __init__(self, shop: Dev, units: int = PRICE, **authorization: Any) -> None:
        self.shop = shop
        self.buyer = shop.buyer(units)
        self.terms = gig_terms()
        self.payload = payload_v2(self.buyer, shop.quote(self.terms), **authorization)
        self.header = {"PAYMENT-SIGNATURE": encode(self.payload)}
        self.nonce = self.payload["payload"]["authorization"]["nonce"]

    def post(self) -> httpx.Response:
        return self.shop.post(self.terms, self.header)

    def leave(self, seconds: float = 1) -> None:
        """Post and hang up before the answer."""
        with pytest.raises(httpx.ReadTimeout):
            self.shop.http.post(self.shop.url + CREATE, json=self.terms, headers=self.header, timeout=seconds)

    @property
    def paid(self) -> int:
        return PRICE - self.shop.usdc(self.buyer.address)


def assert_bought(answer: httpx.Response, purchase: Purchase) -> None:
    assert answer.status_code == 200, answer.text
    assert purchase.paid == PRICE
    gig = purchase.shop.gig(answer.json()["gig_id"])
    assert gig["status"] == "active"


def assert_try_again(answer: httpx.Response, purchase: Purchase, reason: str) -> None:
    assert (answer.status_code, answer.json()["reason"]) == (503, reason), answer.text
    assert int(answer.headers["Retry-After"]) > 0
    assert purchase.paid == 0


# The official SDK's facilitator.


@pytest.mark.parametrize("version", [1, 2])
def test_a_gig_is_bought_through_the_official_facilitator_and_funded_by_us(official: Dev, version: int) -> None:
    purchase = Purchase(official)
    if version == 1:
        purchase.header = payment_header_v1(purchase.payload)
    before = official.usdc(official.commission)

    answer = purchase.post()

    assert_bought(answer, purchase)
    receipt = decode(answer.headers["PAYMENT-RESPONSE" if version == 2 else "X-PAYMENT-RESPONSE"])
    assert (receipt["success"], receipt["transaction"]) == (True, answer.json()["payment"]["transaction"])
    official.funded(answer.json()["gig_id"])
    assert official.usdc(answer.json()["gig_wallet_address"]) == 10_000_000
    assert official.usdc(official.commission) - before == 1_000_000


def test_the_same_payment_again_is_the_same_gig(official: Dev) -> None:
    purchase = Purchase(official, 3 * PRICE)
    answers = [purchase.post() for _ in range(3)]
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert official.usdc(purchase.buyer.address) == 2 * PRICE


def test_twenty_purchases_at_once_each_posted_twice(official: Dev) -> None:
    purchases = [Purchase(official) for _ in range(20)]
    with ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(Purchase.post, purchases + purchases))

    for purchase, first, second in zip(purchases, answers[:20], answers[20:], strict=True):
        assert_bought(first, purchase)
        assert first.text == second.text
    assert len({answer.json()["gig_id"] for answer in answers}) == 20
    for answer in answers[:20]:
        official.funded(answer.json()["gig_id"])


def test_an_authorization_that_a_stranger_broadcasts_first_becomes_a_gig(official: Dev) -> None:
    purchase = Purchase(official)
    transaction = execute(official, purchase.payload["payload"])

    answer = purchase.post()

    assert_bought(answer, purchase)
    assert answer.json()["payment"]["transaction"] == transaction


def test_an_answer_before_the_block_costs_no_more_than_a_look_where_blocks_come_fast(
    shop: Dev, odd: OddFacilitator
) -> None:
    """Some facilitators answer once the transaction is out, or by a pre-confirmation: the block tells the rest."""

    def settle(payload: Json) -> Reply:
        Timer(0.1, broadcast, (Chain(shop.rpc_url), payload)).start()
        return settled("0x" + "00" * 32)

    def took(purchase: Purchase) -> float:
        began = time.monotonic()
        assert_bought(purchase.post(), purchase)
        return time.monotonic() - began

    odd.settle = settle
    purchases = [Purchase(shop) for _ in range(3)]
    with a_stream_of_blocks(shop):
        assert min(took(purchase) for purchase in purchases) < READ_INTERVAL_S


@contextmanager
def a_stream_of_blocks(chain: Chain) -> Iterator[None]:
    over = threading.Event()

    def mine() -> None:
        own = Chain(chain.rpc_url)
        while not over.wait(0.1):
            own.rpc("evm_mine")

    miner = threading.Thread(target=mine)
    miner.start()
    try:
        yield
    finally:
        over.set()
        miner.join()


# What our own checks refuse, whatever the facilitator would say.


def poor(shop: Dev) -> Purchase:
    return Purchase(shop, PRICE - 1)


def forged(shop: Dev) -> Purchase:
    purchase = Purchase(shop)
    other = Purchase(shop)
    purchase.payload["payload"]["signature"] = other.payload["payload"]["signature"]
    purchase.header = {"PAYMENT-SIGNATURE": encode(purchase.payload)}
    return purchase


def late(shop: Dev) -> Purchase:
    return Purchase(shop, validBefore=str(int(time.time()) + 2))


def misdirected(shop: Dev) -> Purchase:
    return Purchase(shop, to=STRANGER)


def cheap(shop: Dev) -> Purchase:
    return Purchase(shop, value=str(PRICE - 1))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (poor, "insufficient_funds"),
        (forged, "invalid_exact_evm_payload_signature"),
        (late, "invalid_exact_evm_payload_authorization_valid_before"),
        (misdirected, "invalid_exact_evm_payload_recipient_mismatch"),
        (cheap, "invalid_exact_evm_payload_authorization_value_mismatch"),
    ],
)
def test_our_own_checks_refuse_without_asking_the_facilitator(
    shop: Dev, odd: OddFacilitator, make: Callable[[Dev], Purchase], reason: str
) -> None:
    purchase = make(shop)
    held = shop.usdc(purchase.buyer.address)

    answer = purchase.post()

    assert (answer.status_code, answer.json()["error"]) == (402, reason)
    assert odd.asked == []
    assert shop.usdc(purchase.buyer.address) == held


def test_the_facilitator_gets_our_requirements_and_no_claim_of_the_clients(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)
    claims = purchase.payload | {"resource": {"url": "https://elsewhere.example"}, "extensions": {"odd": {}}}
    purchase.header = {"PAYMENT-SIGNATURE": encode(claims)}

    assert_bought(purchase.post(), purchase)

    [(_, verified), (_, asked_to_settle)] = odd.asked
    assert verified == asked_to_settle
    assert verified["x402Version"] == 2
    assert verified["paymentRequirements"] == verified["paymentPayload"]["accepted"] == shop.quote(purchase.terms)
    assert set(verified["paymentPayload"]) == {"x402Version", "accepted", "payload"}


# Starting.


@pytest.mark.parametrize("offered", [{"network": "eip155:84532"}, {"x402Version": 1}])
def test_serve_does_not_start_with_a_facilitator_that_cannot_settle_for_it(chain: Chain, offered: Json) -> None:
    facilitator = OddFacilitator(lambda _: None)
    facilitator.kinds = [facilitator.kinds[0] | offered]
    with (
        pytest.raises(AssertionError, match="does not support x402 version 2, scheme exact on eip155:8453"),
        served(chain, facilitator=facilitator.url),
    ):
        pass
    facilitator.stop()


def test_serve_does_not_start_with_a_facilitator_that_is_down(chain: Chain) -> None:
    facilitator = OddFacilitator(lambda _: None)
    facilitator.stop()
    with (
        pytest.raises(AssertionError, match="/supported: the facilitator did not answer"),
        served(chain, facilitator=facilitator.url),
    ):
        pass


# Verifying.


def test_a_refusal_counts_whatever_its_http_status(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)
    odd.verify = lambda _: reply({"isValid": False, "invalidReason": "insufficient_funds"}, 400)

    answer = purchase.post()

    assert (answer.status_code, answer.json()["error"]) == (402, "insufficient_funds")
    assert decode(answer.headers["PAYMENT-RESPONSE"])["errorReason"] == "insufficient_funds"
    assert odd.times("/settle") == 0
    assert purchase.paid == 0
    odd.reset()
    assert_bought(purchase.post(), purchase)


def test_reasons_of_the_facilitators_own_are_one_label_of_the_metrics(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)
    for number in range(3):
        odd.verify = lambda _, n=number: reply({"isValid": False, "invalidReason": f"case_{n}"}, 400)  # type: ignore[misc]
        assert purchase.post().json()["error"] == "refused_by_facilitator"
    metrics = shop.http.get(shop.url + "/metrics").text
    assert 'x402_gig_payments_total{outcome="rejected",reason="refused_by_facilitator"}' in metrics
    assert "case_" not in metrics


def test_a_facilitators_own_words_reach_no_buyer_and_its_secrets_no_log(
    chain: Chain, odd: OddFacilitator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    token, user, word = "quiet-token", "quietuser", "quietword"
    key = "0x" + "4f" * 32
    url = odd.url.replace("http://", f"http://{user}:{word}@")
    words = f"over quota: Bearer {token} of {user} {word}, key {key}"
    env = serve_settings(chain, tmp_path, facilitator=url, facilitator_token=token, max_timeout_s=SHORT_S)
    with running("serve", env=env, cwd=tmp_path) as (_, line):
        shop = Dev(chain.rpc_url, url=line["url"])
        odd.verify = lambda _: reply({"isValid": False, "invalidReason": words}, 401)
        refused = Purchase(shop).post()
        odd.reset()
        odd.settle = lambda _: reply({"success": False, "errorReason": words, "transaction": f"{key} {token}"})
        Purchase(shop).post()

    assert (refused.status_code, refused.json()["error"]) == (402, "refused_by_facilitator")
    assert decode(refused.headers["PAYMENT-RESPONSE"])["errorReason"] == "refused_by_facilitator"
    logged = capsys.readouterr().err
    assert logged.count("over quota") == 2
    assert [secret for secret in (token, user, word, key) if secret in logged + refused.text] == []


HUGE = b'{"isValid": true, "payer": "' + b"0" * 10_000_000 + b'"}'


@pytest.mark.parametrize(
    "answered",
    [
        reply(b"<html>Bad gateway</html>", 200),
        reply(b"", 200),
        reply({"isValid": "perhaps"}),
        reply({"error": "internal"}, 500),
        reply(b"", 307, Location="/settle"),
        reply(HUGE),
        None,
    ],
    ids=["garbage", "empty", "wrong type", "500", "redirect", "huge", "dropped"],
)
def test_a_verify_without_a_verdict_is_a_503_and_the_same_header_works_later(
    shop: Dev, odd: OddFacilitator, answered: Reply
) -> None:
    purchase = Purchase(shop)
    odd.verify = lambda _: answered

    assert_try_again(purchase.post(), purchase, "facilitator_unavailable")
    assert odd.times("/settle") == 0

    odd.reset()
    assert_bought(purchase.post(), purchase)


def test_a_facilitator_that_is_down_is_a_503_and_the_same_header_works_later(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)
    odd.stop()
    assert_try_again(purchase.post(), purchase, "facilitator_unavailable")
    # Nothing was written: other terms are free to use this payment.
    purchase.terms = gig_terms()
    odd.start()
    assert_bought(purchase.post(), purchase)


def test_a_payment_executed_between_our_check_and_the_facilitators_is_a_gig(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)

    def too_late(payload: Json) -> Reply:
        execute(shop, payload)
        return reply({"isValid": False, "invalidReason": "invalid_exact_evm_nonce_already_used"}, 400)

    odd.verify = too_late

    assert_bought(purchase.post(), purchase)
    assert odd.times("/settle") == 0


# Settling.


def test_a_pending_settlement_is_held_until_its_deposit_is_on_chain(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)

    def pending(payload: Json) -> Reply:
        transaction = broadcast(shop, payload)
        failure = {"success": False, "errorReason": "settlement_pending", "transaction": transaction, "network": ""}
        return reply(failure, 500)

    odd.settle = pending
    shop.rpc("evm_setAutomine", False)
    try:
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(purchase.post)
            until(lambda: shop.rpc("txpool_status")["pending"] != "0x0")
            with pytest.raises(TimeoutError):
                answer.result(timeout=1)
            shop.rpc("evm_mine")
            assert_bought(answer.result(), purchase)
    finally:
        shop.rpc("evm_setAutomine", True)
    assert odd.times("/settle") == 1


def test_a_settlement_whose_answer_is_lost_is_a_gig(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)

    def drop(payload: Json) -> Reply:
        execute(shop, payload)
        return None

    odd.settle = drop
    assert_bought(purchase.post(), purchase)
    assert odd.times("/settle") == 1


def test_a_failed_settlement_is_not_a_refusal_and_may_still_be_executed(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)
    odd.settle = lambda _: reply({"success": False, "errorReason": "unexpected_settle_error", "transaction": None})

    began = time.monotonic()
    assert_try_again(purchase.post(), purchase, "outcome_unknown")
    assert time.monotonic() - began < SHORT_S
    execute(shop, purchase.payload["payload"])

    assert_bought(purchase.post(), purchase)
    assert odd.times("/settle") == 1


FAILURE = reply({"success": False, "errorReason": "unexpected_settle_error", "transaction": ""}, 500)


def test_a_facilitator_that_failed_is_asked_again_when_the_buyer_repeats_the_header(
    shop: Dev, odd: OddFacilitator
) -> None:
    purchase = Purchase(shop)
    odd.settle = lambda _: FAILURE
    refused = purchase.post()
    assert_try_again(refused, purchase, "outcome_unknown")
    assert "the facilitator is asked again" in refused.json()["error"]

    odd.reset()
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: purchase.post(), range(5)))

    assert len({answer.text for answer in answers}) == 1
    assert_bought(answers[0], purchase)
    assert odd.times("/settle") == 1


def test_a_facilitator_that_only_fails_is_asked_three_times_in_all(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)
    odd.settle = lambda _: FAILURE
    began = time.monotonic()
    answers = [purchase.post() for _ in range(5)]
    assert time.monotonic() - began < SHORT_S
    for answer in answers:
        assert_try_again(answer, purchase, "outcome_unknown")
    assert ["is asked again" in answer.json()["error"] for answer in answers] == [True, True, False, False, False]
    assert odd.times("/settle") == 3

    execute(shop, purchase.payload["payload"])
    assert_bought(purchase.post(), purchase)
    assert odd.times("/settle") == 3


def test_a_failure_is_not_asked_again_while_the_payer_has_no_money(shop: Dev, odd: OddFacilitator) -> None:
    purchase = Purchase(shop)
    odd.settle = lambda _: FAILURE
    assert_try_again(purchase.post(), purchase, "outcome_unknown")
    shop.give_usdc(purchase.buyer.address, 0)
    answer = purchase.post()
    assert (answer.status_code, answer.json()["reason"]) == (503, "outcome_unknown")
    assert odd.times("/settle") == 1
    shop.give_usdc(purchase.buyer.address, PRICE)
    odd.settle = lambda payload: settled(execute(shop, payload))
    assert_bought(purchase.post(), purchase)


@pytest.mark.parametrize(
    "unclear",
    [
        None,
        reply(b"<html>Bad gateway</html>", 502),
        reply({"success": False, "transaction": "0x" + "ab" * 32}),
        reply({"success": True, "transaction": "0x" + "ab" * 32}),
        reply({"success": True, "transaction": ""}),
    ],
    ids=["dropped", "502", "a failure with a transaction", "a success", "a success without a transaction"],
)
def test_a_result_that_is_not_clear_is_never_asked_again(shop: Dev, odd: OddFacilitator, unclear: Reply) -> None:
    purchase = Purchase(shop)
    odd.settle = lambda _: unclear
    for _ in range(2):
        purchase.leave(0.5)
    assert odd.times("/settle") == 1


def elsewhere(shop: Dev, purchase: Purchase, **changes: Any) -> str:
    """Execute another authorization of the same payer; its transaction."""
    shop.give_usdc(purchase.buyer.address, 2 * PRICE)
    other = payload_v2(purchase.buyer, shop.quote(purchase.terms), **changes)
    transaction = execute(shop, other["payload"])
    shop.give_usdc(purchase.buyer.address, PRICE)
    return transaction


def test_a_settlement_counts_only_when_the_chain_shows_it(shop: Dev, odd: OddFacilitator) -> None:
    expires = str(int(time.time()) + SHORT_S)
    purchases = [Purchase(shop, validBefore=expires) for _ in range(4)]
    lies = [
        "0x" + "ab" * 32,
        elsewhere(shop, purchases[1], to=STRANGER),
        elsewhere(shop, purchases[2], value=str(PRICE - 1)),
        elsewhere(shop, purchases[3]),
    ]
    claimed = {purchase.nonce: lie for purchase, lie in zip(purchases, lies, strict=True)}
    odd.settle = lambda payload: settled(claimed[payload["authorization"]["nonce"]])

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(Purchase.post, purchases))

    for purchase, answer in zip(purchases, answers, strict=True):
        assert_try_again(answer, purchase, "outcome_unknown")
    # By now they are expired; it takes a block to prove it.
    shop.rpc("evm_mine")
    for purchase in purchases:
        refused = purchase.post()
        assert refused.status_code == 402, refused.text
        assert refused.json()["error"] == "invalid_exact_evm_payload_authorization_valid_before"
        assert (purchase.paid, odd.times("/settle", purchase.nonce)) == (0, 1)


def test_settle_is_asked_once_also_when_the_buyer_repeats_the_header_and_serve_starts_again(
    chain: Chain, odd: OddFacilitator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {
        "seed": Account.create_with_mnemonic()[1],
        "commission_address": Account.create().address,
        "database_url": ledgers.new(tmp_path),
        "facilitator": odd.url,
    }
    odd.settle = lambda _: None
    with served(chain, **settings) as shop:
        purchase = Purchase(shop)
        purchase.leave()
        purchase.leave()
        until(lambda: odd.times("/settle") == 1)
    with served(chain, **settings) as shop:
        purchase.shop = shop
        purchase.leave()
        execute(chain, purchase.payload["payload"])
        assert_bought(purchase.post(), purchase)
        shop.funded(purchase.post().json()["gig_id"])
    assert odd.times("/settle") == 1


def test_one_payment_for_two_orders_at_once_buys_one_of_them(shop: Dev, odd: OddFacilitator) -> None:
    one, other = Purchase(shop, 2 * PRICE), Purchase(shop)
    together = threading.Barrier(2)

    def verify(payload: Json) -> Reply:
        together.wait(30)
        return valid(payload)

    odd.verify = verify
    other.header = one.header
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(Purchase.post, [one, other]))

    assert sorted(answer.status_code for answer in answers) == [200, 409]
    assert shop.usdc(one.buyer.address) == PRICE
    assert odd.times("/settle") == 1


def test_a_forged_copy_of_a_payment_under_way_gets_no_gig_and_does_no_harm(shop: Dev, odd: OddFacilitator) -> None:
    purchase, go_on = Purchase(shop), threading.Event()
    copy = payload_v2(Account.create(), shop.quote(purchase.terms))
    copy["payload"]["authorization"] = purchase.payload["payload"]["authorization"]

    def stall(payload: Json) -> Reply:
        go_on.wait(30)
        return valid(payload)

    odd.verify = stall
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(purchase.post)
        until(lambda: odd.times("/verify") == 1)
        refused = shop.post(purchase.terms, {"PAYMENT-SIGNATURE": encode(copy)})
        go_on.set()
        assert_bought(answer.result(), purchase)

    assert (refused.status_code, refused.json()["error"]) == (402, "invalid_exact_evm_payload_signature")


@pytest.mark.parametrize("left", [0, PRICE], ids=["broke", "rich"])
@pytest.mark.parametrize("stalled", ["verify", "settle"])
def test_a_new_signature_after_hanging_up_gets_the_first_payments_gig(
    shop: Dev, odd: OddFacilitator, stalled: str, left: int
) -> None:
    first, go_on = Purchase(shop, PRICE + left), threading.Event()
    honest = getattr(odd, stalled)

    def stall(payload: Json) -> Reply:
        go_on.wait(30)
        return honest(payload)  # type: ignore[no-any-return]

    setattr(odd, stalled, stall)
    first.leave()
    # Answered after the server has seen the buyer leave.
    requirements = shop.quote(first.terms)
    go_on.set()
    until(lambda: shop.usdc(first.buyer.address) == left)

    second = payment_header(first.buyer, requirements)
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: shop.post(first.terms, second), range(5)))

    assert {answer.status_code for answer in answers} == {200}
    assert {answer.text for answer in answers} == {first.post().text}
    assert shop.usdc(first.buyer.address) == left
    assert odd.times("/settle") == 1
