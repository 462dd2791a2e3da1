"""`x402-gig serve` as an operator meets it: what it refuses to start with, and what survives a restart."""

import json
import re
import signal
import socket
import sqlite3
from decimal import Decimal
from pathlib import Path

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.support import faults, ledgers
from tests.support.faults import rpc_proxy
from tests.support.harness import (
    CREATE,
    USDC,
    Chain,
    Dev,
    Json,
    decode,
    devnet,
    gig_terms,
    payment_header,
    refused,
    running,
    serve_settings,
    served,
    start,
    until,
)
from tests.support.operator import operated
from x402_gig.evm import batcher

DEAD_RPC = "http://127.0.0.1:1"


@pytest.fixture
def shop(tmp_path: Path) -> Json:
    """Settings that two servers, one after the other, can share: a seed, a ledger, an operator."""
    return {
        "seed": new_seed(),
        "commission_address": Account.create().address,
        "database_url": ledgers.new(tmp_path),
    }


def new_seed() -> str:
    return str(Account.create_with_mnemonic()[1])


def derived(seed: str, path: str) -> LocalAccount:
    account: LocalAccount = Account.from_mnemonic(seed, account_path=path)
    return account


def bought(shop: Dev, buyer: LocalAccount) -> tuple[Json, Json, Json]:
    """A purchase: its terms, its payment header and the gig."""
    terms = gig_terms()
    header = payment_header(buyer, shop.quote(terms))
    answer = shop.post(terms, header)
    assert answer.status_code == 200, answer.text
    return terms, header, dict(answer.json())


# What it refuses


def test_without_settings_every_missing_one_is_listed(tmp_path: Path) -> None:
    ended = start({}, tmp_path)
    assert ended.returncode == 1
    for name in ("NETWORK", "RPC_URL", "COMMISSION_ADDRESS", "PUBLIC_URL", "SEED"):
        assert f"X402_GIG_{name}" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_every_wrong_setting_is_listed_by_its_name(chain: Chain, tmp_path: Path) -> None:
    wrong = {
        "network": "mainnet",
        "rpc_url": "127.0.0.1:8545",
        "seed": "twelve words that are not a phrase",
        "facilitator": "elsewhere",
        "commission_address": "0x123",
        "public_url": "gigs.example",
        "port": 70_000,
        "commission_bps": -1,
        "maximum_reward": "five",
        "relayers": "two",
    }
    said = refused(chain, tmp_path, **wrong)
    assert [name for name in wrong if f"X402_GIG_{name.upper()}" not in said] == []
    assert "twelve words" not in said


def test_settings_may_come_from_a_dotenv_file(chain: Chain, tmp_path: Path) -> None:
    settings = serve_settings(chain, tmp_path)
    (tmp_path / ".env").write_text("".join(f"{name}={json.dumps(value)}\n" for name, value in settings.items()))
    (tmp_path / ".env").chmod(0o600)
    with running("serve", cwd=tmp_path) as (_, ready):
        assert Dev(chain.rpc_url, url=ready["url"]).post(b"").status_code == 402


@pytest.mark.parametrize("path", ["m/44'/60'/2'/0/0", "m/44'/60'/1'/0/1", "m/44'/60'/0'/0/1"])
def test_commission_may_not_go_to_a_wallet_of_the_servers(chain: Chain, tmp_path: Path, path: str) -> None:
    seed = new_seed()
    said = refused(chain, tmp_path, seed=seed, commission_address=derived(seed, path).address)
    assert "COMMISSION_ADDRESS" in said


def test_commission_may_not_go_to_the_token(chain: Chain, tmp_path: Path) -> None:
    assert "COMMISSION_ADDRESS is the token" in refused(chain, tmp_path, commission_address=USDC)


def test_the_chain_must_be_the_networks(chain: Chain, tmp_path: Path) -> None:
    said = refused(chain, tmp_path, network="base-sepolia")
    assert "X402_GIG_RPC_URL leads to chain 8453, X402_GIG_NETWORK is chain 84532" in said


