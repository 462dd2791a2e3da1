"""`scripts/mutants` tells rightly who noticed, and leaves nothing behind."""

import json
import signal
import subprocess
import sys
from pathlib import Path

from tests.support.harness import ROOT, until

BROKEN = "abs(self.reward_units)"
A_TEST = "tests/unit/gigs/test_pricing.py::test_the_commission_comes_on_top"
MUTANT = f"""
[[mutant]]
name = "a total"
file = "x402_gig/gigs/pricing.py"
text = "return self.reward_units + self.commission_units"
broken = "return {BROKEN}"
why = "the commission is not asked for"
tests = ["{A_TEST}"]
"""


IN_A_CONTRACT = """
[[mutant]]
name = "an anchor"
file = "contracts/Batcher.sol"
text = "require(blockHash != 0 && blockhash(blockNumber) == blockHash, Reorganised());"
broken = ""
why = "a dropped deposit is paid on"
tests = ["contracts/test/Batcher.t.sol::test_onlyOnTheChainThatHasTheBlock"]
"""


def command(folder: Path, listed: str) -> list[str]:
    (folder / "list.toml").write_text(listed)
    return [sys.executable, "-m", "tests.mutants", "--json", "--list", str(folder / "list.toml")]


def tried(folder: Path, listed: str) -> tuple[int, list[dict[str, object]]]:
    """Exit code and verdicts."""
    done = subprocess.run(command(folder, listed), cwd=ROOT, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_who_noticed_is_named(tmp_path: Path) -> None:
    code, verdicts = tried(tmp_path, MUTANT + IN_A_CONTRACT)
    noticed = {verdict["name"]: verdict["by"] for verdict in verdicts}
    assert (code, noticed) == (0, {"a total": A_TEST, "an anchor": "test_onlyOnTheChainThatHasTheBlock"})


def test_what_nobody_notices_survives_and_what_cannot_be_tried_says_why(tmp_path: Path) -> None:
    survivor = MUTANT.replace(BROKEN, "self.commission_units + self.reward_units")
    nowhere = MUTANT.replace("a total", "nowhere").replace('text = "return self.reward', 'text = "return self.award')
    code, verdicts = tried(tmp_path, survivor + nowhere)
    by_name = {verdict["name"]: verdict for verdict in verdicts}
    assert (code, by_name["a total"]["survived"], by_name["nowhere"]["survived"]) == (1, True, False)
    assert "is in x402_gig/gigs/pricing.py 0 times" in str(by_name["nowhere"]["problem"])


def test_tests_that_take_too_long_are_no_verdict(tmp_path: Path) -> None:
    done = subprocess.run([*command(tmp_path, MUTANT), "--limit-s", "0"], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == 2
    assert b"no verdict within 0 s" in done.stderr


def descendants(pid: int) -> set[int]:
    """Started by this process, and by those it started."""
    found = {
        int(child) for task in Path(f"/proc/{pid}/task").glob("*") for child in (task / "children").read_text().split()
    }
    return found.union(*map(descendants, found))


def test_an_interruption_leaves_nothing_running(tmp_path: Path) -> None:
    listed = MUTANT.replace(A_TEST, "tests/e2e/test_purchase.py::test_version_1_is_paid_and_answered_in_version_1")
    with subprocess.Popen(command(tmp_path, listed), cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        # pytest, a server and Anvil at the least.
        started = until(lambda: len(found := descendants(process.pid)) > 2 and found, 90)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=90)
    assert process.returncode == 130
    # A process that has ended may be seen a moment longer.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
