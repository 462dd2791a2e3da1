"""Settings that all servers of a ledger share: kept in it, refused where they differ, changed while buyers buy."""

import json
import random
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import pytest
from eth_account import Account

from tests.support import ledgers
from tests.support.crowd import Crowd, Order, crowd
from tests.support.harness import (
    USDC,
    Chain,
    Dev,
    Json,
    calldata,
    devnet,
    gig_terms,
    payload_v2,
    payment_header,
    refused,
    running,
    served,
    until,
)
from tests.support.operator import COMMISSION, PRICE, Shop, operated, words
from tests.support.servers import Postgres

OFFER_S = 10
BUYERS = 6
# Of the same reward at 500 bps.
NEW_PRICE = 10_500_000
MISMATCH = "invalid_exact_evm_payload_authorization_value_mismatch"
BLACKLIST = "0xf9f92be4"
A_WALLET = "0x00000000000000000000000000000000000c0fee"


@pytest.fixture
def shop(tmp_path: Path) -> Json:
    """What servers of one ledger say, one after the other."""
    return {
        "seed": str(Account.create_with_mnemonic()[1]),
        "commission_address": Account.create().address,
        "database_url": ledgers.new(tmp_path),
    }


@pytest.fixture
def two(chain: Chain, postgres: Postgres, tmp_path: Path) -> Iterator[Crowd]:
    with crowd(chain, tmp_path, postgres.database(), 2, max_timeout_s=OFFER_S) as servers:
        yield servers


# What the ledger keeps


@pytest.mark.parametrize(
    ("name", "value", "said", "how"),
    [
        ("network", "base", "base, and the ledger says devnet", "name another ledger in X402_GIG_DATABASE_URL"),
        ("wallet_account", 1, "1, and the ledger says 0", "name another ledger in X402_GIG_DATABASE_URL"),
        ("commission_address", A_WALLET, A_WALLET, f"settings set --commission-address {A_WALLET}"),
        ("commission_bps", 500, "500, and the ledger says 1000", "settings set --commission-bps 500"),
        ("minimum_reward", "2.50", "2.5, and the ledger says 10", "settings set --minimum-reward 2.5"),
        ("maximum_reward", 100, "100, and the ledger says 1000000", "settings set --maximum-reward 100"),
    ],
)
def test_a_server_that_differs_from_its_ledger_is_refused_by_the_settings_name(
    chain: Chain, shop: Json, tmp_path: Path, name: str, value: Any, said: str, how: str
) -> None:
    with served(chain, **shop):
        pass
    told = refused(chain, tmp_path, **shop | {name: value})
    assert f"X402_GIG_{name.upper()} is {said}" in told
    assert how in told


def test_every_setting_that_differs_is_named_at_once(chain: Chain, shop: Json, tmp_path: Path) -> None:
    with served(chain, **shop):
        pass
    told = refused(chain, tmp_path, **shop, commission_bps=1, minimum_reward=1)
    assert "X402_GIG_COMMISSION_BPS is 1" in told
    assert "X402_GIG_MINIMUM_REWARD is 1" in told


def test_what_the_first_start_said_may_be_left_out_from_then_on(chain: Chain, shop: Json) -> None:
    address = shop["commission_address"]
    with served(chain, **shop, wallet_account=3, commission_bps=500, minimum_reward=20) as first:
        intake = first.quote(gig_terms(amount=20))["payTo"]
    silent = {**shop, "network": None, "commission_address": None}
    with served(chain, **silent) as second:
        quote = second.quote(gig_terms(amount=20))
        assert (quote["payTo"], quote["amount"]) == (intake, "21000000")
        assert second.post(gig_terms(amount=19)).status_code == 400
        second.funded(second.buy(chain.buyer(), gig_terms(amount=20)).json()["gig_id"])
    assert chain.usdc(address) == COMMISSION


def test_a_first_start_must_say_what_has_no_default(chain: Chain, shop: Json, tmp_path: Path) -> None:
    told = refused(chain, tmp_path, **shop | {"network": None, "commission_address": None})
    assert "X402_GIG_NETWORK is not set" in told
    assert "X402_GIG_COMMISSION_ADDRESS is not set" in told


