"""Hostile and unlucky buyers: who pays has the gig, who does not has none, and the neighbours notice nothing."""

import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_utils.crypto import keccak

from tests.e2e.attacks import (
    FIRST,
    LAST,
    PRICE,
    STRANGER,
    Answer,
    Batch,
    Post,
    Purchase,
    batch,
    become,
    buyer,
    calldata,
    delegate,
    deploy,
    execute,
    inner_calls,
    move_away,
    other_authorization,
    payload_of,
    pool,
    random_nonce,
    receipt,
    submit,
    succeeded,
    transfer_call,
    wallet,
)
from tests.support.faults import Forward, RpcProxy, Then, refuses, rpc_proxy, status
from tests.support.harness import USDC, Chain, Dev, Json, payment_header_v1, served, until
from tests.support.servers import Postgres
from x402_gig.evm import batcher

PREFIX = "invalid_exact_evm"
CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
FICKLE_ANSWER = "0x" + keccak(text="answer()")[:4].hex()
MODELS = ("LyingWallet", "GasBurner", "BombWallet")

# On both databases.
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def proxy(chain: Chain) -> Iterator[RpcProxy]:
    """The shop's connection to the chain, where a test can act while a question is being answered."""
    with rpc_proxy(chain) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def shop(database: str, chain: Chain, proxy: RpcProxy) -> Iterator[Dev]:
    """A server with one relayer, so that what waits is one batch. None of the attacks leaves it with a complaint."""
    with served(chain, relayers=1, rpc_url=proxy.chain.rpc_url) as shop:
        shop.intake = shop.quote({})["payTo"]
        yield shop
        until(lambda: shop.http.get(shop.url + "/readyz").json() == {"status": "ready", "problems": {}, "warnings": {}})


@pytest.fixture(scope="module")
def models(chain: Chain) -> dict[str, str]:
    return {name: deploy(chain, name) for name in (*MODELS, "DelegatedWallet")}


def assert_gig(purchase: Purchase, answer: Answer, transaction: str = "") -> None:
    """Charged once, and the reward is in the gig's wallet; the deposit is in `transaction` where that is given."""
    assert answer.transaction == (transaction or answer.transaction)
    gig = purchase.shop.funded(answer.json["gig_id"])
    assert (gig["status"], gig["payment"]["payer"]) == ("active", purchase.payer.lower())
    assert purchase.shop.usdc(gig["gig_wallet_address"]) == 10_000_000


def assert_settled(purchases: list[Purchase], answers: list[Answer], transaction: str) -> None:
    """The neighbours: each has a gig of its own out of that very transaction."""
    assert len({answer.json["gig_id"] for answer in answers}) == len(purchases) > 0
    for purchase, answer in zip(purchases, answers, strict=True):
        assert_gig(purchase, answer, transaction)
        assert purchase.shop.usdc(purchase.payer) == 0


def assert_not_charged_again(purchase: Purchase) -> None:
    """A buyer who held twice the price."""
    assert purchase.shop.usdc(purchase.payer) == PRICE


def assert_not_charged(purchase: Purchase) -> None:
    assert purchase.shop.usdc(purchase.payer) == PRICE


def transactions_with(chain: Chain, purchase: Purchase, since: str) -> list[str]:
    """The transactions that carry this payment, from that one on."""
    first, last = int(receipt(chain, since)["blockNumber"], 16), int(chain.rpc("eth_blockNumber"), 16)
    blocks = [chain.rpc("eth_getBlockByNumber", hex(number), True) for number in range(first, last + 1)]
    return [sent["hash"] for block in blocks for sent in block["transactions"] if purchase.is_in(sent["input"])]


def settled_balance(shop: Dev) -> int:
    """What the intake holds once it has paid on all that it is to pay on."""
    last = buyer(shop)
    assert_gig(last, last.pay())
    return shop.usdc(shop.intake)


# Somebody else is quicker.

BEFORE, BETWEEN, AFTER = "before the simulation", "before it is written down", "after it was sent"


