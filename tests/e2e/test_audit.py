"""`x402-gig audit` and `x402-gig refunds`: the ledger beside the chain, and money that is nobody's."""

import asyncio
import hashlib
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account

from tests.support import ledgers
from tests.support.faults import Forward, HangUp, Reply, Rule, refuses, rpc_proxy
from tests.support.harness import Chain, Json, calldata, devnet, gig_terms, payload_v2, until
from tests.support.operator import COMMISSION, PRICE, REWARD, Desk, Shop, operated, transfer, words
from x402_gig.audit.comparison import Comparison
from x402_gig.chainsync.history import History
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger.audit import Books, read_books
from x402_gig.ledger.engine import Ledger
from x402_gig.operator.opening import open_chain, open_office
from x402_gig.settings import Settings

STRANGER = "0x" + "5a" * 20


@pytest.fixture(scope="module")
def shop(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with operated(chain, tmp_path_factory.mktemp("live")) as running:
        yield running


# A live server


def test_it_adds_up_while_buyers_buy(shop: Shop) -> None:
    with ThreadPoolExecutor(3) as pool:
        sales = [pool.submit(shop.bought, 3) for _ in range(3)]
        audits = [shop.desk.audit()]
        while not all(sale.done() for sale in sales):
            audits.append(shop.desk.audit())
        assert all(len(sale.result()) == 3 for sale in sales)
    shop.read_up()

    last = shop.desk.audit()

    assert [found["differences"] for found in audits] == [[]] * len(audits)
    assert last["block"] >= audits[0]["block"]
    assert (last["received"], last["rewards"], last["commissions"]) == (9 * PRICE, 9 * REWARD, 9 * COMMISSION)
    assert last["commission_wallets"] == {shop.commission.lower(): 9 * COMMISSION}
    assert (last["intake_balance"], last["owed"], last["refunds"]) == (0, 0, 0)


def test_people_read_how_far_it_looked_and_the_promise(shop: Shop) -> None:
    shop.bought()
    shop.read_up()
    done = shop.desk.run("audit")
    assert done.returncode == 0
    head = int(shop.rpc("eth_blockNumber"), 16)
    assert f"Intake {shop.intake.lower()} on devnet" in done.stdout
    assert f"to {head} (20" in done.stdout
    assert "= rewards" in done.stdout.splitlines()[-1]
    assert "All adds up." in done.stderr


def test_plain_transfers_are_accounted(shop: Shop) -> None:
    before = shop.desk.audit()
    shop.receive(5_000_000)
    shop.read_up()
    after = shop.desk.audit()
    for name in ("received", "intake_balance", "unclaimed", "owed"):
        assert after[name] - before[name] == 5_000_000


def test_it_adds_up_after_a_reorganisation(shop: Shop) -> None:
    [gig] = shop.bought()
    shop.read_up()
    before = shop.desk.audit()
    shop.rpc("anvil_reorg", 2, [])
    shop.funded(gig["id"])
    until(
        lambda: shop.usdc(gig["gig_wallet_address"]) == REWARD and shop.usdc(shop.commission) == before["commissions"]
    )
    shop.read_up(blocks=1)
    after = shop.desk.audit()
    names = ("received", "rewards", "commissions", "refunds", "intake_balance")
    assert {name: after[name] for name in names} == {name: before[name] for name in names}


# Money that is nobody's


def deposit_of(shop: Shop, payer: str) -> Json:
    """The deposit of this payer, as `refunds list` shows it once it is read."""
    found = until(lambda: [d for d in unclaimed(shop) if d["payer"] == payer.lower()])
    return dict(found[0])


def unclaimed(shop: Shop) -> list[Json]:
    return list(shop.desk.shown("refunds", "list")["unclaimed"])


def test_a_plain_transfer_is_paid_back_by_command_to_its_owner_once(shop: Shop) -> None:
    owner = "0x" + secrets.token_hex(20)
    deposit = deposit_of(shop, shop.receive(7_000_000))
    shop.read_up(blocks=3)
    pay = ("refunds", "pay", str(deposit["id"]), "--to", owner, "--yes")
    refunds_before = shop.desk.audit()["refunds"]

    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: shop.desk.start(*pay), range(2)))

    assert sorted(done.returncode for done in both) == [0, 1]
    until(lambda: shop.usdc(owner) == 7_000_000)
    shop.read_up(blocks=1)
    assert "paid back in 0x" in words(shop.desk.run(*pay).stderr)
    found = shop.desk.audit()
    assert found["refunds"] - refunds_before == 7_000_000 == shop.usdc(owner)
    assert deposit["id"] not in [d["id"] for d in unclaimed(shop)]


