"""What leaves the wallet of a gig by a transaction of its own: once, and never out of what the wallet still owes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address

from tests import ledgers
from tests.crashes import Victim
from tests.creators import Creator
from tests.e2e.test_keyed_faults import opened
from tests.faults import Forward, Reply, RpcProxy, Rule, answers, down, late_receipts, no_sync
from tests.harness import Json, until
from tests.operator import Done
from tests.tokens import deploy

SYNC, RECEIPT = "eth_sendRawTransactionSync", "eth_getTransactionReceipt"
SEND = (SYNC, "eth_sendRawTransaction")
UNIT, DEPTH = 10**11, 8
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
        # Whatever was signed has been sent and is on chain by then.
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


def replace(shop: Victim, made: Json, ours: Json, **changes: object) -> None:
    """A transaction with the nonce of ours, which is in the pool, by somebody else who has the key; at a better fee."""
    fee = int(ours["maxFeePerGas"], 16)
    foreign = {
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


def test_a_payout_that_an_old_backup_has_forgotten_is_not_made_again(away: Shop, tmp_path: Path) -> None:
    shop, proxy, creator = away
    odd = deploy(shop, "OddToken")
    with proxy.broken(down, "eth_estimateGas"):
        made = creator.funded(odd, extra=UNIT)
        assert creator.start(made).status_code == 200
        backup = ledgers.copy(shop.ledger, tmp_path)
    creator.paid_up(made)
    newest = shop.environment["X402_GIG_DATABASE_URL"]
    shop.stop()
    try:
        shop.environment["X402_GIG_DATABASE_URL"] = backup
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
    finally:
        shop.stop()
        shop.environment["X402_GIG_DATABASE_URL"] = newest
        shop.start()