def sent_while(
    moment: str, waiting: Batch, proxy: RpcProxy, victim: Purchase, act: Callable[[], str]
) -> tuple[str, str]:
    """Send the batch, and `act` at this moment of the victim's way; the hashes of both transactions."""
    if moment == BEFORE:
        acted = act()
        return waiting.send(victim), acted
    if moment == AFTER:
        return waiting.send(), act()
    done: list[str] = []

    def act_on_answer(request: Json, forward: Forward) -> Json:
        answer = forward()
        if not done and victim.is_in(request["params"][0]["data"]):
            done.append(act())
            let_it_be_read(waiting.shop, proxy)
        return answer

    with proxy.broken(act_on_answer, "eth_call"):
        sent = waiting.send()
    return sent, done[0]


def let_it_be_read(shop: Dev, proxy: RpcProxy) -> None:
    """Mine, and wait until the server has asked for that block's logs and for what comes after them."""
    shop.rpc("evm_mine")
    for method in ("eth_getLogs", "eth_getBlockByNumber", "eth_getBlockByNumber"):
        until(partial(_is_asked_again, proxy, method, proxy.calls[method]))


def _is_asked_again(proxy: RpcProxy, method: str, before: int) -> bool:
    return proxy.calls[method] > before


@pytest.mark.parametrize("moment", [BEFORE, BETWEEN, AFTER, "behind ours"])
def test_a_payment_that_a_stranger_executes_is_one_gig_whenever_that_happens(
    shop: Dev, proxy: RpcProxy, moment: str
) -> None:
    one, paid, other = buyer(shop), buyer(shop, 2 * PRICE), buyer(shop)
    is_late = moment == "behind ours"
    with batch(shop, one, paid, other) as waiting:
        execution = partial(submit, shop, STRANGER, USDC, paid.transfer, LAST if is_late else FIRST)
        sent, theirs = sent_while(AFTER if is_late else moment, waiting, proxy, paid, execution)
        first, answer, last = waiting.mine()

    assert_settled([one, other], [first, last], sent)
    assert answer.status in ([200] if moment == BEFORE or is_late else [200, 503]), answer.text
    assert succeeded(shop, theirs) != is_late
    assert_gig(paid, paid.pay_until(200), sent if is_late else theirs)
    assert_not_charged_again(paid)


def test_a_buyer_whose_payment_a_stranger_executed_signs_anew_and_has_the_same_gig(shop: Dev) -> None:
    paid = buyer(shop, 2 * PRICE)
    with batch(shop, paid) as waiting:
        waiting.send()
        theirs = submit(shop, STRANGER, USDC, paid.transfer)
        waiting.posts[0].hang_up()
        paid.sign_anew()
        again = paid.post()
        waiting.mine_all()

    assert again.answer().status in (200, 503)
    assert_gig(paid, paid.pay_until(200), theirs)
    assert_not_charged_again(paid)


def test_a_stranger_who_copies_a_whole_batch_only_pays_for_its_gas(shop: Dev) -> None:
    purchases = [buyer(shop, 2 * PRICE) for _ in range(3)]
    with batch(shop, *purchases) as waiting:
        ours = shop.rpc("eth_getTransactionByHash", waiting.send())
        theirs = submit(shop, STRANGER, ours["to"], ours["input"])
        waiting.mine()
    for purchase in purchases:
        assert_gig(purchase, purchase.pay_until(200), theirs)
        assert_not_charged_again(purchase)


@pytest.mark.parametrize("moment", [BEFORE, BETWEEN, AFTER])
def test_a_payment_that_its_payer_cancels_is_no_gig(shop: Dev, proxy: RpcProxy, moment: str) -> None:
    one, crook, other = buyer(shop), buyer(shop), buyer(shop)
    with batch(shop, one, crook, other) as waiting:
        cancel = partial(submit, shop, STRANGER, USDC, crook.cancellation)
        sent, cancelled = sent_while(moment, waiting, proxy, crook, cancel)
        first, answer, last = waiting.mine()

    assert succeeded(shop, cancelled)
    assert_settled([one, other], [first, last], sent)
    assert answer.status == (402 if moment == BEFORE else 503), answer.text
    assert crook.pay_until(402).json["error"] == f"{PREFIX}_nonce_already_used"
    assert_not_charged(crook)


