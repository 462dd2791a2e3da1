"""The clients that exist, as they were released: the scripts to copy, the SDKs of both languages, both versions."""

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from x402 import SchemeRegistration, x402Client, x402ClientConfig, x402ClientSync
from x402.http.clients.httpx import PaymentError, x402HttpxClient
from x402.http.clients.requests import x402_requests
from x402.mechanisms.evm.exact import ExactEvmScheme
from x402.mechanisms.evm.signers import EthAccountSigner

from tests.support.harness import CREATE, Dev, Json, decode, gig_terms, until

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = {"python": [sys.executable, "scripts/buy_gig.py"], "node": ["node", "scripts/buy_gig.mjs"]}
PURSE = 100_000_000


def run(*command: str, key: str | None, **more: str) -> str:
    """What a buyer in a process of its own prints."""
    env = {name: value for name, value in os.environ.items() if name != "BUYER_KEY"} | more
    env |= {"BUYER_KEY": key} if key else {}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def key_of(buyer: LocalAccount) -> str:
    return "0x" + bytes(buyer.key).hex()


def config(buyer: LocalAccount, **options: Any) -> x402ClientConfig:
    scheme = SchemeRegistration("eip155:8453", ExactEvmScheme(EthAccountSigner(buyer)))
    return x402ClientConfig([scheme], **options)


def paying(buyer: LocalAccount) -> x402ClientConfig:
    return config(buyer, spend_controls={"max_amount_per_payment": "$11"})


def assert_bought(dev: Dev, buyer: LocalAccount, gig: Json) -> None:
    """Eleven USDC left the buyer, and ten are in the gig's wallet."""
    assert dev.funded(gig["gig_id"])["payment"]["payer"] == buyer.address.lower()
    assert dev.usdc(buyer.address) == PURSE - 11_000_000
    assert dev.usdc(gig["gig_wallet_address"]) == 10_000_000


def test_the_script_to_copy_creates_funds_and_starts_a_gig_with_a_key(dev: Dev) -> None:
    funder = dev.buyer(PURSE)
    dev.rpc("anvil_setBalance", funder.address, hex(10**18))
    keys = {"API_KEY": dev.api_key, "FUNDER_KEY": key_of(funder)}
    answer = run(sys.executable, "scripts/create_gig.py", dev.url, dev.rpc_url, key=None, **keys)
    started = json.loads(answer.removeprefix("200 "))["data"]
    assert started["message"] == "Gig started successfully"
    gig = dev.funded(started["gig_id"])
    assert (gig["status"], gig["creator"]) == ("active", funder.address.lower())
    assert (dev.usdc(funder.address), dev.usdc(gig["gig_wallet_address"])) == (PURSE - 11_000_000, 10_000_000)


def test_the_script_starts_a_gig_that_it_has_funded_before(dev: Dev) -> None:
    made = dev.post(gig_terms(), {"x-api-key": dev.api_key}, "/api/gigs/create").json()
    dev.give_usdc(made["gig_wallet_address"], 11_000_000)
    command = (sys.executable, "scripts/create_gig.py", dev.url, dev.rpc_url, str(made["gig_id"]))
    assert "Gig started successfully" in run(*command, key=None, API_KEY=dev.api_key)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_to_copy_buy_a_gig(dev: Dev, script: str) -> None:
    buyer = dev.buyer(PURSE)
    answer = run(*SCRIPTS[script], dev.url, key=key_of(buyer)).splitlines()[0]
    assert answer.startswith("200 ")
    gig = json.loads(answer.removeprefix("200 "))
    assert_bought(dev, buyer, gig)


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_scripts_need_no_key_on_a_development_chain(dev: Dev, script: str) -> None:
    payer = dev.buyers[0]["address"]
    before = dev.usdc(payer)
    run(*SCRIPTS[script], dev.url, key=None)
    assert before - dev.usdc(payer) == 11_000_000


async def buy_with_httpx(
    dev: Dev, options: x402ClientConfig, terms: Json | None = None, timeout_s: float = 90
) -> httpx.Response:
    async with x402HttpxClient(x402Client.from_config(options), base_url=dev.url, timeout=timeout_s) as http:
        return await http.post(CREATE, json=terms or gig_terms())


def test_the_python_sdk_buys_with_httpx(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    answer = asyncio.run(buy_with_httpx(dev, paying(buyer)))
    assert answer.status_code == 200, answer.text
    assert decode(answer.headers["PAYMENT-RESPONSE"])["payer"] == buyer.address.lower()
    assert_bought(dev, buyer, answer.json())


def test_the_python_sdk_refuses_eleven_dollars_until_its_limit_is_raised(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    with pytest.raises(PaymentError, match="max_amount_per_payment"):
        asyncio.run(buy_with_httpx(dev, config(buyer)))
    assert dev.usdc(buyer.address) == PURSE


def test_an_impatient_sdk_that_signs_anew_is_charged_once(stalled: Dev) -> None:
    buyer, terms = stalled.buyer(PURSE), gig_terms()
    # A time-out after the payment was sent looks like any other failure of the SDK's.
    with pytest.raises(PaymentError, match="Failed to handle payment"):
        asyncio.run(buy_with_httpx(stalled, paying(buyer), terms, timeout_s=1))
    until(lambda: int(stalled.rpc("txpool_status")["pending"], 16))
    stalled.mine()

    answer = asyncio.run(buy_with_httpx(stalled, paying(buyer), terms))

    assert answer.status_code == 200, answer.text
    assert_bought(stalled, buyer, answer.json())


def test_the_python_sdk_buys_with_requests(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    with x402_requests(x402ClientSync.from_config(paying(buyer))) as session:
        answer = session.post(dev.url + CREATE, json=gig_terms(), timeout=90)
    assert answer.status_code == 200, answer.text
    assert_bought(dev, buyer, answer.json())


def test_the_version_1_client_buys(dev: Dev) -> None:
    buyer = dev.buyer(PURSE)
    bought = json.loads(
        run("node", "tests/e2e/buy_v1.mjs", dev.url + CREATE, json.dumps(gig_terms()), key=key_of(buyer))
    )
    assert (bought["receipt"]["success"], bought["receipt"]["network"]) == (True, "base")
    assert_bought(dev, buyer, bought["gig"])


def test_ten_buyers_at_once_each_get_their_own_gig(dev: Dev) -> None:
    buyers = [dev.buyer(PURSE) for _ in range(10)]
    until(lambda: dev.usdc(dev.intake) == 0)
    earned = dev.usdc(dev.commission)

    async def crowd() -> list[httpx.Response]:
        return await asyncio.gather(*(buy_with_httpx(dev, paying(buyer)) for buyer in buyers))

    answers = asyncio.run(crowd())

    assert [answer.status_code for answer in answers] == [200] * 10
    gigs = [answer.json() for answer in answers]
    assert len({gig["gig_id"] for gig in gigs}) == len({gig["gig_wallet_address"] for gig in gigs}) == 10
    for buyer, gig in zip(buyers, gigs, strict=True):
        assert_bought(dev, buyer, gig)
    assert dev.usdc(dev.intake) == 0
    assert dev.usdc(dev.commission) - earned == 10_000_000
