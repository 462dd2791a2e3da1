"""Gigs that are created with an API key: any token, funded by a transfer, started once."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from eth_account import Account

from tests.support import ledgers
from tests.support.creators import CREATE, START, Creator
from tests.support.harness import USDC, Json, devnet, gig_terms, until
from tests.support.operator import Shop, operated
from tests.support.tokens import Erc20, call_data, deploy
from x402_gig.market.keyed_gigs import MAX_DEPOSITS
from x402_gig.treasury.token_transactions import LOOKED_AT

UNAUTHORIZED = {"error": "Invalid API key"}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with devnet() as chain, operated(chain, tmp_path_factory.mktemp("keyed")) as opened:
        yield opened


@pytest.fixture(scope="module")
def creator(shop: Shop) -> Creator:
    return Creator(shop, shop.desk)


@pytest.fixture(scope="module")
def odd(shop: Shop) -> Erc20:
    return deploy(shop, "OddToken")


@pytest.fixture(scope="module")
def usdc(shop: Shop) -> Erc20:
    return Erc20(shop, USDC)


def test_a_gig_is_created_unfunded_and_its_funding_is_ready_to_be_sent(
    shop: Shop, creator: Creator, odd: Erc20
) -> None:
    made = creator.create(odd.address, amount="100.00000000001", duration="3months")
    wallet = made["gig_wallet_address"]
    total = 11_000_000_000_002  # a hundred and a base unit, a tenth on top, rounded up
    assert made == {
        "gig_id": made["gig_id"],
        "gig_wallet_address": wallet,
        "gig_token_address": odd.address,
        "gig_chain_id": 8453,
        "gig_balance": "100.00000000001",
        "platform_fee": "10.00000000001",
        "total_amount": "110.00000000002",
        "tx_data": call_data("transfer(address,uint256)", wallet, total),
    }
    mine = creator.gig(made)
    assert (mine["status"], mine["funding"]["state"], mine["token"]["decimals"]) == ("created", "unfunded", 11)
    for headers in ({}, {"x-api-key": Creator(shop, shop.desk).key}):
        assert shop.http.get(f"{shop.url}/api/gigs/{made['gig_id']}", headers=headers).status_code == 404


@pytest.mark.parametrize("duration", ["1day", "3days", "1week", "2weeks", "3months", "6months"])
def test_every_duration_can_be_had(creator: Creator, odd: Erc20, duration: str) -> None:
    days = {"1day": 1, "3days": 3, "1week": 7, "2weeks": 14, "3months": 90, "6months": 180}[duration]
    assert creator.gig(creator.create(odd.address, duration=duration))["duration_ms"] == days * 24 * 3600 * 1000


@pytest.mark.parametrize("token", ["OddToken", "OldToken", "USDC"])
def test_a_funded_gig_is_started_and_its_commission_leaves_its_wallet(shop: Shop, creator: Creator, token: str) -> None:
    erc20 = Erc20(shop, USDC) if token == "USDC" else deploy(shop, token)
    before = erc20.balance(shop.commission)
    made = creator.started(erc20)
    gig = creator.paid_up(made)

    unit = 10 ** gig["token"]["decimals"]
    assert (gig["status"], gig["amount"], gig["funding"]["surplus"]) == ("active", "10", "0")
    assert gig["ticker"] == {"OddToken": "ODD", "OldToken": "OLD"}.get(token, token)
    assert erc20.balance(made["gig_wallet_address"]) == 10 * unit
    assert erc20.balance(shop.commission) == before + unit
    assert gig["payment"]["transaction"] == gig["funding"]["deposit_transaction"]
    again = creator.start(made)
    assert (again.status_code, again.json()) == (400, {"error": "Gig is already live"})


def test_without_a_key_nothing_is_created_or_started(shop: Shop, odd: Erc20, creator: Creator) -> None:
    made = creator.funded(odd)
    wrong = creator.key[:-1] + ("a" if creator.key[-1] != "a" else "b")
    headers = [{}, {"x-api-key": ""}, {"x-api-key": wrong}, {"x-api-key": "x" * 5000}, {"x-api-key": creator.key[:12]}]
    for header in headers:
        for path, body in ((CREATE, gig_terms(token_address=odd.address)), (START, {"gig_id": made["gig_id"]})):
            answer = shop.post(body, header, path)
            assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)
    two = shop.http.post(
        shop.url + START, json={"gig_id": made["gig_id"]}, headers=[("x-api-key", creator.key), ("x-api-key", wrong)]
    )
    assert (two.status_code, two.json()) == (401, UNAUTHORIZED)
    assert creator.gig(made)["status"] == "created"


def test_a_revoked_key_is_refused_at_once(shop: Shop, odd: Erc20) -> None:
    creator = Creator(shop, shop.desk)
    made = creator.funded(odd)
    shop.desk.run("keys", "revoke", creator.key[:12], "--yes")
    assert creator.start(made).status_code == 401


def test_only_the_key_that_made_a_gig_can_start_it(shop: Shop, creator: Creator, odd: Erc20) -> None:
    made = creator.funded(odd)
    answer = Creator(shop, shop.desk).start(made)
    assert (answer.status_code, answer.json()) == (404, {"error": f"Gig with id {made['gig_id']} not found"})
    assert creator.start(made).status_code == 200


@pytest.mark.parametrize("gig_id", [2**31 - 1, 2**31, 10**30, 0, -1])
def test_an_unknown_gig_is_not_found(creator: Creator, gig_id: int) -> None:
    answer = creator.post(START, {"gig_id": gig_id})
    assert (answer.status_code, answer.json()) == (404, {"error": f"Gig with id {gig_id} not found"})


@pytest.mark.parametrize("body", [{}, {"gig_id": "1"}, {"gig_id": 1.5}, {"gig_id": True}, {"gig_id": None}])
def test_a_start_names_a_gig_by_its_number(creator: Creator, body: Json) -> None:
    answer = creator.post(START, body)
    assert (answer.status_code, answer.json()["details"]) == (400, ["Invalid gig id"])


def test_a_gig_that_was_bought_cannot_be_started(shop: Shop, creator: Creator) -> None:
    [bought] = shop.bought()
    assert creator.post(START, {"gig_id": bought["id"]}).status_code == 404


@pytest.mark.parametrize("sent", [0, 10 * 10**11, 11 * 10**11 - 1])
def test_an_unfunded_gig_is_refused_with_all_that_is_needed_to_fund_it(creator: Creator, odd: Erc20, sent: int) -> None:
    made = creator.create(odd.address)
    if sent:
        odd.send(odd.holder(sent), made["gig_wallet_address"], sent)
    answer = creator.start(made)
    has = {0: "0", 10 * 10**11: "10", 11 * 10**11 - 1: "10.99999999999"}[sent]
    assert answer.status_code == 400
    assert answer.json() == {
        "error": {
            "message": f"Gig with id {made['gig_id']} is not funded",
            "details": [
                "Expected amount: 11 ODD",
                f"Actual amount: {has} ODD",
                f"Token Address: {odd.address}",
                "Chain: base",
                "Chain id: 8453",
                f"Gig wallet address: {made['gig_wallet_address']}",
            ],
        }
    }


def test_what_a_token_keeps_of_a_transfer_is_missing(shop: Shop, creator: Creator) -> None:
    fee = deploy(shop, "FeeToken")
    made = creator.funded(fee)
    answer = creator.start(made)
    assert answer.json()["error"]["details"][:2] == ["Expected amount: 11 FEE", "Actual amount: 10.89 FEE"]
    fee.send(fee.holder(10**18), made["gig_wallet_address"], 2 * 10**17)
    assert creator.start(made).status_code == 200
    gig = creator.paid_up(made)
    # 1 left the wallet, of which the token kept a hundredth.
    assert fee.balance(made["gig_wallet_address"]) == 10_890_000_000_000_000_000 + 198_000_000_000_000_000 - 10**18
    assert fee.balance(shop.commission) == 99 * 10**16
    assert gig["funding"]["surplus"] == "0.088"


def test_several_transfers_by_several_payers_fund_a_gig(shop: Shop, creator: Creator, odd: Erc20) -> None:
    made = creator.create(odd.address)
    payers = [odd.holder(10**12) for _ in range(3)]
    sent = [
        odd.send(payer, made["gig_wallet_address"], units)
        for payer, units in zip(payers, [5 * 10**11, 10**12, 10**11], strict=True)
    ]
    assert creator.start(made).status_code == 200
    gig = creator.paid_up(made)
    assert gig["funding"]["surplus"] == "5"
    # The one who sent the most paid for it.
    assert (gig["creator"], gig["payment"]["transaction"]) == (payers[1].lower(), sent[1]["transactionHash"])
    rows = shop.desk.rows('select payer, "transaction" from gig_deposits where gig_id = ? order by id', made["gig_id"])
    assert rows == [(p.lower(), r["transactionHash"]) for p, r in zip(payers, sent, strict=True)]


def test_fifty_starts_at_once_start_a_gig_once(shop: Shop, creator: Creator, usdc: Erc20) -> None:
    made = creator.create(USDC)
    payer = shop.buyer(11_000_000).address
    shop.send(payer, USDC, made["tx_data"])
    with ThreadPoolExecutor(50) as threads:
        answers = [*threads.map(lambda _: creator.start(made), range(50))]
    codes = sorted(answer.status_code for answer in answers)
    assert codes.count(200) == 1, codes
    texts = {answer.text for answer in answers if answer.status_code != 200}
    busy = f'{{"error":"Gig with id {made["gig_id"]} is currently being processed"}}'
    assert texts <= {busy, '{"error":"Gig is already live"}'}
    assert {answer.status_code for answer in answers} <= {200, 400, 409}
    creator.paid_up(made)
    assert (usdc.balance(made["gig_wallet_address"]), shop.usdc(payer)) == (10_000_000, 0)
    assert shop.desk.rows("select count(*) from movements where source_gig = ?", made["gig_id"]) == [(1,)]


@pytest.mark.parametrize("mood", [256, 1000, 77])
def test_a_token_that_lies_about_its_decimals_is_refused(shop: Shop, creator: Creator, mood: int) -> None:
    token = deploy(shop, "MoodyToken")
    token.call("say(uint256)", mood)
    answer = creator.post(CREATE, gig_terms(token_address=token.address, amount="0", duration="1hour"))
    assert (answer.status_code, answer.json()["details"]) == (
        400,
        ["Invalid token address", "Invalid amount", "Invalid duration"],
    )


def test_what_is_no_token_is_refused(shop: Shop, creator: Creator) -> None:
    nobody, contract = Account.create().address, deploy(shop, "NoDecimals").address
    for address in (nobody, contract, "0x" + "00" * 20, "0x12", "USDC", None):
        answer = creator.post(CREATE, gig_terms(token_address=address))
        assert (answer.status_code, answer.json()["details"]) == (400, ["Invalid token address"]), address


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"amount": 0}, "Invalid amount"),
        ({"amount": "0.000000000001"}, "Invalid amount"),
        ({"amount": 1_000_001}, "Maximum amount is 1000000"),
        ({"duration": "2days"}, "Invalid duration"),
        ({"keywrod": "x"}, "Unknown field: keywrod"),
    ],
)
def test_wrong_terms_are_refused(creator: Creator, odd: Erc20, change: Json, problem: str) -> None:
    answer = creator.post(CREATE, gig_terms(token_address=odd.address, **change))
    assert (answer.status_code, answer.json()) == (400, {"error": "Validation failed", "details": [problem]})


def test_a_tiny_reward_is_fine(creator: Creator, odd: Erc20) -> None:
    assert creator.create(odd.address, amount="0.00000000001")["total_amount"] == "0.00000000002"


def test_a_start_in_the_past_means_the_moment_of_the_start(creator: Creator, odd: Erc20) -> None:
    made = creator.create(odd.address, start_time="2020-01-01")
    planned = creator.gig(made)["start_time_ms"]
    creator.shop.send(odd.holder(10**13), odd.address, made["tx_data"])
    until(lambda: time.time() * 1000 >= planned + 1000)
    assert creator.start(made).status_code == 200
    gig = creator.gig(made)
    assert gig["start_time_ms"] > planned
    assert gig["end_time_ms"] - gig["start_time_ms"] == 24 * 3_600_000


def test_a_token_that_refuses_to_move_holds_up_nothing_else(shop: Shop, creator: Creator, odd: Erc20) -> None:
    """However many gigs have it: more of them than are looked at in one round."""
    stuck = []
    for lever, gigs in ((("burn(uint256)", 100), 1), (("refuse(bool)", True), LOOKED_AT)):
        moody = deploy(shop, "MoodyToken")
        made = [creator.funded(moody) for _ in range(gigs)]
        moody.call(*lever)
        assert {creator.start(gig).status_code for gig in made} == {200}
        stuck += made

    creator.paid_up(creator.started(odd))

    warning = until(lambda: (said := _warning(shop)).count("fee") == 3 and said)
    assert "the token answers its transfer with false" in warning
    assert "wants more than 300000 gas" in warning
    assert {creator.gig(made)["funding"]["commission_transaction"] for made in stuck} == {None}


def _warning(shop: Shop) -> str:
    return str(shop.http.get(f"{shop.url}/readyz").json()["warnings"].get("payouts", ""))


@pytest.mark.parametrize("token", ["OddToken", "USDC"])
def test_a_surplus_is_given_back_once(shop: Shop, creator: Creator, token: str) -> None:
    erc20 = Erc20(shop, USDC) if token == "USDC" else deploy(shop, token)
    made = creator.started(erc20, extra=5)
    creator.paid_up(made)
    wallet, owner = made["gig_wallet_address"], str(Account.create().address)
    reward = erc20.balance(wallet) - 5
    refund = ("gigs", "refund", str(made["gig_id"]), "--to", owner, "--yes")

    late = erc20.holder(10) if token != "USDC" else shop.buyer(10).address
    erc20.send(late, wallet, 2)
    paid = shop.desk.run(*refund)
    assert paid.returncode == 0, paid.stderr
    assert f"came from {late.lower()} in 0x" in paid.stderr
    again = shop.desk.run(*refund)
    assert (again.returncode, "nothing to give back" in again.stderr) == (1, True)

    until(lambda: erc20.balance(owner) == 7)
    assert erc20.balance(wallet) == reward
    assert creator.gig(made)["funding"]["surplus"] == "0"
    assert creator.gig(made)["status"] == "active"
    assert shop.desk.run(*refund).returncode == 1


def test_a_gig_that_is_not_started_is_cancelled_and_paid_back_whole(shop: Shop, creator: Creator, odd: Erc20) -> None:
    made, owner = creator.funded(odd), str(Account.create().address)
    refund = ("gigs", "refund", str(made["gig_id"]), "--to", owner)
    asked = shop.desk.run(*refund, said="n\n")
    assert asked.returncode == 1
    assert "this cancels it" in asked.stderr
    assert shop.desk.run(*refund, said="y\n").returncode == 0
    until(lambda: odd.balance(owner) == 11 * 10**11)
    answer = creator.start(made)
    assert (answer.status_code, answer.json()) == (400, {"error": "Gig is cancelled"})
    gig = creator.gig(made)
    assert (gig["status"], gig["funding"]["state"]) == ("cancelled", "refunded")
    listed = shop.desk.shown("gigs", "list", "--state", "cancelled")
    assert [(row["gig_id"], row["key"]) for row in listed] == [(made["gig_id"], creator.key[:12])]
    assert f"{made['gig_id']}  cancelled" in shop.desk.run("gigs", "list").stdout


def test_whoever_says_yes_to_a_refund_that_was_paid_meanwhile_gets_nothing_of_the_reward(
    shop: Shop, creator: Creator, odd: Erc20
) -> None:
    made, owner = creator.started(odd, extra=5), str(Account.create().address)
    creator.paid_up(made)
    refund = ("gigs", "refund", str(made["gig_id"]), "--to", owner)
    asked = subprocess.Popen(
        [sys.executable, "-m", "x402_gig", *refund],
        env={**os.environ, **shop.desk.env}, cwd=shop.desk.folder,
        stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert asked.stderr is not None
    assert "came from" in asked.stderr.readline()
    assert shop.desk.run(*refund, "--yes").returncode == 0
    until(lambda: odd.balance(owner) == 5)
    shop.read_up()

    _, said = asked.communicate("y\n", timeout=30)
    assert (asked.returncode, "has changed meanwhile" in said) == (1, True), said
    assert shop.desk.rows("select count(*) from movements where kind = 'surplus' and payee = ?", owner.lower()) == [
        (1,)
    ]


def test_a_token_that_tells_of_countless_transfers_is_not_listened_to_for_ever(shop: Shop, creator: Creator) -> None:
    loud = deploy(shop, "LoudToken")
    made = creator.funded(loud, extra=10**18)
    for _ in range(3):
        loud.call("shout(address,uint256)", made["gig_wallet_address"], 1_000)
    assert creator.start(made).status_code == 200
    kept = shop.desk.rows("select count(*) from gig_deposits where gig_id = ?", made["gig_id"])
    assert kept == [(MAX_DEPOSITS,)]


def test_a_transfer_of_nothing_in_the_name_of_another_makes_nobody_the_creator(
    shop: Shop, creator: Creator, odd: Erc20
) -> None:
    made, victim, payer = creator.create(odd.address), str(Account.create().address), odd.holder(10**30)
    nothing = call_data("transferFrom(address,address,uint256)", victim, made["gig_wallet_address"], 0)
    assert shop.send(str(Account.create().address), odd.address, nothing)["status"] == "0x1"
    assert shop.send(payer, odd.address, made["tx_data"])["status"] == "0x1"
    assert creator.start(made).status_code == 200
    assert creator.gig(made)["creator"].lower() == payer.lower()
    kept = creator.desk.rows("select payer from gig_deposits where gig_id = ?", made["gig_id"])
    assert kept == [(payer.lower(),)]


def test_a_transfer_of_nothing_in_the_name_of_a_gigs_wallet_does_not_trouble_the_audit(
    shop: Shop, creator: Creator, odd: Erc20
) -> None:
    made, stranger = creator.started(odd), str(Account.create().address)
    creator.paid_up(made)
    nothing = call_data("transferFrom(address,address,uint256)", made["gig_wallet_address"], stranger, 0)
    assert shop.send(stranger, odd.address, nothing)["status"] == "0x1"
    shop.read_up()
    assert shop.desk.audit()["ok"]


def test_what_cannot_be_refunded_says_why(shop: Shop, creator: Creator, odd: Erc20) -> None:
    [bought], made = shop.bought(), creator.started(odd)
    creator.paid_up(made)
    to = ("--to", str(Account.create().address), "--yes")
    for arguments, said in (
        ((str(bought["id"]), *to), "that was created with an API key"),
        (("999999", *to), "There is no gig 999999"),
        ((str(made["gig_id"]), *to), "nothing to give back"),
    ):
        done = shop.desk.run("gigs", "refund", *arguments)
        assert (done.returncode, said in done.stderr) == (1, True), done.stderr
    extra = creator.funded(odd, extra=1)
    own = shop.desk.run("gigs", "refund", str(extra["gig_id"]), "--to", extra["gig_wallet_address"], "--yes")
    assert own.returncode == 1
    assert "must be the address of its owner" in own.stderr


def test_the_audit_compares_the_wallets_of_gigs_created_with_a_key(
    shop: Shop, creator: Creator, odd: Erc20, tmp_path: Path
) -> None:
    for token in (odd, deploy(shop, "FeeToken")):
        made = creator.funded(token, extra=10**18)
        assert creator.start(made).status_code == 200
        creator.paid_up(made)
    shop.read_up()
    found = shop.desk.audit()
    assert (found["ok"], found["keyed_gigs"] >= 2) == (True, True)

    copy = ledgers.copy(shop.desk.ledger, tmp_path)
    gig = f"= {made['gig_id']}"
    for statement, problem in (
        (f"update gigs set reward = '99000000000000000000' where id {gig}", "and its wallet holds"),
        (f"update gigs set commission = '1' where id {gig}", "has a commission of 1 base units, and"),
        (f"update gig_deposits set value = '1' where gig_id {gig}", "which is not on chain"),
        (f"update movements set \"transaction\" = '0x12' where source_gig {gig}", "this ledger did not sign that"),
        (f"update movements set nonce = '0x12' where source_gig {gig}", "has a nonce that is not its own"),
    ):
        ledgers.change(copy, statement)
        assert any(problem in said for said in shop.desk.problems(database_url=copy)), problem
