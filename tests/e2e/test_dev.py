"""`x402-gig dev` and `devnet` as their user meets them."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import USDC, Chain, dev_server, devnet, gig_terms, payment_header, running, until
from x402_gig.devnet.anvil import FOUNDRY_MNEMONIC
from x402_gig.evm.wallets import Wallets


def is_listening(url: str) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", int(url.rsplit(":", 1)[1]))) == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_behind(number: signal.Signals) -> None:
    with running("dev", "--json", "--port", "0", "--anvil-port", "0") as (process, ready):
        assert is_listening(ready["url"])
        assert is_listening(ready["rpc_url"])
        process.send_signal(number)
        assert process.wait(timeout=30) == 0
    assert not is_listening(ready["url"])
    assert not is_listening(ready["rpc_url"])


def test_a_taken_port_moves_to_a_free_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with running("dev", "--json", "--port", port, "--anvil-port", port) as (_, ready):
            assert not ready["url"].endswith(f":{port}")
            assert not ready["rpc_url"].endswith(f":{port}")


def test_the_curl_line_it_prints_works_when_pasted() -> None:
    command = [sys.executable, "-m", "x402_gig", "dev", "--port", "0", "--anvil-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "80"}) as process:
        assert process.stdout is not None
        lines: list[str] = []
        while not (line := process.stdout.readline()).startswith("ready http://127.0.0.1:"):
            assert line, lines
            lines.append(line)
        [curl] = [line for line in lines if line.strip().startswith("curl ")]
        answer = subprocess.run(curl.strip(), shell=True, capture_output=True, text=True, check=True)
        process.send_signal(signal.SIGTERM)
    assert "402 Payment Required" in answer.stdout
    assert any("0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80" in line for line in lines)


def test_the_ten_accounts_hold_a_million_each_and_no_gas_is_asked_of_them() -> None:
    with dev_server() as dev:
        assert len(dev.buyers) == 10
        assert {dev.usdc(buyer["address"]) for buyer in dev.buyers} == {10**12}


def test_nothing_that_is_published_can_spend_what_comes_to_the_intake() -> None:
    """Base honours what is signed for a devnet, so its intake is no wallet of a phrase that anybody could know."""
    with dev_server() as first, dev_server() as second:
        assert first.intake != second.intake
        assert first.intake.lower() != Wallets(FOUNDRY_MNEMONIC).intake.address
        assert first.api_key != second.api_key


def test_the_seed_is_kept_beside_the_ledger_for_its_owner_alone(tmp_path: Path) -> None:
    with dev_server("--database", str(tmp_path / "ledger.db")) as dev:
        seed = tmp_path / "ledger.db.seed"
        assert seed.stat().st_mode & 0o777 == 0o600
        assert Wallets(seed.read_text().strip()).intake.address == dev.intake.lower()


def test_its_key_is_good_and_nobody_is_limited() -> None:
    with dev_server() as dev:
        asked = {"x-api-key": dev.api_key}
        assert {dev.post({"gig_id": 1}, asked, "/api/gigs/start").status_code for _ in range(700)} == {404}
        assert dev.post({"gig_id": 1}, {"x-api-key": dev.api_key[:-1]}, "/api/gigs/start").status_code == 401
        assert dev.http.get(f"{dev.url}/readyz").json()["status"] == "ready"


def test_an_old_ledger_on_a_new_chain_is_refused(tmp_path: Path) -> None:
    database = str(tmp_path / "ledger.db")
    with dev_server("--database", database) as dev:
        assert dev.buy(dev.buyer()).status_code == 200
    with pytest.raises(AssertionError, match="ledger belongs to another chain"), dev_server("--database", database):
        pass


def test_a_fork_keeps_the_chain_it_forks_and_sells_on_it() -> None:
    with devnet() as upstream:
        upstream.give_usdc("0x" + "77" * 20, 7)
        with dev_server("--fork-url", upstream.rpc_url) as dev:
            assert dev.usdc("0x" + "77" * 20) == 7
            assert dev.usdc(dev.buyers[0]["address"]) == 10**12
            bought = dev.buy(dev.buyer())
            assert bought.status_code == 200, bought.text
            assert dev.usdc(dev.funded(bought.json()["gig_id"])["gig_wallet_address"]) == 10_000_000
        assert upstream.usdc(bought.json()["gig_wallet_address"]) == 0


def test_with_timed_blocks_a_purchase_waits_for_its_block() -> None:
    with dev_server("--block-time", "1") as dev:
        terms, buyer = gig_terms(), dev.buyer()
        before = int(dev.rpc("eth_blockNumber"), 16)
        assert dev.post(terms, payment_header(buyer, dev.quote(terms))).status_code == 200
        assert int(dev.rpc("eth_blockNumber"), 16) > before


def test_base_caps_a_transactions_gas() -> None:
    with running("devnet", "--json", "--anvil-port", "0") as (_, ready):
        chain = Chain(ready["rpc_url"])
        big = {"from": "0x" + "11" * 20, "to": USDC, "gas": hex(2**24 + 1)}
        body = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendTransaction", "params": [big]}
        chain.rpc("anvil_setBalance", big["from"], hex(10**20))
        chain.rpc("anvil_impersonateAccount", big["from"])
        answer = until(lambda: chain.http.post(chain.rpc_url, json=body).json())
        assert "gas" in answer["error"]["message"]
