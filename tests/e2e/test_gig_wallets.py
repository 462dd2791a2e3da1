"""What leaves the wallet of a gig by a transaction of its own: once, and never out of what the wallet still owes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from tests.e2e.attacks import inner_calls
from tests.e2e.test_keyed_faults import opened
from tests.support import ledgers
from tests.support.crashes import Victim
from tests.support.creators import Creator
from tests.support.faults import Forward, Reply, RpcProxy, Rule, answers, down, late_receipts, no_sync
from tests.support.harness import USDC, Json, until
from tests.support.operator import Done, words
from tests.support.tokens import Erc20, deploy
from x402_gig.market.keyed_gigs import RECHECKED

SYNC, RECEIPT = "eth_sendRawTransactionSync", "eth_getTransactionReceipt"
SEND = (SYNC, "eth_sendRawTransaction")
UNIT, DEPTH, DEEP = 10**11, 8, 16
# PUSH1 0 PUSH1 0 REVERT: whatever is asked, there is no answer.
REVERTS = "0x60006000fd"
Shop = tuple[Victim, RpcProxy, Creator]

# On both databases.
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def away(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with opened(tmp_path_factory.mktemp("wallets"), reorg_depth=DEPTH) as all_of_it:
        yield all_of_it


def warning(shop: Victim, name: str = "payouts") -> str:
    return str(shop.http.get(shop.url + "/readyz").json()["warnings"].get(name, ""))


def read_up(shop: Victim) -> None:
    """Mine until nothing that has happened can be replaced any more, and wait until the ledger has read that."""
    shop.rpc("anvil_mine", hex(DEPTH + 1))
    head = int(shop.rpc("eth_blockNumber"), 16)
    until(lambda: ledgers.rows(shop.ledger, "select cursor_number from ledger")[0][0] >= head)


def receipts_hidden(wallet: str) -> Rule:
    """The node has no receipts of this wallet's transactions."""

    def rule(request: Json, forward: Forward) -> Reply:
        answer = forward()
        is_its = answer.get("result") and answer["result"]["from"].lower() == wallet.lower()
        return answers(None)(request, forward) if is_its else answer

    return rule


def unblock(creator: Creator, made: Json) -> Done:
    return creator.desk.run("gigs", "unblock", str(made["gig_id"]), "--yes")


def slots_of(shop: Victim, made: Json) -> list[str]:
    query = "select state from slots where relayer = ? order by nonce"
    return [state for (state,) in ledgers.rows(shop.ledger, query, made["gig_wallet_address"].lower())]


@pytest.mark.parametrize("seconds", [0.6, 2])
def test_a_commission_whose_receipt_is_late_is_paid_once_and_not_out_of_the_reward(away: Shop, seconds: float) -> None:
    shop, proxy, creator = away
    odd = deploy(shop, "OddToken")
    with proxy.broken(no_sync, SYNC), proxy.broken(late_receipts(seconds), RECEIPT):
        made = creator.started(odd)
        creator.paid_up(made)
        # Every signed transaction is on chain by then.
        creator.paid_up(creator.started(odd))
    assert odd.balance(shop.commission) == 2 * UNIT
    assert odd.balance(made["gig_wallet_address"]) == 10 * UNIT
    assert slots_of(shop, made) == ["mined"]


def test_a_wallet_whose_transaction_has_no_receipt_stands_still_alone_and_is_named(away: Shop) -> None:
    shop, proxy, creator = away
    odd = deploy(shop, "OddToken")
    made = creator.funded(odd)
    wallet = made["gig_wallet_address"]
    with proxy.broken(no_sync, SYNC), proxy.broken(receipts_hidden(wallet), RECEIPT):
        assert creator.start(made).status_code == 200
        until(lambda: odd.balance(wallet) == 10 * UNIT)
        creator.paid_up(creator.started(odd))
        assert "stands still" in unblock(creator, made).stderr
        read_up(shop)
        command = f"x402-gig gigs unblock {made['gig_id']}"
        until(lambda: command in warning(shop))
        assert [said for said in creator.desk.problems() if command in said]
        assert odd.balance(shop.commission) == 2 * UNIT
        assert slots_of(shop, made) == ["open"]

        done = unblock(creator, made)
        assert (done.returncode, "is paid, in 0x" in done.stderr) == (0, True), done.stderr
        assert creator.paid_up(made)
        assert slots_of(shop, made) == ["mined"]
    until(lambda: not warning(shop))
    assert creator.desk.audit()["ok"]
    assert (odd.balance(shop.commission), odd.balance(wallet)) == (2 * UNIT, 10 * UNIT)


