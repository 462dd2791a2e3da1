from pathlib import Path

import pytest

from x402_gig.chain.wallets import Wallets
from x402_gig.devnet import run
from x402_gig.devnet.anvil import FOUNDRY_MNEMONIC, Devnet, buyers
from x402_gig.settings import NETWORKS, Settings

CHAIN = Devnet("http://127.0.0.1:1", NETWORKS["devnet"], [])
OF_SERVE = {
    "FACILITATOR": "https://facilitator.example",
    "SEED_FILE": "seed.txt",
    "RPC_URL": "https://rpc.example",
    "MINIMUM_REWARD": "99",
    "WALLET_ACCOUNT": "5",
}


def settings(folder: Path) -> Settings:
    return run._settings(CHAIN, "http://127.0.0.1:4021", folder / "ledger.db")


def test_what_is_meant_for_serve_does_not_reach_a_devnet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A devnet looks like Base: what a real seed signed there would be good on Base."""
    plain = settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed.txt").write_text(FOUNDRY_MNEMONIC)
    (tmp_path / ".env").write_text("X402_GIG_PORT=1\nX402_GIG_RELAYERS=7\n")
    for name, value in OF_SERVE.items():
        monkeypatch.setenv(f"X402_GIG_{name}", value)
    assert settings(tmp_path) == plain
    assert plain.mnemonic == run.DEV_SEED


def test_no_gig_wallet_of_a_devnet_is_a_buyer() -> None:
    wallets = Wallets(run.DEV_SEED)
    ours = {
        wallets.intake.address,
        *(wallets.relayer(n).address for n in range(10)),
        *map(wallets.gig_address, range(1, 50)),
    }
    assert not ours & {account.address.lower() for account in buyers()}
