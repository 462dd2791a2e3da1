"""What an operator can do wrong: nobody pays for it, and readyz says what it is."""

import asyncio
import resource
import time
from pathlib import Path

import httpx
import pytest
from eth_account import Account

from tests.support import ledgers
from tests.support.harness import (
    USDC,
    Chain,
    Dev,
    Json,
    calldata,
    decode,
    devnet,
    gig_terms,
    payment_header,
    running,
    serve_settings,
    served,
    until,
)

PRICE, REWARD = 11_000_000, 10_000_000
BLACKLIST, UNBLACKLIST = "0xf9f92be4", "0x1a895266"


def settings(folder: Path, **changes: object) -> Json:
    return {
        "seed": Account.create_with_mnemonic()[1],
        "database_url": ledgers.new(folder),
        "commission_address": Account.create().address,
    } | changes


def dev(chain: Chain, server: Dev) -> Dev:
    return Dev(chain.rpc_url, url=server.url)


def bought(shop: Dev, **changes: object) -> Json:
    buyer, terms = shop.buyer(PRICE), gig_terms()
    answer = shop.post(terms, payment_header(buyer, shop.quote(terms), **changes))
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def funded(shop: Dev, gig: Json) -> None:
    until(lambda: shop.usdc(gig["gig_wallet_address"]) == REWARD)


def ready(shop: Dev) -> Json:
    return dict(shop.http.get(shop.url + "/readyz").json())


def test_with_a_blacklisted_commission_wallet_rewards_go_on_and_readyz_says_why(chain: Chain, tmp_path: Path) -> None:
    shop_settings = settings(tmp_path)
    commission = shop_settings["commission_address"]
    account = commission[2:].lower().rjust(64, "0")
    with served(chain, **shop_settings) as server:
        shop = dev(chain, server)
        chain.send(Account.create().address, USDC, BLACKLIST + account)
        for _ in range(3):
            funded(shop, bought(shop))
        said = until(lambda: ready(shop)["warnings"].get("funding"))
        assert commission.lower() in said
        assert "blacklisted" in said
        assert ready(shop)["status"] == "degraded"
        assert chain.usdc(commission) == 0
    chain.send(Account.create().address, USDC, UNBLACKLIST + account)
    with served(chain, **shop_settings):
        until(lambda: chain.usdc(commission) == 3_000_000)


def test_two_operators_with_one_seed_both_stop(chain: Chain, tmp_path: Path) -> None:
    seed = Account.create_with_mnemonic()[1]
    one, two = (settings(tmp_path, seed=seed, database_url=ledgers.new(tmp_path, f"{n}.db")) for n in "12")
    with served(chain, **one) as first, served(chain, **two) as second:
        shops = [dev(chain, first), dev(chain, second)]
        bought(shops[0])
        # The other one sees money leave its intake that it did not sign.
        until(lambda: "halted" in ready(shops[1])["problems"])
        answer = shops[1].buy(chain.buyer(PRICE))
        assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")


@pytest.mark.parametrize("wrong_by_s", [-3600, 3600])
def test_a_clock_that_is_wrong_by_an_hour_refuses_nobody(wrong_by_s: int, tmp_path: Path) -> None:
    """The chain's time and the buyer's are right, so it is the server's that is wrong."""
    chains_time = int(time.time()) - wrong_by_s
    with devnet("--timestamp", str(chains_time)) as chain, served(chain, **settings(tmp_path)) as server:
        shop = dev(chain, server)
        chain.rpc("evm_mine")
        until(lambda: "clock" in ready(shop)["warnings"])
        now = int(time.time()) - wrong_by_s
        gig = bought(shop, validAfter=str(now - 600), validBefore=str(now + 60))
        funded(shop, gig)