def test_an_authorization_is_paid_back_to_its_payer_when_it_is_final(shop: Shop) -> None:
    payer = shop.buyer(1_000_000)
    dust = payload_v2(payer, shop.quote(gig_terms()) | {"amount": "1000000"})["payload"]
    shop.send(STRANGER, shop.quote(gig_terms())["asset"], calldata(dust))
    deposit = deposit_of(shop, payer.address)
    pay = ("refunds", "pay", str(deposit["id"]), "--yes")

    assert not deposit["is_final"]
    assert "not final" in shop.desk.run(*pay).stderr
    shop.read_up(blocks=3)
    assert "leave --to out" in shop.desk.run(*pay, "--to", STRANGER).stderr
    done = shop.desk.run(*pay)

    assert done.returncode == 0, done.stderr
    until(lambda: shop.usdc(payer.address) == 1_000_000)
    shop.read_up(blocks=1)
    assert shop.desk.audit()["unclaimed"] == sum(d["value"] for d in unclaimed(shop))


def test_what_cannot_be_paid_back_is_refused_with_its_reason(shop: Shop) -> None:
    shop.bought()
    deposit = deposit_of(shop, sender := shop.receive(3_000_000))
    shop.read_up(blocks=3)
    number = str(deposit["id"])

    def refused(*arguments: str, said: str = "") -> str:
        done = shop.desk.run("refunds", "pay", *arguments, said=said)
        assert done.returncode == 1, done.stderr
        return words(done.stderr)

    owned = str(shop.desk.rows("select id from deposits where payment_id is not null")[0][0])
    assert "belongs to payment" in refused(owned, "--yes")
    assert "There is no deposit 999" in refused("999", "--yes")
    assert f"plain transfer by {sender.lower()}" in refused(number, "--yes")
    assert "not the intake" in refused(number, "--to", shop.intake, "--yes")
    assert "Aborted" in refused(number, "--to", sender, said="n\n")
    assert shop.desk.run("refunds", "pay", number, "--to", "0x12").returncode == 2
    assert shop.desk.rows("select refund_id from deposits where id = ?", deposit["id"]) == [(None,)]


# A connection to the chain that is not what it should be


def test_a_node_that_gives_few_blocks_at_a_time_is_asked_for_fewer(shop: Shop) -> None:
    too_much = refuses(-32005, "query exceeds max block range")

    def rule(request: Json, forward: Forward) -> Reply:
        where = request["params"][0]
        is_wide = "fromBlock" in where and int(where["toBlock"], 16) - int(where["fromBlock"], 16) >= 7
        return too_much(request, forward) if is_wide else forward()

    with rpc_proxy(shop) as proxy, proxy.broken(rule, "eth_getLogs"):
        assert shop.desk.audit(rpc_url=proxy.chain.rpc_url)["notes"] == []


def nothing_in_ranges(request: Json, forward: Forward) -> Reply:
    """A node that is behind: it has no logs of blocks that it does not have."""
    is_range = "fromBlock" in request["params"][0]
    return {"jsonrpc": "2.0", "id": request["id"], "result": []} if is_range else forward()


def no_old_state(head: str) -> Rule:
    """A node that is no archive: it can call contracts in its newest block only."""

    def rule(request: Json, forward: Forward) -> Reply:
        where = request["params"][1]
        is_old = isinstance(where, dict) and where["blockHash"] != head
        return refuses(-32000, "missing trie node")(request, forward) if is_old else forward()

    return rule