@pytest.mark.parametrize("moment", [BEFORE, BETWEEN, AFTER])
def test_a_payment_without_its_money_becomes_the_gig_once_it_is_paid_all_the_same(
    shop: Dev, proxy: RpcProxy, moment: str
) -> None:
    """Whoever takes the money away and brings it back leaves an authorization that anybody may execute."""
    one, crook, other = buyer(shop), buyer(shop), buyer(shop)
    with batch(shop, one, crook, other) as waiting:
        sent, _ = sent_while(moment, waiting, proxy, crook, lambda: move_away(shop, crook.payer))
        first, answer, last = waiting.mine()
    assert_settled([one, other], [first, last], sent)
    assert shop.usdc(crook.payer) == 0
    if moment == BEFORE:
        assert (answer.status, answer.json["error"]) == (402, "insufficient_funds")
    else:
        # Never a refusal while the authorization is alive.
        assert answer.status == crook.pay().status == 503

    shop.give_usdc(crook.payer, PRICE)
    theirs = execute(shop, crook.transfer)

    assert_gig(crook, crook.pay_until(200), theirs)
    assert shop.usdc(crook.payer) == 0


def test_nobody_is_refused_for_a_use_of_the_nonce_that_is_not_read_yet(shop: Dev, proxy: RpcProxy) -> None:
    paid = buyer(shop)
    with batch(shop, paid) as waiting:
        waiting.send()
        move_away(shop, paid.payer)
        [answer] = waiting.mine()
    assert answer.status == 503
    asked: list[Json] = []

    def note(request: Json, forward: Forward) -> Json:
        if paid.is_in(request["params"][0]["data"]):
            asked.append(request)
        return forward()

    shop.give_usdc(paid.payer, PRICE)
    with proxy.broken(status(429), "eth_getLogs"), proxy.broken(note, "eth_call"):
        theirs = execute(shop, paid.transfer)
        asked.clear()
        # The reconciler looks again and again.
        until(lambda: len(asked) >= 2)
        post = paid.post()

    assert post.answer().status in (200, 503)
    assert_gig(paid, paid.pay_until(200), theirs)


def test_a_deposit_becomes_the_gig_also_when_its_order_comes_after_the_authorization_has_expired(shop: Dev) -> None:
    late = buyer(shop, 2 * PRICE, validBefore=str(int(time.time()) + 2))
    theirs = execute(shop, late.transfer)
    until(lambda: time.time() > int(late.message["validBefore"]))

    assert_gig(late, late.pay_until(200), theirs)
    assert_not_charged_again(late)


def test_a_deposit_by_an_authorization_that_never_expires_becomes_the_gig(shop: Dev) -> None:
    endless = buyer(shop, 2 * PRICE, validBefore=str(2**256 - 1))
    theirs = execute(shop, endless.transfer)

    assert_gig(endless, endless.pay_until(200), theirs)
    assert_not_charged_again(endless)


def test_a_second_authorization_that_is_paid_already_does_not_have_the_first_one_paid_as_well(shop: Dev) -> None:
    """The first failed on chain and its buyer gave up on it; the second is executed by somebody else."""
    twice = buyer(shop)
    with batch(shop, twice) as waiting:
        waiting.send()
        move_away(shop, twice.payer)
        [answer] = waiting.mine()
    assert answer.status == 503
    shop.give_usdc(twice.payer, 2 * PRICE)
    twice.sign_anew()
    theirs = execute(shop, twice.transfer)

    assert_gig(twice, twice.pay_until(200), theirs)
    assert_not_charged_again(twice)


def test_whoever_signs_anew_when_the_first_try_failed_pays_with_the_first_signature_alone(shop: Dev) -> None:
    """Both signatures live, and whoever has seen the first one on chain can execute it."""
    twice = buyer(shop)
    with batch(shop, twice) as waiting:
        waiting.send()
        move_away(shop, twice.payer)
        [answer] = waiting.mine()
    assert answer.status == 503
    shop.give_usdc(twice.payer, 2 * PRICE)
    first = twice.transfer
    twice.sign_anew()

    assert_gig(twice, twice.pay_until(200))
    assert not succeeded(shop, submit(shop, STRANGER, USDC, first))
    assert_not_charged_again(twice)


