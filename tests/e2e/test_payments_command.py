"""`x402-gig payments`: what a person finds out about a payment, and the one that waits for a person."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.support.harness import Json, devnet, gig_terms, payment_header, until
from tests.support.operator import PRICE, Shop, operated, words


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with devnet() as chain, operated(chain, tmp_path_factory.mktemp("shop"), max_timeout_s=10) as running:
        yield running


@contextmanager
def stalled(shop: Shop) -> Iterator[None]:
    """No blocks until the context ends."""
    shop.rpc("evm_setAutomine", False)
    try:
        yield
    finally:
        shop.rpc("evm_setAutomine", True)
        shop.rpc("evm_mine")


def pending(shop: Shop) -> int:
    return int(shop.rpc("txpool_status")["pending"], 16)


def in_vain(shop: Shop, sale: "Sale") -> None:
    """One broadcast: the payer's money is away by the time that the block is made."""
    shop.give_usdc(sale.payer, PRICE)
    with stalled(shop):
        answer = sale.posted()
        until(lambda: pending(shop))
        shop.give_usdc(sale.payer, 0)
    assert answer.result().status_code == 503


class Sale:
    """A payer without money, and a payment."""

    def __init__(self, shop: Shop, lifetime_s: int = 3600) -> None:
        self.shop, self.terms, self.buyer = shop, gig_terms(), shop.buyer(0)
        expiry = str(int(time.time()) + lifetime_s)
        self.header = payment_header(self.buyer, shop.quote(self.terms), validBefore=expiry)
        self.payer = self.buyer.address
        self._pool = ThreadPoolExecutor(1)

    def posted(self) -> "Future[httpx.Response]":
        return self._pool.submit(self.shop.post, self.terms, self.header)

    @property
    def number(self) -> str:
        [(number,)] = self.shop.desk.rows("select id from payments where payer = ?", self.payer.lower())
        return str(number)

    @property
    def next(self) -> str:
        return str(self.story["next"])

    @property
    def story(self) -> Json:
        return dict(self.shop.desk.shown("payments", "show", self.number))


def given_up(shop: Shop) -> Sale:
    """Sent three times in vain; before the last it still waits for its buyer."""
    sale = Sale(shop)
    for _ in range(2):
        in_vain(shop, sale)
        assert "waits for validBefore" in sale.next
        assert "sent again when its buyer repeats it" in sale.next
    in_vain(shop, sale)
    return sale


@pytest.fixture(scope="module")
def flagged(shop: Shop) -> Sale:
    return given_up(shop)


def test_a_payment_is_found_by_anything_that_names_it(shop: Shop) -> None:
    [gig] = shop.bought()
    funding = gig["funding"]
    row = shop.desk.rows('select id, nonce from payments where "transaction" = ?', funding["deposit_transaction"])
    [(number, nonce)] = row
    names = [str(number), nonce, nonce.upper().replace("X", "x"), *[v for k, v in funding.items() if k != "state"]]
    for name in names:
        assert shop.desk.shown("payments", "show", name)["payment"]["id"] == number


def test_a_settled_payment_is_told_from_its_terms_to_the_last_transfer(shop: Shop) -> None:
    [gig] = shop.bought()
    funding = gig["funding"]
    number = str(shop.desk.rows("select max(id) from payments")[0][0])

    told = shop.desk.run("payments", "show", number).stdout

    assert f"Payment {number} is settled" in told
    assert "like on farcaster, 10 USDC, 1day, https://farcaster.xyz/dwr/0x1a2b3c4d" in told
    happened = [
        "open",
        f"sent in {funding['deposit_transaction']} (relayer 0x",
        "mined in block",
        "deposit ",
        f"settled in {funding['deposit_transaction']}",
        f"gig {gig['id']}\n",
        f"reward {gig['id']} due: 10 USDC to {gig['gig_wallet_address']}",
        f"sent in {funding['reward_transaction']}",
        f"reward {gig['id']} done in block",
    ]
    places = [told.index(event, told.index("when (UTC)")) for event in happened]
    assert places == sorted(places)
    assert told.splitlines()[-1] == "next: nothing: done"


def test_nothing_that_could_be_executed_is_shown(shop: Shop, flagged: Sale) -> None:
    [(signature, raw)] = shop.desk.rows(
        "select signature, raw from payments join slot_payments on payment_id = payments.id "
        "join attempts using (slot_id) where payments.id = ? limit 1",
        int(flagged.number),
    )
    for arguments in (("show", flagged.number), ("show", flagged.number, "--json"), ("list", "--json")):
        said = shop.desk.run("payments", *arguments).stdout
        assert signature not in said
        assert raw[2:] not in said