def test_who_forgot_to_name_the_network_of_a_real_node_is_told(chain: Chain, tmp_path: Path) -> None:
    with rpc_proxy(chain) as proxy, proxy.broken(faults.refuses(-32601, "method not found"), "anvil_setBalance"):
        said = refused(proxy.chain, tmp_path)
    assert "X402_GIG_NETWORK is devnet, and X402_GIG_RPC_URL leads to a node that is no Anvil" in said


def test_a_chain_without_the_token_is_refused(tmp_path: Path) -> None:
    with devnet() as bare:
        bare.rpc("anvil_setCode", USDC, "0x")
        assert "There is no token at" in refused(bare, tmp_path)


def test_a_token_with_another_domain_is_refused(tmp_path: Path) -> None:
    """Base Sepolia's USDC has another name: signatures made for one are worthless for the other."""
    with devnet() as other:
        # Answers every call with 32 zero bytes: PUSH1 32, PUSH1 0, RETURN.
        other.rpc("anvil_setCode", USDC, "0x60206000f3")
        assert "EIP-712 domain" in refused(other, tmp_path)


def test_other_code_in_the_batchers_place_is_refused(tmp_path: Path) -> None:
    with devnet() as other:
        other.rpc("anvil_setCode", batcher.address(), "0x60206000f3")
        assert f"The code at {batcher.address()} is not the batcher's" in refused(other, tmp_path)


def test_relayers_need_gas(chain: Chain, tmp_path: Path) -> None:
    """Under NETWORK=base nobody gives gas away, and a devnet looks like Base."""
    seed = new_seed()
    said = refused(chain, tmp_path, network="base", seed=seed)
    assert "No relayer has enough gas" in said
    for index in range(2):
        assert derived(seed, f"m/44'/60'/1'/0/{index}").address.lower() in said


def test_one_relayer_with_gas_is_enough_and_the_other_one_is_named(chain: Chain) -> None:
    seed = new_seed()
    rich, poor = (derived(seed, f"m/44'/60'/1'/0/{index}").address for index in range(2))
    chain.rpc("anvil_setBalance", rich, hex(10**18))
    with served(chain, network="base", seed=seed) as shop:
        assert shop.buy(chain.buyer()).status_code == 200
        ready = shop.http.get(shop.url + "/readyz")
        assert (ready.status_code, list(ready.json()["warnings"])) == (200, ["gas"])
        assert f"relayer {poor.lower()} holds 0.000000 ETH and needs" in ready.json()["warnings"]["gas"]
        assert rich.lower() not in ready.text


def test_the_gas_that_a_first_start_names_lasts_for_a_thousand_gigs(tmp_path: Path) -> None:
    """The reserve stays, and the batcher is deployed: it is not on this chain yet."""
    seed = new_seed()
    shop = {"network": "base", "seed": seed, "relayers": 1, "database_url": ledgers.new(tmp_path)}
    relayer = derived(seed, "m/44'/60'/1'/0/0").address
    with devnet() as chain:
        said = refused(chain, tmp_path, **shop)
        named = "send it (N) ETH to have (N) that stay in reserve, N to deploy the batcher, N for 1,000 gigs"
        [figures] = re.findall(named.replace("N", "[0-9.]+"), said)
        figure, reserve = (int(Decimal(ether) * 10**18) for ether in figures)
        chain.rpc("anvil_setBalance", relayer, hex(figure))
        with served(chain, **shop) as server:
            before = int(chain.rpc("eth_getBalance", relayer, "latest"), 16)
            for _ in range(3):
                bought(server, server.buyer())
            for gig_id in (1, 2, 3):
                server.funded(gig_id)
            assert server.http.get(server.url + "/readyz").json()["status"] == "ready"
            left = int(chain.rpc("eth_getBalance", relayer, "latest"), 16)
        assert (left - reserve) / (before - left) * 3 > 1000


