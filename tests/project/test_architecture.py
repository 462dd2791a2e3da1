"""The rules for imports (`[tool.importlinter]` in pyproject.toml) hold, and a breach of each is noticed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def lint_imports(folder: Path) -> "subprocess.CompletedProcess[str]":
    # Beside the interpreter, where installing it put it; its cache would remember another folder's files.
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([program, "--no-cache"], cwd=folder, capture_output=True, text=True, check=False)


def test_imports_follow_the_rules() -> None:
    checked = lint_imports(ROOT)
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("module", "line", "rule"),
    [
        ("gigs/terms.py", "import web3", "Only evm speaks to a node"),
        ("relaying/relayer.py", "from web3 import Web3", "Only evm speaks to a node"),
        ("settlement/late_orders.py", "import sqlalchemy", "Only ledger speaks to a database"),
        ("server/wiring.py", "from alembic import command", "Only ledger speaks to a database"),
        ("payments/checkout.py", "import starlette", "stay at the edge"),
        ("errors.py", "import x402_gig.payments.outcome", "point down"),
        ("payments/checks.py", "import x402_gig.gigs.terms", "point down"),
        ("payments/checks.py", "import x402_gig.evm.eip3009", "point down"),
        ("gigs/terms.py", "import x402_gig.evm.node", "point down"),
        ("gigs/shop.py", "import x402_gig.ledger.gigs", "point down"),
        ("evm/node.py", "import x402_gig.ledger.engine", "point down"),
        ("settlement/late_orders.py", "import x402_gig.settings", "point down"),
        ("facilitators/local.py", "import x402_gig.web.api.app", "point down"),
        ("new_room.py", "", "point down"),
    ],
)
def test_a_breach_is_noticed(tmp_path: Path, module: str, line: str, rule: str) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(ROOT / "x402_gig", tmp_path / "x402_gig", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "x402_gig" / module).open("a") as source:
        source.write(f"\n{line}\n")

    checked = lint_imports(tmp_path)

    assert checked.returncode == 1
    broken = [text for text in checked.stdout.splitlines() if text.endswith("BROKEN")]
    assert [rule in text for text in broken] == [True]


# Of what is installed, what would take longest to import.
NOT_FOR_SERVE = """alembic eth_utils eth_account httpx limits redis rich rlp typer web3
x402_gig.web.api.openapi x402_gig.facilitators.remote"""


def test_a_server_imports_nothing_that_it_does_not_use() -> None:
    code = "import sys, x402_gig.__main__, x402_gig.cli.serve, x402_gig.server.http; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(NOT_FOR_SERVE.split()) & set(done.stdout.split())