def test_a_wallet_that_stands_still_goes_on_by_itself_when_its_receipt_comes(away: Shop) -> None:
    shop, proxy, creator = away
    odd = deploy(shop, "OddToken")
    made = creator.funded(odd)
    with proxy.broken(no_sync, SYNC), proxy.broken(receipts_hidden(made["gig_wallet_address"]), RECEIPT):
        assert creator.start(made).status_code == 200
        until(lambda: odd.balance(shop.commission) == UNIT)
        read_up(shop)
        until(lambda: "unblock" in warning(shop))
    creator.paid_up(made)
    assert slots_of(shop, made) == ["mined"]
    until(lambda: not warning(shop))


def key_of(shop: Victim, made: Json) -> LocalAccount:
    path = f"m/44'/60'/0'/0/{made['gig_id']}"
    account: LocalAccount = Account.from_mnemonic(shop.environment["X402_GIG_SEED"], account_path=path)
    assert account.address.lower() == made["gig_wallet_address"].lower()
    return account


def replace(shop: Victim, made: Json, ours: Json, **changes: Any) -> None:
    """A transaction with the nonce of ours, which is in the pool, by somebody else who has the key; at a better fee."""
    fee = int(ours["maxFeePerGas"], 16)
    foreign: dict[str, Any] = {
        "chainId": 8453,
        "nonce": int(ours["nonce"], 16),
        "gas": int(ours["gas"], 16),
        "to": to_checksum_address(ours["to"]),
    }
    foreign |= {"data": ours["input"], "maxFeePerGas": fee * 2, "maxPriorityFeePerGas": fee} | changes
    raw = key_of(shop, made).sign_transaction(foreign).raw_transaction
    shop.rpc("anvil_setBalance", made["gig_wallet_address"], hex(10**18))
    shop.rpc("eth_sendRawTransaction", "0x" + bytes(raw).hex())


def pending(shop: Victim, wallet: str) -> Json:
    """Its transaction in the pool."""

    def found() -> list[Json]:
        pool = shop.rpc("txpool_content")["pending"]
        return [t for sender, txs in pool.items() if sender.lower() == wallet.lower() for t in txs.values()]

    return dict(until(found)[0])


@pytest.mark.parametrize("has_paid", [True, False])
def test_a_nonce_that_was_used_without_the_ledger_waits_for_the_operator_and_then_pays_once(
    away: Shop, has_paid: bool
) -> None:
    """As after a restore of an old backup, in which the transaction that was outbid is the newest."""
    shop, _, creator = away
    odd = deploy(shop, "OddToken")
    made = creator.funded(odd)
    wallet = made["gig_wallet_address"]
    # Enough for a second commission, so that only the nonce tells.
    odd.send(odd.holder(UNIT), wallet, UNIT)
    shop.rpc("anvil_setBalance", wallet, hex(10**18))
    shop.rpc("evm_setAutomine", False)
    try:
        assert creator.start(made).status_code == 200
        replace(
            shop, made, pending(shop, wallet), **({} if has_paid else {"to": to_checksum_address(wallet), "data": "0x"})
        )
    finally:
        shop.mine()
    creator.paid_up(creator.started(odd))
    read_up(shop)
    until(lambda: "unblock" in warning(shop))
    before = UNIT if has_paid else 0
    assert odd.balance(shop.commission) == UNIT + before
    assert slots_of(shop, made) == ["open"]

    said = unblock(creator, made).stderr
    assert ("is paid, in 0x" if has_paid else "is not paid, and is sent again") in said
    creator.paid_up(made)
    assert slots_of(shop, made) == (["lost"] if has_paid else ["lost", "mined"])
    until(lambda: not warning(shop))
    assert (odd.balance(shop.commission), odd.balance(wallet)) == (2 * UNIT, 11 * UNIT)
    read_up(shop)
    assert creator.desk.audit()["ok"]
    assert unblock(creator, made).returncode == 1