@pytest.mark.parametrize("is_archive", [True, False])
def test_logs_that_a_node_leaves_out_are_read_block_by_block(shop: Shop, is_archive: bool) -> None:
    shop.bought()
    shop.receive(1_000_000)
    shop.read_up()
    head = shop.rpc("eth_getBlockByNumber", "latest", False)["hash"]

    with rpc_proxy(shop) as proxy, proxy.broken(nothing_in_ranges, "eth_getLogs"):
        if not is_archive:
            proxy.rules["eth_call"] = no_old_state(head)
        found = shop.desk.audit(rpc_url=proxy.chain.rpc_url)
    assert found["differences"] == []
    assert found["received"] == shop.desk.audit()["received"]
    assert "read one by one" in " ".join(found["notes"])


def test_a_node_that_does_not_answer_is_no_difference(shop: Shop) -> None:
    def rule(_: Json, __: Forward) -> Reply:
        raise HangUp

    with rpc_proxy(shop) as proxy, proxy.broken(rule):
        done = shop.desk.run("audit", rpc_url=f"{proxy.chain.rpc_url}/secret-token")
    assert done.returncode == 3
    assert "did not answer" in done.stderr
    assert "secret-token" not in done.stderr


# What differs


@dataclass
class Closed:
    """A server that has stopped, with three gigs and a refund behind it, and what the chain says of it."""

    desk: Desk
    history: History
    wallets: Wallets

    def differences(self, ledger: str) -> list[str]:
        return [str(d) for d in Comparison(asyncio.run(self._books(ledger)), self.history, self.wallets).differences()]

    async def _books(self, ledger: str) -> Books:
        opened = Ledger(ledger, is_guest=True)
        try:
            return await opened.read(read_books)
        finally:
            opened.close()


