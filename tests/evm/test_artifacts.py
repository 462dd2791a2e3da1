"""The contracts in the package are what their sources compile to."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGED = ("x402_gig/evm/Batcher.json", "x402_gig/evm/UsedWallets.json", "x402_gig/devnet/LocalUSDC.json")


def test_packaged_contracts_are_what_the_sources_compile_to(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "scripts/compile", tmp_path], check=True)
    for path in PACKAGED:
        assert (ROOT / path).read_bytes() == (tmp_path / path).read_bytes(), f"{path} is old: run scripts/compile"
