"""A short bench; `scripts/bench` measures in earnest."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.harness import ROOT, until

QUICK = (sys.executable, "-m", "tests.bench", "--quick", "--json")


@contextmanager
def bench(*arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen([*QUICK, *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        yield process


def children(pid: int) -> set[int]:
    """Started by this process, and by those it started."""
    found = {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}
    return found.union(*map(children, found))


def test_the_bench_measures_this_server_its_peer_and_the_limit() -> None:
    with bench("--only", "lone") as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    [row] = json.loads(said)["rows"]
    cells = row["cells"]
    assert set(cells) == {"ours", "peer", "tuned", "limit"}
    assert all(cell["value"] > 0 and cell["errors"] == cell["unserved"] == 0 for cell in cells.values()), cells
    assert row["wanted_here"] == row["wanted"] * cells["peer"]["value"] / 23


def test_402s_are_counted_beside_the_bare_framework_and_another_checkout() -> None:
    with bench("--only", "unpaid", "--without-peer", "--beside", str(ROOT)) as process:
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    [row] = json.loads(said)["rows"]
    assert set(row["cells"]) == {"ours", "beside", "limit", "bare ASGI"}
    assert all(cell["value"] > 0 and cell["errors"] == 0 for cell in row["cells"].values()), row


def test_an_interrupted_bench_leaves_nothing_running() -> None:
    with bench("--only", "start", "--without-peer") as process:
        # Anvil and a server at the least.
        started = until(lambda: len(found := children(process.pid)) > 1 and found)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert process.returncode == 130
    # A process that has ended may be seen a moment longer.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in started))