@pytest.mark.parametrize("order", ["himself first", "himself last"])
@pytest.mark.parametrize("moment", [BEFORE, AFTER])
def test_two_authorizations_in_one_transaction_are_one_gig_when_one_is_to_the_payer_himself(
    shop: Dev, order: str, moment: str
) -> None:
    neighbour, honest = buyer(shop), buyer(shop, 2 * PRICE)
    second = Purchase(shop, honest.signer)
    to_himself = transfer_call(*other_authorization(second, to=second.payer))
    calls = [to_himself, honest.transfer] if order == "himself first" else [honest.transfer, to_himself]
    both = calldata("execute(address,uint256,bytes[])", USDC, 200_000, [bytes.fromhex(call[2:]) for call in calls])

    with batch(shop, neighbour, honest, second) as waiting:
        left_out = [honest, second] if moment == BEFORE else []
        sent = "" if left_out else waiting.send()
        theirs = submit(shop, STRANGER, batcher.address(), both)
        sent = sent or waiting.send(*left_out)
        answers = waiting.mine()

    assert_settled([neighbour], answers[:1], sent)
    assert second.pay_until(402).json["error"] == f"{PREFIX}_nonce_already_used"
    assert_gig(honest, honest.pay_until(200), theirs)
    assert_not_charged_again(honest)


def test_a_second_authorization_with_the_same_nonce_and_another_value_is_no_gig(shop: Dev) -> None:
    """One unit goes to the intake under the nonce of a payment of eleven USDC."""
    neighbour, crook = buyer(shop), buyer(shop)
    with batch(shop, neighbour, crook) as waiting:
        sent = waiting.send()
        submit(shop, STRANGER, USDC, transfer_call(*other_authorization(crook, value="1")))
        first, answer = waiting.mine()
    assert_settled([neighbour], [first], sent)
    assert answer.status == 503
    assert crook.pay_until(402).json["error"] == f"{PREFIX}_nonce_already_used"
    assert shop.usdc(crook.payer) == PRICE - 1


@pytest.mark.parametrize("spelling", ["high s", "compact", "bytes after it"])
def test_a_replay_with_a_malleated_signature_gets_nothing(shop: Dev, spelling: str) -> None:
    bought = buyer(shop, 2 * PRICE)
    assert bought.pay().status == 200
    raw = bytes.fromhex(bought.signature[2:])
    r, s, parity = raw[:32], int.from_bytes(raw[32:64]), raw[64] - 27
    spelt = {
        "high s": r + (CURVE_ORDER - s).to_bytes(32) + bytes([28 - parity]),
        "compact": r + (s | parity << 255).to_bytes(32),
        "bytes after it": raw + bytes(32),
    }
    bought.payload["payload"]["signature"] = "0x" + spelt[spelling].hex()

    answer = bought.pay()

    assert (answer.status, answer.json["error"]) == (402, f"{PREFIX}_payload_signature")
    assert_not_charged_again(bought)


def test_one_payment_for_two_orders_at_once_is_the_gig_of_one_and_a_conflict_for_the_other(shop: Dev) -> None:
    """Its money is away and back within one block: the transaction fails, and the second order's turn would pass."""
    orders = [paid := buyer(shop), Purchase(shop, paid.signer)]
    orders[1].payload = paid.payload
    friend = shop.buyer(PRICE).address
    with batch(shop, *orders) as waiting:
        waiting.send()
        move_away(shop, paid.payer)
        back = submit(shop, friend, USDC, calldata("transfer(address,uint256)", paid.payer, PRICE), LAST)
        answers = [answer.status for answer in waiting.mine()]

    assert succeeded(shop, back)
    assert sorted(answers) == [409, 503]
    first, second = orders if answers == [503, 409] else reversed(orders)
    assert_gig(first, first.pay_until(200))
    assert second.pay().status == 409


def test_of_two_payments_in_one_request_one_is_taken(shop: Dev) -> None:
    newer, older = buyer(shop), buyer(shop)
    both = newer.header | payment_header_v1(older.payload)
    answer = Post(shop, newer.terms, both).answer()
    assert_gig(newer, answer)
    assert shop.usdc(newer.payer) == 0
    assert_not_charged(older)


