"""Servers as processes of their own: started, measured from outside, and stopped with everything they started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.bench.load import Address, post, run
from tests.support.harness import until
from x402_gig.devnet.anvil import free_port

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 20
# Finer than what is measured with it.
LOOK_S = 0.002


@dataclass
class Program:
    """A process, and with it all that it starts: they share a session."""

    process: "subprocess.Popen[bytes]"
    log: Path
    started: float

    def check(self) -> None:
        assert self.process.poll() is None, f"{self.process.args!r} stopped: {self.log.read_text()[-2000:]}"

    @property
    def pids(self) -> list[int]:
        found = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal())
        return [pid for pid in found if _session(pid) == self.process.pid]

    @property
    def memory_mb(self) -> float:
        """Proportional set size: what the processes share counts once. Linux alone tells; 0 elsewhere."""
        return sum(_pss_kb(pid) for pid in self.pids) / 1024

    @property
    def cpu_s(self) -> float:
        """Processor time so far; other than a rate it hardly depends on what else the machine does."""
        return sum(_cpu_s(pid) for pid in self.pids)

    def stop(self) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_TIMEOUT_S)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _session(pid: int) -> int:
    with suppress(OSError):
        return os.getsid(pid)
    return 0


def _cpu_s(pid: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0


def _pss_kb(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0


@contextmanager
def program(
    *arguments: str,
    folder: Path,
    name: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    python: str = sys.executable,
) -> Iterator[Program]:
    """`python ARGUMENTS` with its log in `folder`, and nothing of it left at the end."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            [python, *arguments],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            cwd=cwd,
            # Ctrl-C reaches the bench, and the bench stops what it started.
            start_new_session=True,
        )
    running = Program(process, log, started)
    try:
        yield running
    finally:
        running.stop()


def ports(count: int) -> list[int]:
    """Free ones, all different."""
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port(0))
    return list(found)


def first_answer(programs: Sequence[Program], address: Address, path: str, body: bytes, wanted: int = 402) -> float:
    """Wait until a request gets the wanted status; the time then."""
    request = post(address, path, body)

    def answers() -> bool:
        for one in programs:
            one.check()
        try:
            return run([address], [request], buyers=1, wanted=wanted).good == 1
        except OSError:
            return False

    until(answers, START_TIMEOUT_S, LOOK_S)
    return time.perf_counter()
