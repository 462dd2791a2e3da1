"""Buyers that hang up, chains that stall or go away: nobody pays twice, nobody is told a wrong end."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.e2e.attacks import PRICE, Post, Purchase, buyer
from tests.support import ledgers
from tests.support.harness import (
    CREATE,
    Dev,
    Json,
    bytecode,
    devnet,
    encode,
    gig_terms,
    payload_v2,
    payment_header,
    served,
    sign,
    until,
)
from tests.support.operator import dev_anywhere

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: gigs.example\r\n\r\n"
LARGE = b"POST /healthz HTTP/1.1\r\nHost: gigs.example\r\nContent-Length: 60000\r\n\r\n" + b"x" * 60_000

# On both databases.
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def dev(database: str) -> Iterator[Dev]:
    with dev_anywhere() as running:
        yield running


def hang_up(dev: Dev, terms: Json, header: Json) -> None:
    """Post a payment and leave before the answer, once it is on its way to the chain."""
    before = pending(dev)
    post = Post(dev, terms, header)
    until(lambda: pending(dev) > before)
    post.hang_up()
    # The ledger writes in the order it is asked to: once it was asked about this one, it knows that the buyer has left.
    assert dev.buy(dev.buyer(0)).status_code == 402


def pending(dev: Dev) -> int:
    return int(dev.rpc("txpool_status")["pending"], 16)


def test_a_settlement_goes_on_when_the_buyer_hangs_up(stalled: Dev) -> None:
    terms, buyer = gig_terms(), stalled.buyer(100_000_000)
    header = payment_header(buyer, stalled.quote(terms))
    hang_up(stalled, terms, header)
    stalled.mine()

    answer = stalled.post(terms, header)

    assert answer.status_code == 200, answer.text
    assert stalled.usdc(buyer.address) == 89_000_000
    assert stalled.usdc(stalled.funded(answer.json()["gig_id"])["gig_wallet_address"]) == 10_000_000


def test_a_new_signature_after_hanging_up_gets_the_first_payments_gig_once(stalled: Dev) -> None:
    terms, buyer = gig_terms(), stalled.buyer(100_000_000)
    requirements = stalled.quote(terms)
    hang_up(stalled, terms, payment_header(buyer, requirements))
    stalled.mine()
    second = payment_header(buyer, requirements)

    inherited = stalled.post(terms, second)
    again = stalled.post(terms, second)
    other_purchase = stalled.post(terms, payment_header(buyer, requirements))

    assert inherited.status_code == again.status_code == other_purchase.status_code == 200
    assert inherited.json() == again.json()
    assert other_purchase.json()["gig_id"] != inherited.json()["gig_id"]
    assert stalled.usdc(buyer.address) == 78_000_000


@pytest.mark.parametrize("behind", [HEALTH, HEALTH * 20, LARGE, LARGE * 9], ids=["one", "many", "large", "too much"])
@pytest.mark.parametrize("is_later", [False, True], ids=["at once", "later"])
def test_hanging_up_with_requests_behind_the_payment_is_hanging_up(
    stalled: Dev, behind: bytes, *, is_later: bool
) -> None:
    terms, buyer = gig_terms(), stalled.buyer(100_000_000)
    requirements = stalled.quote(terms)
    [(name, header)] = payment_header(buyer, requirements).items()
    body = json.dumps(terms)
    head = f"POST {CREATE} HTTP/1.1\r\nHost: gigs.example\r\n{name}: {header}\r\nContent-Length: {len(body)}\r\n\r\n"
    url = httpx.URL(stalled.url)
    with socket.create_connection((url.host, url.port or 80)) as client:
        client.sendall((head + body).encode() + (b"" if is_later else behind))
        until(lambda: pending(stalled))
        client.sendall(behind if is_later else b"")
        # Read by the server, which answers others after that.
        assert stalled.http.get(f"{stalled.url}/healthz").status_code == 200
    # As in `hang_up`.
    assert stalled.buy(stalled.buyer(0)).status_code == 402
    second = payment_header(buyer, requirements)
    stalled.mine()
    assert stalled.post(terms, second).status_code == 200
    assert stalled.usdc(buyer.address) == 89_000_000


def test_an_abandoned_payment_is_inherited_while_it_still_settles_even_by_a_buyer_with_nothing_left(
    stalled: Dev,
) -> None:
    terms, buyer = gig_terms(), stalled.buyer(11_000_000)
    requirements = stalled.quote(terms)
    hang_up(stalled, terms, payment_header(buyer, requirements))
    second = payment_header(buyer, requirements)
    with pytest.raises(httpx.ReadTimeout):
        stalled.http.post(stalled.url + "/api/gigs/create/x402", json=terms, headers=second, timeout=1)
    stalled.mine()

    answer = stalled.post(terms, second)

    assert answer.status_code == 200, answer.text
    assert stalled.usdc(buyer.address) == 0


def test_a_buyer_who_got_the_answer_and_pays_anew_buys_anew(stalled: Dev) -> None:
    terms, buyer = gig_terms(), stalled.buyer(100_000_000)
    requirements = stalled.quote(terms)
    header = payment_header(buyer, requirements)
    hang_up(stalled, terms, header)
    stalled.mine()

    first = stalled.post(terms, header)
    second = stalled.post(terms, payment_header(buyer, requirements))

    assert first.json()["gig_id"] != second.json()["gig_id"]
    assert stalled.usdc(buyer.address) == 78_000_000


def anvil_of(dev: Dev) -> int:
    """The process that listens on the chain's port."""
    port = int(dev.rpc_url.rsplit(":", 1)[1])
    listening = (at for at in psutil.net_connections("tcp") if at.status == psutil.CONN_LISTEN)
    return next(int(at.pid) for at in listening if at.laddr[1] == port)