@pytest.fixture(scope="module")
def closed(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Closed:
    # The ledger begins a few blocks below the newest, and the token was there.
    chain.rpc("anvil_mine", "0x3")
    with operated(chain, tmp_path_factory.mktemp("closed")) as shop:
        shop.bought(3)
        sender = shop.receive(7_000_000)
        deposit = deposit_of(shop, sender)
        shop.read_up(blocks=3)
        assert shop.desk.run("refunds", "pay", str(deposit["id"]), "--to", sender, "--yes").returncode == 0
        until(lambda: shop.usdc(sender))
        shop.receive(2_000_000)
        shop.read_up()
    given: dict[str, Any] = {k.removeprefix("X402_GIG_").lower(): v for k, v in shop.desk.env.items()}
    settings = Settings(**given)
    return Closed(shop.desk, asyncio.run(_history(settings)), Wallets(settings.mnemonic))


async def _history(settings: Settings) -> History:
    async with open_office(settings) as office, open_chain(office) as node:
        books = await office.ledger.read(read_books)
        history = History(node, office.wallets.intake.address, books.begin)
        await history.read_to(books.cursor.number)
        return history


REWARD_1 = "kind = 'reward' and subject = 1"
WORD = "0x" + "ab" * 32
FALSIFIED = {
    "a deposit's value": ("update deposits set value = value + 1 where payment_id = 1", "is 11 USDC on chain and"),
    "a deposit's transaction": (f"update deposits set \"transaction\" = '{WORD}' where id = 1", f"and in {WORD}"),
    "a deposit's block": ("update deposits set block_number = 1 where payment_id = 2", "and in 1 in the ledger"),
    "a deposit that is missing": ("delete from deposits where payment_id = 2", "is on chain and not in the ledger"),
    "a plain transfer that is missing": (
        "delete from deposits where nonce is null and refund_id is null", "is on chain and not in the ledger"
    ),
    "a deposit off the chain": ("update deposits set on_chain = 0 where id = 1", "is on chain and not in the ledger"),
    "a deposit too many": (
        f"insert into deposits (asset, payer, nonce, value, \"transaction\", log_index, block_number, block_hash, "
        f"created_at) select asset, payer, '{WORD}', 5, '{WORD}', 0, block_number, '{WORD}', 0 from deposits limit 1",
        "is in the ledger and not on chain",
    ),
    "an owner that is missing": (
        "update deposits set payment_id = null where payment_id = 1", "payment 1: is settled without a deposit"
    ),
    "another owner": ("update deposits set payment_id = 77 where payment_id = 1", "payment 77, which does not exist"),
    "a payment's value": ("update payments set value = 5 where id = 1", "has another value than payment 1"),
    "a payment's state": (
        "update payments set state = 'rejected' where id = 1", "belongs to payment 1, which is rejected"
    ),
    "a journal that says otherwise": (
        "delete from journal where payment_id = 2 and state = 'settled'", "payment 2: is settled, and its journal says"
    ),
    "a gig that is missing": ("delete from gigs where id = 1", "and its gig and commission are 1 USDC"),
    "a gig without a payment": (
        "insert into gigs (wallet, creator, terms, gig_type, platform, token, symbol, reward, commission, start_at, "
        "end_at, created_at) "
        "select wallet, creator, terms, '', '', '', '', reward, commission, 0, 0, 0 from gigs limit 1",
        "gig 4: has no payment",
    ),
    "a gig's wallet": (f"update gigs set wallet = '{STRANGER}' where id = 1", "a wallet that is not its own"),
    "a gig's reward": ("update gigs set reward = '10000001' where id = 3", "gig 3: is 10.000001 USDC in 0x"),
    "a gig's commission": ("update gigs set commission = 0 where id = 3", "another commission than payment 3"),
    "a reward that is missing": (f"delete from movements where {REWARD_1}", "this ledger did not sign that"),
    "a reward nobody signed": (
        f"delete from slot_movements where movement_id in (select id from movements where {REWARD_1})",
        "this ledger did not sign that",
    ),
    "a reward's payee": (f"update movements set payee = '{STRANGER}' where {REWARD_1}", "reward of gig 1: went to 0x"),
    "a reward's value": (f"update movements set value = 1 where {REWARD_1}", "reward of gig 1: is 10 USDC on chain"),
    "a reward's nonce": (f"update movements set nonce = '{WORD}' where {REWARD_1}", "has a nonce that is not its own"),
    "a reward that is due again": (f"update movements set state = 'due' where {REWARD_1}", "is on chain and due in"),
    "a reward that was given up": (f"update movements set state = 'void' where {REWARD_1}", "a reward that is void"),
    "a payment that never was": (
        "insert into movements (kind, subject, payee, value, nonce, state, block_number, created_at) "
        f"values ('commission', 9, '{STRANGER}', 5, '{WORD}', 'done', 6, 0)",
        "commission 9: is done in the ledger and not on chain",
    ),
    "a commission without its payment": ("delete from commissions where payment_id = 1", "and that of its payments 0"),
    "a refund without its deposit": (
        "update deposits set refund_id = null where refund_id is not null", "has no deposit"
    ),
    "a refund's payee": (
        f"update movements set payee = '{STRANGER}' where kind = 'refund'", f"on chain and to {STRANGER} in the ledger"
    ),
}  # fmt: skip


def test_the_ledger_of_a_stopped_server_adds_up_and_is_not_touched(closed: Closed) -> None:
    before = contents(closed.desk.ledger)
    found = closed.desk.audit()
    assert (found["received"], found["refunds"]) == (3 * PRICE + 9_000_000, 7_000_000)
    assert (found["unclaimed"], found["intake_balance"]) == (2_000_000, 2_000_000)
    assert contents(closed.desk.ledger) == before
    assert closed.differences(closed.desk.ledger) == []


def contents(ledger: str) -> object:
    """Every byte of a file; of a database, how often its rows were touched."""
    if ledger.startswith(ledgers.FILE):
        return hashlib.sha256(Path(ledger.removeprefix(ledgers.FILE)).read_bytes()).digest()
    return ledgers.rows(ledger, "select relname, n_tup_ins, n_tup_upd, n_tup_del from pg_stat_user_tables order by 1")


@pytest.mark.parametrize(("statement", "named"), FALSIFIED.values(), ids=FALSIFIED)
def test_a_falsified_ledger_is_found_out(closed: Closed, tmp_path: Path, statement: str, named: str) -> None:
    found = closed.differences(falsified(closed.desk, tmp_path, statement))
    assert any(named in difference for difference in found), found


def falsified(desk: Desk, folder: Path, *statements: str) -> str:
    copy = ledgers.copy(desk.ledger, folder)
    ledgers.change(copy, *statements)
    return copy


def test_every_difference_is_listed_and_ends_the_command_with_1(closed: Closed, tmp_path: Path) -> None:
    names = ("a deposit that is missing", "a reward's payee", "a gig's commission")
    statements = [FALSIFIED[name][0] for name in names]
    copy = falsified(closed.desk, tmp_path, *statements, "update ledger set start_balance = 5000000")

    found = closed.desk.problems(database_url=copy)

    for name in names:
        assert any(FALSIFIED[name][1] in problem for problem in found), found
    assert any("start: the intake held 5 USDC in the ledger and 0 USDC on chain" in problem for problem in found), found


def test_money_that_moves_behind_the_ledgers_back_is_found_out(chain: Chain, tmp_path: Path) -> None:
    with operated(chain, tmp_path) as shop:
        shop.bought()
        shop.receive(4_000_000)
        # A balance that changes without a log: no token does that.
        chain.give_usdc(shop.intake, 9_000_000)
        shop.read_up(blocks=1)
        assert [p for p in shop.desk.problems() if p.startswith("intake: holds 5 USDC more than its logs")]
        chain.give_usdc(shop.intake, 4_000_000)
        shop.read_up(blocks=1)
        assert shop.desk.audit()["ok"]

        transfer(shop, shop.intake, STRANGER, 1_000_000)
        shop.read_up(blocks=1)

        problem, halted = shop.desk.problems()
        assert problem.startswith(f"1 USDC to {STRANGER} in 0x")
        assert problem.endswith("left the intake and this ledger did not sign that")
        assert halted.startswith("server: is halted: ")
        assert "halted" in shop.desk.run("refunds", "pay", "3", "--to", STRANGER, "--yes").stderr


# What it needs


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"database_url": "sqlite:///nowhere.db"}, "`x402-gig serve` makes it"),
        ({"wallet_account": "5"}, "X402_GIG_WALLET_ACCOUNT is 5, and the ledger says 0"),
        ({"network": "base-sepolia"}, "X402_GIG_NETWORK is base-sepolia, and the ledger says devnet"),
        ({"relayers": "none"}, "X402_GIG_RELAYERS"),
    ],
)
def test_wrong_settings_end_it_with_2(closed: Closed, settings: dict[str, str], said: str) -> None:
    done = closed.desk.run("audit", **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


def test_money_from_before_the_ledger_is_not_counted_twice_after_a_reorganisation(tmp_path: Path) -> None:
    """The blocks below the ledger's beginning are read again, and funding must not wait for money twice."""
    seed = str(Account.create_with_mnemonic()[1])
    intake = Account.from_mnemonic(seed, account_path="m/44'/60'/2'/0/0").address
    with devnet() as early:
        transfer(early, early.buyer(5_000_000).address, intake, 5_000_000)
        early.rpc("anvil_mine", "0x1")
        with operated(early, tmp_path, seed=seed, reorg_depth=10) as shop:
            shop.read_up(blocks=2)
            shop.rpc("anvil_reorg", 1, [])
            shop.read_up(blocks=2)
            [gig] = shop.bought()
            assert shop.usdc(gig["gig_wallet_address"]) == REWARD
            shop.read_up()
            assert shop.desk.audit()["intake_balance"] == 5_000_000