@pytest.mark.parametrize("nonce", ["0x" + "00" * 32, "0x" + "ff" * 32])
def test_payers_may_share_a_nonce(shop: Dev, nonce: str) -> None:
    purchases = [buyer(shop, nonce=nonce) for _ in range(3)]
    with batch(shop, *purchases) as waiting:
        sent = waiting.send()
        answers = waiting.mine()
    assert_settled(purchases, answers, sent)


def test_nobody_pays_in_the_name_of_an_account_that_cannot_sign(shop: Dev) -> None:
    """Among them the precompile that answers with its question, which begins with the yes of ERC-1271."""
    crook = buyer(shop)
    nobody, echo = "0x" + "00" * 20, "0x" + "00" * 19 + "04"
    for payer in (nobody, echo, USDC, batcher.address(), shop.intake):
        shop.give_usdc(payer, shop.usdc(payer) + PRICE)
        held = shop.usdc(payer)
        for signature in ("0x", "0x" + "00" * 65, crook.signature):
            crook.payload["payload"] = {"signature": signature, "authorization": crook.message | {"from": payer}}
            answer = crook.pay()
            assert (answer.status, answer.json["error"]) == (402, f"{PREFIX}_payload_signature"), payer
        assert shop.usdc(payer) == held


# Payers with code.


@pytest.mark.parametrize("name", MODELS)
def test_contract_wallets_that_misbehave_are_refused_and_their_neighbours_pay(shop: Dev, name: str) -> None:
    one, crook, other = wallet(shop, "Wallet1271"), wallet(shop, name), wallet(shop, "Wallet1271")
    with batch(shop, one, crook, other) as waiting:
        sent = waiting.send(crook)
        first, answer, last = waiting.mine()
    assert_settled([one, other], [first, last], sent)
    assert (answer.status, answer.json["error"]) == (402, f"{PREFIX}_payload_signature")
    assert_not_charged(crook)


@pytest.mark.parametrize("name", MODELS)
def test_a_contract_wallet_that_changes_its_mind_in_between_is_alone_with_that(
    shop: Dev, models: dict[str, str], name: str
) -> None:
    one, crook, other = wallet(shop, "Wallet1271"), wallet(shop, "Turncoat"), wallet(shop, "Wallet1271")
    honest = deploy(shop, "Wallet1271", crook.signer.address)
    assert succeeded(shop, become(shop, crook.payer, honest))
    with batch(shop, one, crook, other) as waiting:
        sent = waiting.send()
        turned = become(shop, crook.payer, models[name])
        first, answer, last = waiting.mine()

    assert succeeded(shop, turned)
    assert_settled([one, other], [first, last], sent)
    assert answer.status == 503, answer.text
    assert_not_charged(crook)
    # It is honest again: the same payment is the gig.
    assert succeeded(shop, become(shop, crook.payer, honest))
    assert_gig(crook, crook.pay_until(200))


def meddler(shop: Dev, victim: Purchase) -> Purchase:
    """A wallet that tops the victim up and executes the victim's payment, when it is asked for its signature."""
    top_up = calldata("mint(address,uint256)", victim.payer, PRICE)
    deeds = [bytes.fromhex(call[2:]) for call in (top_up, victim.transfer)]
    deed = bytes.fromhex(calldata("execute(address,uint256,bytes[])", USDC, 150_000, deeds)[2:])
    crook = wallet(shop, "MeddlingWallet")
    planned = submit(shop, STRANGER, crook.payer, calldata("plan(address,bytes)", batcher.address(), deed))
    assert succeeded(shop, planned)
    return crook


def test_a_wallet_that_changes_state_in_a_simulation_has_no_neighbour_refused(shop: Dev) -> None:
    """The neighbour's payment is open, and public since it failed on chain: its money was away."""
    victim, other = wallet(shop, "Wallet1271"), wallet(shop, "Wallet1271")
    with batch(shop, victim) as waiting:
        waiting.send()
        move_away(shop, victim.payer)
        [answer] = waiting.mine()
    assert answer.status == 503
    crook = meddler(shop, victim)

    with batch(shop, crook, victim, other) as waiting:
        sent = waiting.send(crook, victim)
        refused, answer, last = waiting.mine()

    assert (refused.status, refused.json["error"]) == (402, f"{PREFIX}_payload_signature")
    assert_settled([other], [last], sent)
    assert answer.status == 503, answer.text
    # Its authorization was never used: with its money it is the gig.
    shop.give_usdc(victim.payer, PRICE)
    assert_gig(victim, victim.pay_until(200))