@pytest.mark.parametrize("left_out", ["what left", "all"])
def test_a_wallet_is_not_said_to_have_paid_nothing_by_a_node_that_leaves_logs_out(away: Shop, left_out: str) -> None:
    shop, proxy, creator = away
    odd = deploy(shop, "OddToken")
    # Enough for a second commission.
    made = creator.funded(odd, extra=UNIT)
    wallet = made["gig_wallet_address"]

    def leave_out(request: Json, forward: Forward) -> Reply:
        _, *accounts = request["params"][0]["topics"]
        is_about_it = wallet[2:].lower() in json.dumps(accounts if left_out == "all" else accounts[:1])
        return answers([])(request, forward) if is_about_it else forward()

    with proxy.broken(no_sync, SYNC), proxy.broken(receipts_hidden(wallet), RECEIPT):
        assert creator.start(made).status_code == 200
        until(lambda: odd.balance(shop.commission) == UNIT)
        read_up(shop)
        until(lambda: f"x402-gig gigs unblock {made['gig_id']}" in warning(shop))
        with proxy.broken(leave_out, "eth_getLogs"):
            done = unblock(creator, made)
        assert (done.returncode, "The logs of the token do not explain" in words(done.stderr)) == (1, True), done.stderr
        assert slots_of(shop, made) == ["open"]
        assert unblock(creator, made).returncode == 0
        creator.paid_up(made)
    assert (odd.balance(shop.commission), odd.balance(wallet)) == (UNIT, 11 * UNIT)


def test_a_payout_that_an_old_backup_has_forgotten_is_not_made_again(database: str, tmp_path: Path) -> None:
    with opened(tmp_path, reorg_depth=DEPTH) as (shop, proxy, creator):
        odd = deploy(shop, "OddToken")
        with proxy.broken(down, "eth_estimateGas"):
            # Enough for a second commission, so that only the nonce tells.
            made = creator.funded(odd, extra=UNIT)
            assert creator.start(made).status_code == 200
            backup = ledgers.copy(shop.ledger, tmp_path)
        creator.paid_up(made)
        shop.stop()
        shop.environment["X402_GIG_DATABASE_URL"] = shop.ledger = backup
        shop.start()
        until(lambda: "an old backup perhaps" in warning(shop))
        creator.paid_up(creator.started(odd))
        assert odd.balance(shop.commission) == 2 * UNIT

        read_up(shop)
        assert unblock(creator, made).returncode == 0
        creator.paid_up(made)
        until(lambda: not warning(shop))
        assert (odd.balance(shop.commission), odd.balance(made["gig_wallet_address"])) == (2 * UNIT, 11 * UNIT)
        assert creator.desk.audit()["ok"]


def asset(shop: Victim, token: str) -> tuple[Erc20, int]:
    """The token, and how many base units one of it has."""
    return (Erc20(shop, USDC), 10**6) if token == "USDC" else (deploy(shop, token), UNIT)


@pytest.mark.parametrize("token", ["OddToken", "USDC"])
def test_nothing_leaves_a_wallet_that_does_not_hold_all_that_it_owes(away: Shop, token: str) -> None:
    shop, proxy, creator = away
    erc20, unit = asset(shop, token)
    made, before = creator.funded(erc20), erc20.balance(shop.commission)
    wallet = made["gig_wallet_address"]

    def set_balance(units: int) -> None:
        shop.rpc("anvil_dealERC20", wallet, erc20.address, hex(units))
        shop.rpc("evm_mine")

    def vanish(request: Json, forward: Forward) -> Reply:
        """A base unit is gone when the start has seen the balance and asks who sent it."""
        if wallet[2:].lower() in json.dumps(request) and erc20.balance(wallet) == 11 * unit:
            set_balance(11 * unit - 1)
        return forward()

    with proxy.broken(vanish, "eth_getLogs"):
        assert creator.start(made).status_code == 200
    short = f"the wallet of gig {made['gig_id']} holds {11 * unit - 1} base units and owes {11 * unit}"
    until(lambda: short in warning(shop, "payouts" if token != "USDC" else "funding"))
    creator.paid_up(creator.started(erc20))
    assert (erc20.balance(shop.commission) - before, erc20.balance(wallet)) == (unit, 11 * unit - 1)
    read_up(shop)
    assert [said for said in creator.desk.problems() if f"gig {made['gig_id']}: owes {11 * unit} base units" in said]

    set_balance(11 * unit)
    shop.stop()  # which tries at once, instead of in half a minute
    shop.start()
    creator.paid_up(made)
    assert (erc20.balance(shop.commission) - before, erc20.balance(wallet)) == (2 * unit, 10 * unit)