def test_without_a_chain_nothing_is_charged_and_the_answer_says_try_again() -> None:
    with dev_anywhere() as dev:
        terms, buyer = gig_terms(), dev.buyer()
        header = payment_header(buyer, dev.quote(terms))
        os.kill(anvil_of(dev), signal.SIGKILL)

        answer = dev.post(terms, header)

        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) > 0
        assert answer.json()["reason"] == "chain_unavailable"
        assert dev.rpc_url.split("//")[1] not in answer.text
        ready = dev.http.get(dev.url + "/readyz")
        assert (ready.status_code, list(ready.json()["problems"])) == (503, ["chain"])
        # Prices need no chain.
        assert dev.post(terms).status_code == 402


def contract_wallet(dev: Dev, name: str, *arguments: str) -> str:
    """Deploy a wallet of contracts/test/Wallets.sol; its address, which holds 50 USDC."""
    data = bytecode(name) + abi_encode(["address"] * len(arguments), arguments).hex()
    address = str(dev.send(dev.buyers[9]["address"], None, data)["contractAddress"])
    dev.give_usdc(address, 50_000_000)
    return address


def wallet_payload(owner: LocalAccount, wallet: str, requirements: Json) -> Json:
    """A payment of the wallet, signed by its owner."""
    payload = payload_v2(owner, requirements, **{"from": wallet})
    payload["payload"]["signature"] = sign(owner, requirements, payload["payload"]["authorization"])
    return payload


def test_a_contract_wallet_pays_like_anybody_else(dev: Dev) -> None:
    owner, terms = dev.buyer(0), gig_terms()
    wallet = contract_wallet(dev, "Wallet1271", owner.address)
    payload = wallet_payload(owner, wallet, dev.quote(terms))

    answer = dev.post(terms, {"PAYMENT-SIGNATURE": encode(payload)})
    again = dev.post(terms, {"PAYMENT-SIGNATURE": encode(payload)})

    assert answer.status_code == again.status_code == 200, answer.text
    assert answer.json() == again.json()
    assert dev.usdc(wallet) == 39_000_000
    assert dev.usdc(dev.funded(answer.json()["gig_id"])["gig_wallet_address"]) == 10_000_000


@pytest.mark.parametrize("name", ["LyingWallet", "GasBurner", "BombWallet"])
def test_a_contract_wallet_that_misbehaves_is_refused(dev: Dev, name: str) -> None:
    wallet, terms = contract_wallet(dev, name), gig_terms()
    payload = wallet_payload(dev.buyer(0), wallet, dev.quote(terms))
    answer = dev.post(terms, {"PAYMENT-SIGNATURE": encode(payload)})
    assert (answer.status_code, answer.json()["error"]) == (402, "invalid_exact_evm_payload_signature")
    assert dev.usdc(wallet) == 50_000_000


def test_an_account_with_delegated_code_pays_by_what_its_code_says(dev: Dev) -> None:
    """EIP-7702: the key signs, but the token asks the code that the account has taken on."""
    buyer, terms = dev.buyer(50_000_000), gig_terms()
    honest = bytecode("Wallet1271") + abi_encode(["address"], [buyer.address]).hex()
    implementation = dev.send(dev.buyers[9]["address"], None, honest)["contractAddress"]
    code = dev.rpc("eth_getCode", implementation, "latest")
    dev.rpc("anvil_setCode", buyer.address, code)

    answer = dev.buy(buyer, terms)

    assert answer.status_code == 200, answer.text
    assert dev.usdc(buyer.address) == 39_000_000


