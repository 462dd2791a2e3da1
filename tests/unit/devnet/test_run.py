from pathlib import Path

import pytest

from x402_gig.devnet import run
from x402_gig.devnet.anvil import FOUNDRY_MNEMONIC, Devnet
from x402_gig.errors import CannotStart
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
    ledger = folder / "ledger.db"
    return run._settings(CHAIN, "http://127.0.0.1:4021", ledger, run.own_seed(ledger))


def test_what_is_meant_for_serve_does_not_reach_a_devnet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A devnet looks like Base: what a real seed signed there would be good on Base."""
    plain = settings(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed.txt").write_text(FOUNDRY_MNEMONIC)
    (tmp_path / ".env").write_text("X402_GIG_PORT=1\nX402_GIG_RELAYERS=7\n")
    for name, value in OF_SERVE.items():
        monkeypatch.setenv(f"X402_GIG_{name}", value)
    assert settings(tmp_path) == plain
    assert plain.mnemonic != FOUNDRY_MNEMONIC


def test_each_devnet_has_a_seed_of_its_own_that_it_keeps_and_nobody_else_may_read(tmp_path: Path) -> None:
    first, second = (run.own_seed(tmp_path / name) for name in ("first.db", "second.db"))
    phrase = first.read_text()
    assert len(phrase.split()) == 12
    assert phrase != second.read_text()
    assert {path.stat().st_mode & 0o777 for path in (first, second)} == {0o600}
    assert run.own_seed(tmp_path / "first.db").read_text() == phrase


def test_a_seed_that_cannot_be_kept_is_a_reason_not_to_start(tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match=r"ledger\.db\.seed cannot be made: No such file or directory"):
        run.own_seed(tmp_path / "nowhere" / "ledger.db")