def test_a_ledger_of_an_older_version_takes_what_its_next_start_says(chain: Chain, shop: Json, tmp_path: Path) -> None:
    with served(chain, **shop):
        pass
    ledgers.change(shop["database_url"], "update ledger set network = null", "delete from rule_sets")
    with served(chain, **shop, commission_bps=500) as again:
        assert again.quote(gig_terms())["amount"] == str(NEW_PRICE)
    assert "the ledger says 500" in refused(chain, tmp_path, **shop, commission_bps=1000)


def test_servers_of_one_ledger_cannot_have_different_commissions(
    chain: Chain, postgres: Postgres, tmp_path: Path
) -> None:
    """Behind a proxy, a price that was quoted at one of them would be refused at the other."""
    settings = {"database_url": postgres.database(), "seed": str(Account.create_with_mnemonic()[1])}
    with served(chain, **settings) as first:
        assert "the ledger says 1000" in refused(chain, tmp_path, **settings, commission_bps=500)
        with served(chain, **settings) as second:
            for quoted, paid in ((first, second), (second, first)) * 2:
                terms = gig_terms()
                assert paid.post(terms, payment_header(chain.buyer(), quoted.quote(terms))).status_code == 200


def test_different_numbers_of_relayers_are_a_warning_at_each_server(chain: Chain, two: Crowd) -> None:
    said = "the servers of this ledger have different X402_GIG_RELAYERS (1 and 2)"
    assert warnings(two[0]) == {}
    with running("serve", env=two.desk.env | {"X402_GIG_RELAYERS": "1"}, cwd=two.desk.folder) as (_, ready):
        third = Dev(chain.rpc_url, url=ready["url"])
        until(lambda: all(said in warnings(server).get("relayers", "") for server in (*two, third)))
        assert third.buy(chain.buyer()).status_code == 200
    until(lambda: warnings(two[0]) == {})


def warnings(server: Dev) -> Json:
    return dict(server.http.get(f"{server.url}/readyz").json()["warnings"])


# A change of the prices


class Sale(NamedTuple):
    price: int
    paid_at: float


def late() -> Json:
    """The end of an authorization that outlives its test."""
    return {"validBefore": str(int(time.time()) + 600)}


def buy_on_and_on(servers: Crowd, number: int, stop: Event) -> list[Sale]:
    """Ask one server for the price, think about it for as long as it is offered, and pay at the other one."""
    sales = []
    while not stop.is_set():
        requirements = servers[number % 2].quote(gig_terms())
        order = Order(servers[0], servers[0].buyer(PRICE), requirements)
        stop.wait(random.uniform(0, OFFER_S - 3))
        order.gig(servers, number + 1)
        sales.append(Sale(int(requirements["amount"]), time.monotonic()))
        number += 1
    return sales


def test_a_new_commission_reaches_all_servers_while_buyers_buy_and_each_pays_what_he_was_quoted(two: Crowd) -> None:
    nobody = two[0].buyer(0)
    terms = gig_terms()
    old = payment_header(nobody, two[0].quote(terms), **late())

    def reason(server: Dev) -> str:
        """Of the 402 for whoever pays the old price and has no money."""
        return str(server.post(terms, old).json()["error"])

    stop = Event()
    with ThreadPoolExecutor(BUYERS) as threads:
        buyers = [threads.submit(buy_on_and_on, two, number, stop) for number in range(BUYERS)]
        try:
            done = two.desk.run("settings", "set", "--commission-bps", "500", "--yes")
            assert done.returncode == 0, done.stderr
            assert two.desk.run("settings", "show").stdout.count("rule set") == 2
            until(lambda: all(server.quote(terms)["amount"] == str(NEW_PRICE) for server in two))
            changed_at = time.monotonic()
            assert {reason(server) for server in two} == {"insufficient_funds"}
            until(lambda: all(reason(server) == MISMATCH for server in two))
        finally:
            stop.set()
        sales = [sale for buyer in buyers for sale in buyer.result()]

    assert {sale.price for sale in sales} == {PRICE, NEW_PRICE}
    assert any(sale.price == PRICE and sale.paid_at > changed_at for sale in sales)
    again = two[0].post(terms, old)
    assert (again.status_code, again.json()["accepts"][0]["maxAmountRequired"]) == (402, str(NEW_PRICE))
    until(lambda: two[0].usdc(two[0].intake) == 0)
    assert two.desk.audit()["ok"] is True