def while_pending(
    dev: Dev, purchases: list[tuple[Json, Json]]
) -> tuple[ThreadPoolExecutor, list[Future[httpx.Response]]]:
    """Post payments from threads of their own and return once they are in the pool of a stalled chain."""
    threads = ThreadPoolExecutor(len(purchases))
    answers = [threads.submit(dev.post, terms, header) for terms, header in purchases]
    until(lambda: pending(dev) > 0)
    return threads, answers


def test_a_payer_who_moves_the_money_away_harms_nobody_and_is_rejected_in_the_end() -> None:
    # Its own server, because time passes on its chain.
    with dev_anywhere() as dev:
        dev.rpc("evm_setAutomine", False)
        crook, terms = dev.buyer(11_000_000), gig_terms()
        header = payment_header(crook, dev.quote(terms))
        threads, [crooks_answer] = while_pending(dev, [(terms, header)])
        dev.give_usdc(crook.address, 0)
        dev.mine()
        with threads:
            answer = crooks_answer.result()
        assert (answer.status_code, answer.json()["reason"]) == (503, "outcome_unknown")
        assert dev.buy(dev.buyer()).status_code == 200

        dev.rpc("evm_increaseTime", 120)
        dev.rpc("evm_mine")

        rejected = until(lambda: (last := dev.post(terms, header)).status_code == 402 and last)
        assert rejected.json()["error"] == "invalid_exact_evm_payload_authorization_valid_before"


def test_a_payment_that_failed_on_chain_is_tried_again_when_its_buyer_repeats_it(stalled: Dev) -> None:
    buyer, terms = stalled.buyer(11_000_000), gig_terms()
    header = payment_header(buyer, stalled.quote(terms))
    threads, [first] = while_pending(stalled, [(terms, header)])
    stalled.give_usdc(buyer.address, 0)
    stalled.mine()
    with threads:
        assert first.result().status_code == 503
    stalled.give_usdc(buyer.address, 11_000_000)

    answer = stalled.post(terms, header)

    assert answer.status_code == 200, answer.text
    assert stalled.usdc(buyer.address) == 0
    assert stalled.usdc(stalled.funded(answer.json()["gig_id"])["gig_wallet_address"]) == 10_000_000


def test_neighbours_in_a_batch_settle_in_that_very_transaction(stalled: Dev) -> None:
    """The first two payments take the relayers; what waits behind them becomes one batch."""
    crook = stalled.buyer(11_000_000)
    orders = [(gig_terms(), buyer) for buyer in [*(stalled.buyer() for _ in range(9)), crook]]
    purchases = [(terms, payment_header(buyer, stalled.quote(terms))) for terms, buyer in orders]
    threads, answers = while_pending(stalled, purchases)
    stalled.give_usdc(crook.address, 0)
    stalled.mine()
    with threads:
        results = [answer.result() for answer in answers]
    assert [answer.status_code for answer in results[:9]] == [200] * 9
    transactions = {answer.json()["payment"]["transaction"] for answer in results[:9]}
    assert len(transactions) < 9


def test_an_outcome_that_is_not_known_in_time_is_told_later() -> None:
    with devnet() as chain, served(chain, max_timeout_s=10) as server:
        buyer, terms = server.buyer(11_000_000), gig_terms()
        header = payment_header(buyer, server.quote(terms))
        server.rpc("evm_setAutomine", False)

        held = server.post(terms, header)
        server.mine()
        later = server.post(terms, header)

        assert (held.status_code, held.json()["reason"]) == (503, "outcome_unknown")
        assert int(held.headers["Retry-After"]) > 0
        assert later.status_code == 200, later.text
        assert server.usdc(buyer.address) == 0


def test_without_gas_nothing_is_charged_and_readyz_says_so() -> None:
    Account.enable_unaudited_hdwallet_features()
    _, seed = Account.create_with_mnemonic()
    with devnet() as chain, served(chain, max_timeout_s=10, seed=seed) as server:
        buyer, terms = server.buyer(11_000_000), gig_terms()
        for index in range(2):
            relayer = Account.from_mnemonic(seed, account_path=f"m/44'/60'/1'/0/{index}")
            server.rpc("anvil_setBalance", relayer.address, "0x0")
        until(lambda: server.http.get(server.url + "/readyz").status_code == 503)

        answer = server.post(terms, payment_header(buyer, server.quote(terms)))

        assert answer.status_code == 503, answer.text
        assert server.usdc(buyer.address) == 11_000_000
        assert "gas" in server.http.get(server.url + "/readyz").json()["problems"]