def test_a_ledger_that_cannot_be_written_to_is_what_the_operator_hears_of(chain: Chain, tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    same = {"seed": new_seed(), "database_url": f"sqlite:///{file}"}
    with served(chain, **same):
        pass
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TRIGGER full BEFORE UPDATE ON ledger BEGIN SELECT RAISE(ABORT, 'full'); END")
    said = refused(chain, tmp_path, **same)
    assert "see X402_GIG_DATABASE_URL" in said
    assert "RPC_URL" not in said


def test_a_port_in_use_is_refused(chain: Chain, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(chain, tmp_path, port=port)
    assert f"HOST and PORT: cannot listen on 127.0.0.1:{port}" in said


def test_a_node_that_does_not_answer_is_refused_without_its_url(chain: Chain, tmp_path: Path) -> None:
    said = refused(chain, tmp_path, rpc_url=f"{DEAD_RPC}/?key=secret-token")
    assert "the chain node did not answer" in said
    assert "secret-token" not in said


@pytest.mark.parametrize("url", ["nonsense", "oracle-of-delphi://x", "sqlite:////nowhere/at/all/ledger.db"])
def test_a_ledger_that_cannot_be_opened_is_refused(chain: Chain, tmp_path: Path, url: str) -> None:
    assert "DATABASE_URL" in refused(chain, tmp_path, database_url=url)


def test_a_second_server_on_one_file_is_refused_and_the_first_one_goes_on(
    chain: Chain, shop: Json, tmp_path: Path
) -> None:
    shop |= {"database_url": f"sqlite:///{tmp_path}/file.db"}
    with served(chain, **shop) as first:
        said = refused(chain, tmp_path, **shop)
        assert "another server is at work on this file" in said
        assert "PostgreSQL" in said
        bought(first, chain.buyer())


# What a ledger belongs to


def test_a_ledger_belongs_to_its_chain(chain: Chain, shop: Json, tmp_path: Path) -> None:
    with served(chain, **shop):
        pass
    with devnet() as another:
        assert "The ledger belongs to another chain" in refused(another, tmp_path, **shop)


def test_a_ledger_belongs_to_its_seed_and_account(chain: Chain, shop: Json, tmp_path: Path) -> None:
    with served(chain, **shop):
        pass
    assert "The ledger belongs to the intake 0x" in refused(chain, tmp_path, **shop | {"seed": new_seed()})
    assert "X402_GIG_WALLET_ACCOUNT is 1" in refused(chain, tmp_path, **shop | {"wallet_account": 1})


def test_a_seed_with_funded_gigs_needs_its_ledger_or_another_account(chain: Chain, shop: Json, tmp_path: Path) -> None:
    with served(chain, **shop) as first:
        _, _, gig = bought(first, chain.buyer())
        first.funded(gig["gig_id"])
    fresh = shop | {"database_url": ledgers.new(tmp_path, "fresh.db")}

    said = refused(chain, tmp_path, **fresh)

    assert "restore the ledger's backup" in said
    assert "WALLET_ACCOUNT" in said
    with served(chain, **fresh, wallet_account=7) as second:
        _, _, other = bought(second, chain.buyer())
    # The same id, and yet another wallet: nothing is shared between accounts.
    assert other["gig_id"] == gig["gig_id"]
    assert other["gig_wallet_address"] == derived(shop["seed"], "m/44'/60'/0'/7/1").address.lower()
    assert other["gig_wallet_address"] != gig["gig_wallet_address"]


# What it does when it runs


def test_quotes_gig_and_commission_follow_the_settings(chain: Chain) -> None:
    seed, operator = new_seed(), Account.create().address
    settings = {
        "seed": seed,
        "wallet_account": 3,
        "public_url": "https://gigs.example/shop/",
        "commission_address": operator,
        "commission_bps": 250,
    }
    with served(chain, **settings) as shop:
        answer = shop.post(b"")
        _, _, gig = bought(shop, chain.buyer())
        shop.funded(gig["gig_id"])
    quote = decode(answer.headers["PAYMENT-REQUIRED"])
    assert quote["resource"]["url"] == f"https://gigs.example/shop{CREATE}"
    assert answer.json()["accepts"][0]["resource"] == quote["resource"]["url"]
    # The account is part of every path.
    assert quote["accepts"][0]["payTo"] == derived(seed, "m/44'/60'/2'/0/3").address.lower()
    assert gig["gig_wallet_address"] == derived(seed, "m/44'/60'/0'/3/1").address.lower()
    assert (gig["platform_fee"], gig["total_amount"]) == ("0.25", "10.25")
    assert chain.usdc(operator) == 250_000


def test_it_stops_cleanly_at_sigterm(chain: Chain, tmp_path: Path) -> None:
    with running("serve", env=serve_settings(chain, tmp_path), cwd=tmp_path) as (process, ready):
        _, _, gig = bought(Dev(chain.rpc_url, url=ready["url"]), chain.buyer())
        assert gig["gig_id"] == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


def test_a_restart_gives_the_same_gig_for_the_same_payment(chain: Chain, shop: Json) -> None:
    buyer = chain.buyer(11_000_000)
    with served(chain, **shop) as first:
        terms, header, gig = bought(first, buyer)
    with served(chain, **shop) as second:
        again = second.post(terms, header)
        assert (again.status_code, again.json()) == (200, gig)
        shown = second.funded(gig["gig_id"])
    assert shown["gig_wallet_address"] == gig["gig_wallet_address"]
    assert chain.usdc(gig["gig_wallet_address"]) == 10_000_000
    assert chain.usdc(buyer.address) == 0


def test_a_restart_goes_on_with_the_next_gig(chain: Chain, shop: Json) -> None:
    ids = []
    for _ in range(2):
        with served(chain, **shop) as running_shop:
            _, _, gig = bought(running_shop, chain.buyer())
            ids.append(gig["gig_id"])
    assert ids == [1, 2]


def test_a_payment_is_still_its_gig_when_it_has_expired_and_minimum_and_commission_have_changed(
    shop: Json, tmp_path: Path
) -> None:
    # Its own chain, because time passes on it.
    with devnet() as chain:
        buyer, terms = chain.buyer(), gig_terms()
        with served(chain, **shop) as first:
            header = payment_header(buyer, first.quote(terms))
            gig = first.post(terms, header).json()
            first.funded(gig["gig_id"])
        chain.rpc("evm_increaseTime", 120)
        chain.rpc("evm_mine")
        with operated(chain, tmp_path, **shop) as second:
            changed = second.desk.run("settings", "set", "--minimum-reward", "20", "--commission-bps", "2000", "--yes")
            assert changed.returncode == 0, changed.stderr
            until(lambda: second.post(b"").json()["accepts"][0]["maxAmountRequired"] == "24000000")
            until(lambda: "clock" in second.http.get(second.url + "/readyz").json()["warnings"])
            again = second.post(terms, header)
            assert (again.status_code, again.json()) == (200, gig)
            assert second.post(gig_terms()).status_code == 400
            assert second.post(gig_terms(amount=20)).status_code == 402


def test_no_log_and_no_output_holds_a_secret(
    chain: Chain, shop: Json, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    secret_chain = Chain(f"{chain.rpc_url}/?key=secret-token")
    buyer = chain.buyer()
    for _ in range(2):
        with running("serve", env=serve_settings(secret_chain, tmp_path, **shop), cwd=tmp_path) as (process, ready):
            _, header, gig = bought(Dev(chain.rpc_url, url=ready["url"]), buyer)
            Dev(chain.rpc_url, url=ready["url"]).funded(gig["gig_id"])
            assert process.stdout is not None
            process.send_signal(signal.SIGTERM)
            output = process.stdout.read()
        logs = output + capfd.readouterr().err
        # The log is there at all, or nothing was looked at.
        assert f"payment {gig['gig_id']}: settled" in logs
        assert secrets_in(logs, shop["seed"], header) == []


def secrets_in(text: str, seed: str, header: Json) -> list[str]:
    paths = ["m/44'/60'/2'/0/0", "m/44'/60'/1'/0/0", "m/44'/60'/1'/0/1", "m/44'/60'/0'/0/1", "m/44'/60'/0'/0/2"]
    keys = [bytes(derived(seed, path).key).hex() for path in paths]
    words = seed.split()
    signature = decode(header["PAYMENT-SIGNATURE"])["payload"]["signature"][2:]
    hidden = ["secret-token", " ".join(words[:3]), " ".join(words[-3:]), signature, *keys]
    return [secret for secret in hidden if secret in text.lower()]