def test_a_new_minimum_refuses_no_offer_that_was_made_before_it(chain: Chain, tmp_path: Path) -> None:
    with operated(chain, tmp_path, max_timeout_s=OFFER_S) as shop:
        terms = gig_terms()
        offer = shop.quote(terms)
        assert shop.desk.run("settings", "set", "--minimum-reward", "20", "--yes").returncode == 0
        until(lambda: shop.post(terms).status_code == 400)
        answer = shop.post(terms, payment_header(chain.buyer(), offer))
        assert (answer.status_code, answer.json().get("gig_balance")) == (200, "10")
        assert shop.post(b"").json()["accepts"][0]["maxAmountRequired"] == str(2 * PRICE)
        until(lambda: shop.post(terms, payment_header(chain.buyer(0), offer)).status_code == 400)
        assert "From 20 to 1000000 USDC" in shop.http.get(f"{shop.url}/openapi.json").text


def test_a_mistake_that_is_corrected_before_it_is_in_force_is_never_a_price(chain: Chain, tmp_path: Path) -> None:
    with operated(chain, tmp_path, max_timeout_s=OFFER_S) as shop:
        terms = gig_terms()
        wrong = payment_header(chain.buyer(0), shop.quote(terms) | {"amount": "10000000"}, **late())

        def is_refused() -> bool:
            assert shop.quote(terms)["amount"] in {str(PRICE), str(NEW_PRICE)}
            return bool(shop.post(terms, wrong).json()["error"] == MISMATCH)

        assert shop.desk.run("settings", "set", "--commission-bps", "0", "--yes").returncode == 0
        followed = time.monotonic() + 4
        while time.monotonic() < followed:
            assert is_refused()
        assert shop.desk.run("settings", "set", "--commission-bps", "500", "--yes").returncode == 0
        while shop.quote(terms)["amount"] == str(PRICE):
            assert is_refused()
        assert is_refused()


def test_a_deposit_of_less_than_the_new_minimum_that_was_the_price_before_is_paid_back(tmp_path: Path) -> None:
    """Its buyer never sent the order; a stranger executed the authorization."""
    with devnet() as chain, operated(chain, tmp_path, max_timeout_s=OFFER_S) as shop:
        buyer = chain.buyer(PRICE)
        signed = payload_v2(buyer, shop.quote(gig_terms()), **late())
        assert shop.desk.run("settings", "set", "--minimum-reward", "20", "--yes").returncode == 0
        chain.send(A_WALLET, USDC, calldata(signed["payload"]))
        until(lambda: shop.post(gig_terms()).status_code == 400)
        shop.read_up(blocks=5)
        [waiting] = shop.desk.shown("refunds", "list")["unclaimed"]
        assert "its order may still come" in waiting["why"][0]

        chain.rpc("evm_increaseTime", 7300)
        shop.read_up(blocks=5)
        until(lambda: chain.usdc(buyer.address) == PRICE)


# A change of the commission address


def test_commissions_go_to_the_new_address_from_the_change_on(chain: Chain, tmp_path: Path) -> None:
    other = Account.create().address
    with operated(chain, tmp_path) as shop:
        shop.bought()
        done = shop.desk.run("settings", "set", "--commission-address", other, "--yes")
        assert done.returncode == 0, done.stderr
        shop.bought()
        assert (shop.usdc(shop.commission), shop.usdc(other)) == (COMMISSION, COMMISSION)
        shop.read_up()
        assert shop.desk.audit()["ok"] is True


def test_what_the_token_does_not_pay_to_the_old_address_is_paid_to_the_new_one_when_no_signature_lives(
    tmp_path: Path,
) -> None:
    other = Account.create().address
    with devnet() as chain, operated(chain, tmp_path) as shop:
        chain.send(A_WALLET, USDC, BLACKLIST + shop.commission[2:].lower().rjust(64, "0"))
        for _ in range(2):
            shop.buy(chain.buyer())
        until(lambda: "blacklisted" in warnings(shop).get("funding", ""))
        assert shop.desk.run("settings", "set", "--commission-address", other, "--yes").returncode == 0
        shop.read_up(blocks=5)
        assert shop.desk.rows("select state from movements where kind = 'commission'") == [("due",)]

        chain.rpc("evm_increaseTime", 601)
        shop.read_up(blocks=5)
        until(lambda: chain.usdc(other) == 2 * COMMISSION)
        until(lambda: warnings(shop).get("funding") is None)
        assert chain.usdc(shop.commission) == 0
        until(lambda: chain.usdc(shop.intake) == 0)
        shop.read_up()
        assert shop.desk.audit()["ok"] is True