def test_a_payout_that_is_outbid_gets_gas_for_it(away: Shop) -> None:
    """The base fee rises a hundredfold when it is signed, and its gas was sent for the old one."""
    shop, proxy, creator = away
    odd = deploy(shop, "OddToken")
    made = creator.funded(odd)
    fee = 10**9
    shop.rpc("anvil_setNextBlockBaseFeePerGas", hex(fee))
    shop.rpc("evm_mine")
    commission, raised = shop.commission[2:].lower(), list[str]()

    def raise_fee(request: Json, forward: Forward) -> Reply:
        if commission in request["params"][0] and not raised:
            raised.append(request["params"][0])
            shop.rpc("anvil_setNextBlockBaseFeePerGas", hex(100 * fee))
            shop.rpc("evm_mine")
        return forward()

    with proxy.broken(raise_fee, *SEND):
        assert creator.start(made).status_code == 200
        until(lambda: raised)
        creator.paid_up(creator.started(odd))
        creator.paid_up(made)
    assert (odd.balance(shop.commission), odd.balance(made["gig_wallet_address"])) == (2 * UNIT, 10 * UNIT)
    query = "select count(*) from attempts join slots on slots.id = attempts.slot_id where slots.relayer = ?"
    assert ledgers.rows(shop.ledger, query, made["gig_wallet_address"].lower()) > [(1,)]
    assert slots_of(shop, made) == ["mined"]
    shop.rpc("anvil_setNextBlockBaseFeePerGas", hex(fee))
    shop.rpc("evm_mine")


def test_the_gas_that_a_strangers_token_is_estimated_with_has_a_limit(away: Shop) -> None:
    shop, proxy, creator = away
    asked: list[Json] = []

    def note(request: Json, forward: Forward) -> Reply:
        asked.append(request["params"][0])
        return forward()

    with proxy.broken(note, "eth_estimateGas"):
        creator.paid_up(creator.started(deploy(shop, "OddToken")))
    assert asked
    assert all(int(call["gas"], 16) <= 300_000 for call in asked)


@contextmanager
def deep(folder: Path) -> Iterator[Shop]:
    """A reorganisation of `DEEP` blocks is undone there, and reaches nothing that the shop needs."""
    with opened(folder, reorg_depth=4 * DEEP) as (shop, proxy, creator):
        shop.rpc("anvil_mine", hex(2 * DEEP))
        yield shop, proxy, creator


def height(shop: Victim) -> int:
    return int(shop.rpc("eth_blockNumber"), 16)


def test_a_payout_under_way_waits_while_the_funding_of_its_gig_is_off_the_chain(database: str, tmp_path: Path) -> None:
    with deep(tmp_path) as (shop, proxy, creator):
        odd = deploy(shop, "OddToken")
        made = creator.create(odd.address)
        wallet, payer = made["gig_wallet_address"], odd.holder(10**30)
        shop.rpc("anvil_setBalance", wallet, hex(10**18))
        start = height(shop)
        shop.send(payer, odd.address, made["tx_data"])
        shop.rpc("evm_setAutomine", False)
        assert creator.start(made).status_code == 200
        payout = pending(shop, wallet)["hash"]
        shop.rpc("anvil_reorg", height(shop) - start, [])
        until(lambda: creator.gig(made)["status"] == "suspended")
        shop.ping()
        shop.rpc("anvil_dropTransaction", payout)
        shop.rpc("evm_setAutomine", True)

        # Enough for the commission, and not for all.
        odd.send(payer, wallet, 11 * UNIT - 1)
        sent = len(proxy.sent)
        asked = proxy.calls["eth_getTransactionReceipt"]
        until(lambda: proxy.calls["eth_getTransactionReceipt"] > asked + 2)
        assert len(proxy.sent) == sent
        assert (creator.gig(made)["status"], odd.balance(shop.commission)) == ("suspended", 0)

        odd.send(payer, wallet, 1)
        creator.paid_up(made, timeout_s=60)
        assert creator.gig(made)["status"] == "active"
        assert (odd.balance(shop.commission), odd.balance(wallet)) == (UNIT, 10 * UNIT)