def test_a_disk_that_is_full_charges_nobody_twice_and_nobody_for_nothing(chain: Chain, tmp_path: Path) -> None:
    file = {"database_url": f"sqlite:///{tmp_path}/ledger.db"}
    env = serve_settings(chain, tmp_path, max_timeout_s=10, **file)
    with running("serve", env=env, cwd=tmp_path) as (process, line):
        shop = Dev(chain.rpc_url, url=line["url"])
        funded(shop, bought(shop))
        buyer, terms = shop.buyer(PRICE), gig_terms()
        header = payment_header(buyer, shop.quote(terms))
        # No file may grow any more.
        full = min(path.stat().st_size for path in tmp_path.glob("ledger.db*") if path.stat().st_size)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (full, resource.RLIM_INFINITY))
        answer = shop.post(terms, header)
        assert answer.status_code == 503, answer.text
        assert shop.usdc(buyer.address) == PRICE
        problems = until(lambda: ready(shop)["problems"])
        assert list(problems) == ["database"]
        assert "SQLITE_" in problems["database"]
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        answer = until(lambda: (a := shop.post(terms, header)).status_code != 503 and a)
        assert answer.status_code == 200, answer.text
        funded(shop, answer.json())
        assert shop.usdc(buyer.address) == 0


def test_a_ledger_that_is_gone_for_a_while_is_waited_for(chain: Chain, tmp_path: Path) -> None:
    """Locked by somebody else at the worst moment: when the money has moved and nothing is written of it yet."""
    given = settings(tmp_path, max_timeout_s=10)
    with served(chain, **given) as server:
        shop = dev(chain, server)
        buyer, terms = shop.buyer(PRICE), gig_terms()
        header = payment_header(buyer, shop.quote(terms))
        chain.rpc("evm_setAutomine", False)
        with asyncio.Runner() as runner:
            answer = runner.run(_post_while_locked(chain, shop, terms, header, given["database_url"]))
        assert answer.status_code in (200, 503), answer.text
        answer = until(lambda: (a := shop.post(terms, header)).status_code != 503 and a)
        assert answer.status_code == 200, answer.text
        funded(shop, answer.json())
        assert shop.usdc(buyer.address) == 0


async def _post_while_locked(chain: Chain, shop: Dev, terms: Json, header: Json, ledger: str) -> httpx.Response:
    posting = asyncio.create_task(asyncio.to_thread(shop.post, terms, header))
    await asyncio.to_thread(until, lambda: int(chain.rpc("txpool_status")["pending"], 16))
    with ledgers.locked(ledger):
        chain.rpc("evm_setAutomine", True)
        chain.rpc("evm_mine")
        # Longer than the ledger waits for a lock.
        await asyncio.sleep(11)
    return await posting


def test_a_deposit_that_nobody_ordered_with_goes_back_to_its_payer_by_itself(chain: Chain, tmp_path: Path) -> None:
    given = settings(tmp_path, reorg_depth=3)
    with served(chain, **given) as server:
        shop = dev(chain, server)
        intake = shop.quote(gig_terms())["payTo"]
        buyer, terms = shop.buyer(PRICE), gig_terms()
        header = payment_header(buyer, shop.quote(terms))
        sender = shop.buyer(5_000_000)
        shop.send(Account.create().address, USDC, calldata(decode(header["PAYMENT-SIGNATURE"])["payload"]))
        plain = "0xa9059cbb" + intake[2:].lower().rjust(64, "0") + hex(5_000_000)[2:].rjust(64, "0")
        shop.send(sender.address, USDC, plain)
        assert shop.usdc(intake) == PRICE + 5_000_000
        # The two hours begin when the server sees it.
        until(lambda: ledgers.rows(given["database_url"], "select count(*) from deposits") == [(2,)])
        shop.rpc("evm_increaseTime", 2 * 3600 + 60)
        shop.rpc("anvil_mine", "0x4")

        until(lambda: shop.usdc(buyer.address) == PRICE)

        # Once; and a plain transfer, whose sender may not be its owner, stays.
        assert shop.usdc(intake) == 5_000_000
        late = shop.post(terms, header)
        assert late.status_code == 402
        assert "back to the payer" in late.json()["detail"]
        assert shop.usdc(buyer.address) == PRICE