def test_a_wallet_that_can_tell_a_simulation_is_alone_and_is_sent_three_times_at_most(shop: Dev) -> None:
    one, crook, other = wallet(shop, "Wallet1271"), wallet(shop, "SimulationWallet"), wallet(shop, "Wallet1271")
    with batch(shop, one, crook, other) as waiting:
        sent = waiting.send()
        first, answer, last = waiting.mine()
    assert_settled([one, other], [first, last], sent)
    assert answer.status == 503

    assert [crook.pay().status for _ in range(2)] == [503] * 2
    fourth, neighbour = crook.post(), wallet(shop, "Wallet1271")
    assert_gig(neighbour, neighbour.pay())

    assert len(transactions_with(shop, crook, since=sent)) == 3
    fourth.hang_up()
    assert_not_charged(crook)


@pytest.mark.parametrize("name", MODELS)
def test_an_account_that_takes_on_such_code_in_between_is_alone_with_that(
    shop: Dev, models: dict[str, str], name: str
) -> None:
    """EIP-7702: its key has signed, and in the block it is a contract that says no, or burns all the gas it gets."""
    one, crook, other = buyer(shop), buyer(shop), buyer(shop)
    with batch(shop, one, crook, other) as waiting:
        sent = waiting.send()
        delegated = delegate(shop, crook.signer, models[name])
        first, answer, last = waiting.mine()

    assert succeeded(shop, delegated)
    assert_settled([one, other], [first, last], sent)
    assert answer.status == crook.pay().status == 503, answer.text
    assert_not_charged(crook)


def test_an_account_that_takes_on_honest_code_in_between_pays(shop: Dev, models: dict[str, str]) -> None:
    one, delegating, other = buyer(shop), buyer(shop), buyer(shop)
    with batch(shop, one, delegating, other) as waiting:
        sent = waiting.send()
        delegated = delegate(shop, delegating.signer, models["DelegatedWallet"])
        answers = waiting.mine()

    assert succeeded(shop, delegated)
    assert_settled([one, delegating, other], answers, sent)


def test_accounts_with_honest_code_pay_beside_each_other(shop: Dev, models: dict[str, str]) -> None:
    purchases = [buyer(shop), buyer(shop), wallet(shop, "Wallet1271")]
    for purchase in purchases[:2]:
        assert succeeded(shop, delegate(shop, purchase.signer, models["DelegatedWallet"]))
    with batch(shop, *purchases) as waiting:
        sent = waiting.send()
        answers = waiting.mine()

    assert_settled(purchases, answers, sent)
    assert [purchase.pay().text for purchase in purchases] == [answer.text for answer in answers]


def test_fifteen_heavy_wallets_at_once_share_a_transaction_and_plain_buyers_another(shop: Dev) -> None:
    heavy = [wallet(shop, "HeavyWallet") for _ in range(15)]
    plain = [buyer(shop) for _ in range(3)]
    with batch(shop, *heavy, *plain) as waiting:
        sent = waiting.send(*plain)
        answers = waiting.mine()

    assert_settled(heavy, answers[:15], sent)
    assert_settled(plain, answers[15:], answers[15].transaction)
    assert int(receipt(shop, sent)["gasUsed"], 16) > 15 * 400_000


def test_a_wallet_that_is_not_deployed_is_refused_with_the_reason_and_nothing_of_it_runs(shop: Dev) -> None:
    """ERC-6492: the signature names a factory and what to call it with."""
    factory = deploy(shop, "FickleWallet")
    crook = buyer(shop)
    call = bytes.fromhex(calldata("set(bool)", True)[2:])
    wrapped = abi_encode(["address", "bytes", "bytes"], [factory, call, bytes.fromhex(crook.signature[2:])])
    crook.payload["payload"]["signature"] = "0x" + wrapped.hex() + "6492" * 16

    answer = crook.pay()

    assert (answer.status, answer.json["error"]) == (402, f"{PREFIX}_payload_signature")
    assert "ERC-6492" in answer.json["detail"]
    assert "deploy the wallet first" in answer.json["detail"]
    assert int(shop.rpc("eth_call", {"to": factory, "data": FICKLE_ANSWER}, "latest"), 16) == 0
    assert_not_charged(crook)