# The commands


@pytest.fixture(scope="module")
def shop_at_work(chain: Chain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with operated(chain, tmp_path_factory.mktemp("at_work")) as shop:
        yield shop


def test_show_tells_who_the_servers_are_and_each_rule_set(shop_at_work: Shop) -> None:
    desk, address = shop_at_work.desk, shop_at_work.commission.lower()
    told = desk.run("settings", "show").stdout
    assert "network             devnet\nwallet_account      0\n" in told
    assert f"commission_address  {address}" in told
    assert "commission_bps 1000  minimum_reward 10  maximum_reward 1000000" in told
    shown = desk.shown("settings", "show")
    [first] = shown.pop("rule_sets")
    assert shown == {"network": "devnet", "wallet_account": 0, "commission_address": address}
    assert (first["id"], first["commission_bps"], first["minimum_reward"]) == (1, 1000, 10_000_000)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ([], 2, "name what is to change"),
        (["--commission-bps", "10001", "--minimum-reward", "ten"], 2, "--commission-bps Input should be less than"),
        (["--commission-address", "0x12"], 2, "--commission-address must be an address"),
        (["--commission-address", f"0x{0:040x}"], 2, "may not be the zero address"),
        (["--commission-address", USDC], 1, "would be the token: it must be an address of your own"),
        (["--minimum-reward", "2000000"], 1, "The maximum reward would be less than the minimum"),
        (["--commission-bps", "1000"], 0, "The ledger says so already: its prices are in force."),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    shop_at_work: Shop, flags: list[str], code: int, said: str
) -> None:
    before = shop_at_work.desk.shown("settings", "show")
    done = shop_at_work.desk.run("settings", "set", *flags, "--yes")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert said in words(done.stderr)
    assert shop_at_work.desk.shown("settings", "show") == before


def test_whoever_does_not_say_yes_changes_nothing(shop_at_work: Shop) -> None:
    before = shop_at_work.desk.shown("settings", "show")
    done = shop_at_work.desk.run("settings", "set", "--commission-bps", "500", said="n\n")
    assert done.returncode == 1
    assert "commission_bps: 1000 → 500" in done.stderr
    assert shop_at_work.desk.shown("settings", "show") == before


def test_the_commands_tell_which_rule_set_is_in_force_and_from_when_a_change_counts(
    chain: Chain, tmp_path: Path
) -> None:
    """Also behind one that was written while the clock was an hour ahead."""
    with operated(chain, tmp_path) as shop:
        ahead = shop.desk.run("settings", "set", "--commission-bps", "400", "--yes")
        assert re.search(r"prices change at \d{4}-.* UTC", ahead.stderr)
        ledgers.change(shop.desk.ledger, "update rule_sets set valid_from = valid_from + 3600 where id = 2")
        waiting = words(shop.desk.run("settings", "set", "--commission-bps", "400", "--yes").stderr)
        assert "The ledger says so already" in waiting
        assert "prices change at" in waiting

        assert shop.desk.run("settings", "set", "--commission-bps", "500", "--yes").returncode == 0
        until(lambda: shop.quote(gig_terms())["amount"] == str(NEW_PRICE))
        shown = shop.desk.shown("settings", "show")["rule_sets"]
        assert [(rules["id"], rules["in_force"]) for rules in shown] == [(3, True), (2, False), (1, False)]
        assert shop.desk.run("settings", "show").stdout.count("in force") == 1


def test_a_setting_with_which_no_server_starts_is_named_by_both_commands(chain: Chain, tmp_path: Path) -> None:
    with operated(chain, tmp_path, commission_bps=1000) as shop:
        done = shop.desk.run("settings", "set", "--commission-bps", "500", "--yes", "--json")
        assert [rules["commission_bps"] for rules in json.loads(done.stdout)["rule_sets"]] == [500, 1000]
        for told in (done, shop.desk.run("settings", "show")):
            assert "X402_GIG_COMMISSION_BPS is 1000 here and 500 in the ledger: leave it out" in told.stderr
        assert "is 1000 here" not in shop.desk.run("settings", "show", commission_bps="500").stderr