@pytest.mark.parametrize("token", ["OddToken", "USDC"])
def test_what_comes_back_by_itself_after_a_reorganisation_is_not_waited_for(
    database: str, tmp_path: Path, token: str
) -> None:
    """The funding, and the commission that a stranger sends again: the wallet never holds both any more."""
    with deep(tmp_path) as (shop, proxy, creator):
        erc20, unit = asset(shop, token)
        made = creator.create(erc20.address)
        wallet, payer = made["gig_wallet_address"], erc20.holder(10**30)
        shop.rpc("anvil_setBalance", wallet, hex(10**18))
        start = height(shop)
        shop.send(payer, erc20.address, made["tx_data"])
        assert creator.start(made).status_code == 200
        transaction = creator.paid_up(made)["funding"]["commission_transaction"]
        [(raw,)] = ledgers.rows(shop.ledger, "select raw from attempts where hash = ?", transaction)
        call = inner_calls(shop.rpc("eth_getTransactionByHash", transaction))[0] if token == "USDC" else ""
        with proxy.broken(down):
            shop.rpc("anvil_reorg", height(shop) - start, [])
            shop.send(payer, erc20.address, made["tx_data"])
            if call:
                shop.send(Account.create().address, USDC, call)
            else:
                shop.rpc("eth_sendRawTransaction", raw)
            assert erc20.balance(shop.commission) == unit
            shop.rpc("anvil_mine", "0x4")
        until(lambda: creator.gig(made)["funding"]["commission_transaction"] not in (None, transaction) or not call)
        until(lambda: creator.gig(made)["status"] == "active", 60)
        creator.paid_up(made)
        assert (erc20.balance(shop.commission), erc20.balance(wallet)) == (unit, 10 * unit)
        assert until(lambda: creator.desk.audit()["ok"])


def test_tokens_that_say_nothing_keep_no_other_gig_suspended(database: str, tmp_path: Path) -> None:
    with deep(tmp_path) as (shop, proxy, creator):
        mute, odd = deploy(shop, "OddToken"), deploy(shop, "OddToken")
        made = [creator.create(mute.address) for _ in range(RECHECKED)] + [creator.create(odd.address)]
        payers = {token.address: token.holder(10**30) for token in (mute, odd)}

        def fund() -> None:
            for gig in made:
                shop.send(payers[gig["gig_token_address"]], gig["gig_token_address"], gig["tx_data"])

        shop.rpc("anvil_mine", hex(DEEP))
        start = height(shop)
        fund()
        with proxy.broken(down, *SEND):
            for gig in made:
                assert creator.start(gig).status_code == 200
            shop.rpc("anvil_reorg", height(shop) - start, [])
            until(lambda: all(creator.gig(gig)["status"] == "suspended" for gig in made))
            code = shop.rpc("eth_getCode", mute.address, "latest")
            with proxy.broken(down, "eth_call"):
                fund()
                shop.rpc("anvil_setCode", mute.address, REVERTS)
                shop.rpc("evm_mine")
            until(lambda: creator.gig(made[-1])["status"] == "active")
            assert {creator.gig(gig)["status"] for gig in made[:-1]} == {"suspended"}
            shop.rpc("anvil_setCode", mute.address, code)
            shop.rpc("evm_mine")
            until(lambda: all(creator.gig(gig)["status"] == "active" for gig in made), 60)