# The intake, and what leaves it.


def test_dust_and_plain_transfers_to_the_intake_change_nothing(shop: Dev) -> None:
    giver, one, other = buyer(shop, 40 * 10**6), buyer(shop), buyer(shop)
    authorized_dust = transfer_call(*other_authorization(giver, value="1", nonce=random_nonce()))
    authorized_nothing = transfer_call(*other_authorization(giver, value="0", nonce=random_nonce()))
    before = settled_balance(shop)
    with batch(shop, one, other) as waiting:
        sent = waiting.send()
        gifts = [
            submit(shop, giver.payer, USDC, calldata("transfer(address,uint256)", shop.intake, 1)),
            submit(shop, giver.payer, USDC, calldata("transfer(address,uint256)", shop.intake, PRICE)),
            submit(shop, STRANGER, USDC, authorized_dust),
            submit(shop, STRANGER, USDC, authorized_nothing),
            # Anybody may "transfer" nothing out of anybody's wallet.
            submit(shop, STRANGER, USDC, calldata("transferFrom(address,address,uint256)", shop.intake, STRANGER, 0)),
            submit(shop, STRANGER, USDC, calldata("transferFrom(address,address,uint256)", STRANGER, shop.intake, 0)),
        ]
        answers = waiting.mine()

    assert all(succeeded(shop, gift) for gift in gifts)
    assert_settled([one, other], answers, sent)
    assert settled_balance(shop) == before + PRICE + 2
    # Its own payment is not bought with what it gave away.
    assert_gig(giver, giver.pay())
    assert shop.usdc(giver.payer) == 40 * 10**6 - 2 * PRICE - 2


def test_a_block_with_more_logs_than_the_node_gives_at_once_is_read_all_the_same(shop: Dev, proxy: RpcProxy) -> None:
    """Anybody can fill a block with transfers of nothing, and nodes refuse answers that are too long."""
    limit, paid = 30, buyer(shop)
    nothing = calldata("transferFrom(address,address,uint256)", STRANGER, "0x" + "99" * 20, 0)
    flood = calldata("execute(address,uint256,bytes[])", USDC, 60_000, [bytes.fromhex(nothing[2:])] * limit)

    def refuse_long_answers(request: Json, forward: Forward) -> Json | bytes | Then:
        answer = forward()
        is_long = len(answer.get("result") or []) > limit
        return refuses(-32005, f"query returned more than {limit} results")(request, forward) if is_long else answer

    with proxy.broken(refuse_long_answers, "eth_getLogs"):
        shop.rpc("evm_setAutomine", False)
        filling = submit(shop, STRANGER, batcher.address(), flood)
        theirs = submit(shop, STRANGER, USDC, paid.transfer)
        shop.rpc("evm_setAutomine", True)
        shop.rpc("evm_mine")
        blocks = {receipt(shop, transaction)["blockNumber"] for transaction in (filling, theirs)}
        answer = paid.pay()

    assert len(blocks) == 1
    assert_gig(paid, answer, theirs)


def test_our_own_authorizations_may_be_executed_by_anybody(chain: Chain) -> None:
    """A stranger reads rewards and commission in the pool and executes them: the funding comes out right."""
    operator = str(Account.create().address)
    with served(chain, relayers=1, commission_address=operator) as shop:
        purchases = [buyer(shop), buyer(shop)]
        with batch(shop, *purchases) as waiting:
            waiting.send()
            shop.rpc("evm_mine")
            answers = [post.answer() for post in waiting.posts]
            [funding] = until(lambda: list(pool(shop).values()))
            theirs = [submit(shop, STRANGER, USDC, call) for call in inner_calls(funding)]
            waiting.mine_all()

        assert len(theirs) == 4
        assert all(succeeded(shop, transaction) for transaction in theirs)
        for purchase, answer in zip(purchases, answers, strict=True):
            assert_gig(purchase, answer)
        later = buyer(shop)
        assert_gig(later, later.pay())
        intake = later.requirements["payTo"]
        until(lambda: shop.usdc(intake) == 0)
        assert shop.usdc(operator) == 4_000_000
        until(lambda: shop.http.get(shop.url + "/readyz").json()["status"] == "ready", timeout_s=5)