def test_a_payment_on_its_way_is_its_relayers(shop: Shop) -> None:
    sale = Sale(shop)
    shop.give_usdc(sale.payer, PRICE)
    with stalled(shop):
        answer = sale.posted()
        until(lambda: pending(shop))
        assert sale.next.startswith("relayer 0x")
        assert sale.next.endswith("sends it until a block has it")
    assert answer.result().status_code == 200


def test_what_was_sent_in_vain_is_flagged(shop: Shop, flagged: Sale) -> None:
    number = flagged.number
    assert f"flagged: broadcast 3 times without success; run x402-gig payments retry {number}" in flagged.next
    assert [row["id"] for row in shop.desk.shown("payments", "list", "--flagged")] == [int(number)]
    told = shop.desk.run("payments", "show", number).stdout
    assert f"Payment {number} is open, flagged" in told
    assert told.count("the token refused it there") == 3
    [line] = shop.desk.run("payments", "list", "--payer", flagged.payer).stdout.splitlines()
    assert words(line).startswith(f"{number} open 11 USDC {flagged.payer.lower()}")
    assert line.endswith("flagged")


def test_lists_are_by_state_and_payer_and_no_longer_than_wanted(shop: Shop, flagged: Sale) -> None:
    def listed(*arguments: str) -> list[Any]:
        return list(shop.desk.shown("payments", "list", *arguments))

    shop.bought(2)
    newest = shop.desk.rows("select max(id) from payments")[0][0]
    assert [row["id"] for row in listed("--limit", "2")] == [newest, newest - 1]
    assert {row["state"] for row in listed("--state", "settled")} == {"settled"}
    assert [row["id"] for row in listed("--payer", flagged.payer)] == [int(flagged.number)]
    assert shop.desk.run("payments", "list", "--state", "lost").returncode == 2
    assert shop.desk.run("payments", "list", "--payer", "me").returncode == 2


def test_what_names_no_payment_is_refused_with_what_to_do(shop: Shop) -> None:
    assert shop.desk.run("payments", "show", "0x12").returncode == 2
    unknown = shop.desk.run("payments", "show", "999")
    assert unknown.returncode == 1
    assert "refunds list" in unknown.stderr
    assert shop.desk.run("payments", "retry", "999").returncode == 1


def test_a_flagged_payment_is_sent_again_by_command_and_settles(shop: Shop) -> None:
    sale = given_up(shop)
    shop.give_usdc(sale.payer, PRICE)
    number = sale.number

    done = shop.desk.run("payments", "retry", number)

    assert done.returncode == 0
    assert "the running server does it within seconds" in done.stderr
    until(lambda: sale.next == "nothing: done")
    assert "to be sent again" in [entry["reason"] for entry in sale.story["journal"]]
    again = sale.posted().result()
    assert (again.status_code, shop.usdc(sale.payer)) == (200, 0)
    refused = shop.desk.run("payments", "retry", number)
    assert refused.returncode == 1
    assert f"and bought gig {again.json()['gig_id']}: there is nothing to send" in refused.stderr


def test_a_payment_inherits_the_authorization_that_replaces_it(shop: Shop) -> None:
    sale = Sale(shop)
    in_vain(shop, sale)
    shop.give_usdc(sale.payer, PRICE)
    sale.header = payment_header(sale.buyer, shop.quote(sale.terms))
    assert sale.posted().result().status_code == 200
    [alias] = sale.story["aliases"]
    assert shop.desk.shown("payments", "show", alias["nonce"])["payment"]["id"] == int(sale.number)
    assert f"authorization {alias['nonce']} inherits it" in shop.desk.run("payments", "show", sale.number).stdout


def test_a_payment_that_expired_says_so_and_is_not_sent_again(shop: Shop) -> None:
    sale = Sale(shop, lifetime_s=60)
    in_vain(shop, sale)
    shop.rpc("evm_increaseTime", 120)
    shop.rpc("evm_mine")
    until(lambda: sale.story["payment"]["state"] == "rejected")

    assert sale.next == "nothing: nothing was charged"
    refused = shop.desk.run("payments", "retry", sale.number)
    assert refused.returncode == 1
    assert "is rejected and nothing was charged: The authorization expired unused" in words(refused.stderr)