def test_buyers_who_wait_when_the_gas_runs_out_are_told_at_once_that_nothing_was_sent(tmp_path: Path) -> None:
    Account.enable_unaudited_hdwallet_features()
    _, seed = Account.create_with_mnemonic()
    relayers = [Account.from_mnemonic(seed, account_path=f"m/44'/60'/1'/0/{index}").address for index in range(2)]
    ledger = ledgers.new(tmp_path)
    with devnet() as chain, served(chain, max_timeout_s=30, seed=seed, database_url=ledger) as shop:
        assert shop.buy(shop.buyer(PRICE)).status_code == 200
        until(lambda: not ledgers.rows(ledger, "select 1 from movements where state = 'due'"))
        for address in relayers:
            shop.rpc("anvil_setBalance", address, "0x0")
        # Each relayer was seen to have gas a moment ago, and has written down what it cannot send.
        written = []
        for count in (1, 2):
            written.append(posted := buyer(shop))
            hang_up_when(posted, lambda n=count: count_open(ledger) == n)  # type: ignore[misc]
        waiting = [buyer(shop) for _ in range(3)]
        began = time.monotonic()
        answers = [post.answer() for post in [purchase.post() for purchase in waiting]]

        assert time.monotonic() - began < 15
        assert {(a.status, a.json["reason"]) for a in answers} == {(503, "unavailable")}
        assert ledgers.rows(ledger, "select count(*) from payments") == [(3,)]
        for address in relayers:
            shop.rpc("anvil_setBalance", address, hex(10**20))
        for purchase in [*written, *waiting]:
            assert purchase.pay_until(200).status == 200
            assert shop.usdc(purchase.payer) == 0


def count_open(ledger: str) -> int:
    [(count,)] = ledgers.rows(ledger, "select count(*) from slots where state = 'open'")
    return int(count)


def hang_up_when(purchase: Purchase, is_so: Callable[[], bool]) -> None:
    post = purchase.post()
    until(is_so)
    post.hang_up()


@pytest.mark.parametrize("busy", [False, True])
def test_whoever_hangs_up_and_signs_again_at_once_is_charged_once(stalled: Dev, busy: bool) -> None:
    """Also when the first payment still waits behind two busy relayers."""
    others = [(gig_terms(), stalled.buyer()) for _ in range(2 if busy else 0)]
    with ThreadPoolExecutor(8) as threads:
        for relayer, (terms, buyer) in enumerate(others):
            threads.submit(stalled.post, terms, payment_header(buyer, stalled.quote(terms)))
            until(lambda busy_relayers=relayer + 1: pending(stalled) == busy_relayers)  # type: ignore[misc]
        orders = [(gig_terms(), stalled.buyer(44_000_000)) for _ in range(3)]
        answers = []
        for terms, buyer in orders:
            requirements = stalled.quote(terms)
            header = payment_header(buyer, requirements)
            with pytest.raises(httpx.ReadTimeout):
                stalled.http.post(stalled.url + "/api/gigs/create/x402", json=terms, headers=header, timeout=0.3)
            answers.append(threads.submit(stalled.post, terms, payment_header(buyer, requirements)))
        until(lambda: pending(stalled) >= 1)
        stalled.mine()
        results = [answer.result() for answer in answers]

    assert [result.status_code for result in results] == [200] * 3
    assert [stalled.usdc(buyer.address) for _, buyer in orders] == [33_000_000] * 3


def test_with_more_confirmations_gigs_and_funding_wait_for_them_and_nothing_is_wrong() -> None:
    with devnet("--block-time", "0.3") as chain, served(chain, confirmations=3) as server:
        for _ in range(2):
            bought = server.buy(server.buyer())
            assert bought.status_code == 200, bought.text
            deposit = server.rpc("eth_getTransactionReceipt", bought.json()["payment"]["transaction"])
            head = int(server.rpc("eth_blockNumber"), 16)
            assert head >= int(deposit["blockNumber"], 16) + 2
            gig = server.funded(bought.json()["gig_id"])
            assert server.usdc(gig["gig_wallet_address"]) == 10_000_000
            assert server.http.get(server.url + "/readyz").json()["warnings"] == {}


def test_copies_of_a_worthless_payment_do_not_hold_up_an_honest_one(dev: Dev) -> None:
    pauper, buyer = dev.buyer(0), dev.buyer()
    header = payment_header(pauper, dev.quote(gig_terms()))
    with ThreadPoolExecutor(40) as threads:
        copies = [threads.submit(dev.post, gig_terms(), header) for _ in range(40)]
        assert dev.buy(buyer).status_code == 200
        assert {copy.result().status_code for copy in copies} == {402}
