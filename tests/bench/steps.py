"""The budget: what each step of a request costs, from tests/benchmarks."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.table import figure
from tests.support.harness import ROOT


@dataclass(frozen=True)
class Step:
    """`requests` share it."""

    name: str
    us: float
    requests: int


def measure() -> list[Step]:
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "steps.json"
        arguments = ("-q", "-p", "no:xdist", "tests/benchmarks", "--benchmark-enable", f"--benchmark-json={found}")
        subprocess.run([sys.executable, "-m", "pytest", *arguments], cwd=ROOT, check=True, stdout=sys.stderr)
        return [_step(one) for one in json.loads(found.read_text())["benchmarks"]]


def _step(one: dict[str, object]) -> Step:
    stats, extra = one["stats"], one["extra_info"]
    assert isinstance(stats, dict)
    assert isinstance(extra, dict)
    name = str(one["name"]).removeprefix("test_").replace("_", " ").replace("[", ", version ").rstrip("]")
    return Step(name, 1e6 * stats["median"], extra.get("requests", 1))


def markdown(steps: Sequence[Step]) -> str:
    figures = ((step.name, figure(step.us), str(step.requests), figure(step.us / step.requests)) for step in steps)
    lines = [f"| {' | '.join(line)} |" for line in figures]
    return "\n".join(["| step | µs | for requests | µs for each |", "|---|---:|---:|---:|", *lines])