def test_what_the_token_refused_may_be_executed_by_anybody_later(chain: Chain) -> None:
    """A commission that is held back has its authorization on chain for everybody to read."""
    operator = str(Account.create().address)
    with served(chain, relayers=1, commission_address=operator) as shop:
        execute(shop, calldata("blacklist(address)", operator))
        bought = buyer(shop)
        gig = bought.pay().json["gig_id"]
        until(lambda: "commission 1" in shop.http.get(shop.url + "/readyz").json()["warnings"].get("funding", ""))
        reward = shop.gig(gig)["funding"]["reward_transaction"]
        [*_, refused] = inner_calls(shop.rpc("eth_getTransactionByHash", reward))
        execute(shop, calldata("unBlacklist(address)", operator))

        theirs = execute(shop, refused)

        assert shop.funded(gig)["funding"]["commission_transaction"] == theirs
        until(lambda: shop.http.get(shop.url + "/readyz").json()["status"] == "ready", timeout_s=5)
        assert shop.usdc(operator) == 1_000_000


def test_our_own_authorizations_buy_nothing(shop: Dev) -> None:
    bought = buyer(shop)
    gig = shop.funded(bought.pay().json["gig_id"])
    crook = buyer(shop)
    for call in inner_calls(shop.rpc("eth_getTransactionByHash", gig["funding"]["reward_transaction"])):
        crook.payload["payload"] = payload_of(call)
        answer = crook.pay()
        assert (answer.status, answer.json["error"]) == (402, f"{PREFIX}_payload_recipient_mismatch")


# Two servers.


def test_one_payment_to_two_servers_on_one_ledger_at_once_is_one_gig(chain: Chain, postgres: Postgres) -> None:
    same = {
        "seed": Account.create_with_mnemonic()[1],
        "commission_address": Account.create().address,
        "database_url": postgres.database(),
        # Two each: while one waits for a block, the other one looks at what comes after.
        "relayers": 4,
    }
    with served(chain, **same) as first, served(chain, **same) as second:
        for _ in range(3):
            paid = buyer(first, 3 * PRICE)
            posts = [Post(server, paid.terms, paid.header) for server in (first, second) * 4]
            answers = [post.answer() for post in posts]

            assert {answer.status for answer in answers} == {200}, [answer.text for answer in answers]
            assert len({answer.text for answer in answers}) == 1
            assert_gig(paid, answers[0])
            assert first.usdc(paid.payer) == 2 * PRICE
        assert_a_buyer_may_give_up_on_one_and_sign_for_the_other(first, second)
        assert_a_crowd_is_served_by_both(first, second)


def assert_a_buyer_may_give_up_on_one_and_sign_for_the_other(first: Dev, second: Dev) -> None:
    first.rpc("evm_setAutomine", False)
    paid = buyer(first, 2 * PRICE)
    given_up = paid.post()
    until(lambda: any(paid.is_in(transaction["input"]) for transaction in pool(first).values()))
    given_up.hang_up()
    # The ledger writes in the order it is asked to: once it was asked about this one, it knows that the buyer has left.
    assert first.buy(first.buyer(0)).status_code == 402
    paid.sign_anew()
    again = Post(second, paid.terms, paid.header)
    first.rpc("evm_setAutomine", True)
    first.rpc("evm_mine")
    assert_gig(paid, again.answer())
    assert_not_charged_again(paid)


def assert_a_crowd_is_served_by_both(first: Dev, second: Dev) -> None:
    crowd = [buyer(server) for server in (first, second) * 5]
    answers = [post.answer() for post in [purchase.post() for purchase in crowd]]
    assert len({answer.json["gig_id"] for answer in answers}) == len(crowd)
    for purchase, answer in zip(crowd, answers, strict=True):
        assert_gig(purchase, answer)
