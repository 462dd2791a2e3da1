"""One tree, broken or not, and its tests: in a copy, whose package and contracts are the ones that are used."""

import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.listed import ROOT, Mutant, WrongMutant

NOT_COPIED = (".git", ".venv", "node_modules", ".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache")
PYTHON = ".venv/bin/python"
END_S = 30
POLL_S = 0.2
PYTEST = ("-m", "pytest", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider", "--database", "sqlite")
FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$|^\[FAIL.*\] (\w+)\(", re.MULTILINE)


class Interrupted(Exception):
    """Ctrl-C: nothing new is started."""


@dataclass(frozen=True)
class Verdict:
    """`by` is the test that noticed; without it the mutant survived, or `problem` says why nobody knows."""

    name: str
    by: str = ""
    problem: str = ""
    seconds: float = 0

    @property
    def survived(self) -> bool:
        return not self.by and not self.problem


@dataclass(frozen=True)
class Trials:
    """`limit_s` is the time that one run of tests may take. Once `stop` is set, all that runs is ended."""

    limit_s: float
    stop: threading.Event

    def attempt(self, mutant: Mutant) -> Verdict:
        began = time.monotonic()
        try:
            by, problem = self._noticed(mutant), ""
        except WrongMutant as exc:
            by, problem = "", str(exc)
        return Verdict(mutant.name, by, problem, time.monotonic() - began)

    def _noticed(self, mutant: Mutant) -> str:
        """The first test that fails, or nothing. Raises WrongMutant."""
        with copied() as folder:
            (folder / mutant.file).write_text(mutant.source(folder))
            return next(iter(self.failures(folder, mutant.tests, "-x")), "")

    def failures(self, folder: Path, tests: Sequence[str], *options: str) -> list[str]:
        """Those of the tests that fail in this tree, as they are reported. Raises WrongMutant when they do not run."""
        python = [test for test in tests if ".sol::" not in test]
        forge = [test for test in tests if ".sol::" in test]
        found: list[str] = []
        if forge:
            self._run(["scripts/forge", "build", "--quiet"], folder, good=(0,))
            found += self._run(_forge_test(forge), folder)
        if python:
            _check_import(folder)
            found += self._run([str(folder / PYTHON), *PYTEST, *options, *python], folder)
        return found

    def _run(self, command: Sequence[str], folder: Path, good: Sequence[int] = (0, 1)) -> list[str]:
        code, said = self._output(command, folder)
        failed = [one or other for one, other in FAILED.findall(said)]
        if code not in good or (code == 1) != bool(failed):
            raise WrongMutant(f"{Path(command[0]).name} ends with {code}: {said.strip()[-500:]}")
        return failed

    def _output(self, command: Sequence[str], folder: Path) -> tuple[int, str]:
        """Exit code and output. Every process that the tests started is gone in the end, also after an error."""
        until = time.monotonic() + self.limit_s
        options = {"cwd": folder, "text": True, "start_new_session": True}
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as process:  # type: ignore[call-overload]
            try:
                while True:
                    with suppress(subprocess.TimeoutExpired):
                        said, _ = process.communicate(timeout=POLL_S)
                        return process.returncode, said
                    if self.stop.is_set():
                        raise Interrupted
                    if time.monotonic() > until:
                        raise WrongMutant(f"no verdict within {self.limit_s:.0f} s")
            finally:
                _end(process, folder)


def _forge_test(tests: Sequence[str]) -> list[str]:
    [path] = {test.partition("::")[0] for test in tests}
    names = "|".join(test.partition("::")[2] for test in tests)
    return ["scripts/forge", "test", "--match-path", path, "--match-test", f"^({names})\\("]


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree; what is installed is shared by links."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        folder = Path(name) / "tree"
        # With times and bytecode: what is not broken need not be compiled again.
        shutil.copytree(ROOT, folder, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
        (folder / "node_modules").symlink_to(ROOT / "node_modules")
        _install(folder)
        yield folder


def _install(folder: Path) -> None:
    """An interpreter whose package is this tree's; all else is what is installed.

    The tests start servers by `sys.executable`, some of them in an environment of their own.
    """
    here, installed = Path(sys.prefix), Path(sysconfig.get_path("purelib"))
    packages = folder / ".venv" / installed.relative_to(here)
    packages.mkdir(parents=True)
    (packages / "tree.pth").write_text(f"{folder}\nimport site; site.addsitedir({str(installed)!r})\n")
    shutil.copy(here / "pyvenv.cfg", folder / ".venv")
    (folder / ".venv/bin").mkdir()
    for program in (here / "bin").iterdir():
        (folder / ".venv/bin" / program.name).symlink_to(program)


def _check_import(folder: Path) -> None:
    command = [str(folder / PYTHON), "-c", "import x402_gig; print(x402_gig.__file__)"]
    found = subprocess.run(command, cwd="/", env={}, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(found).is_relative_to(folder):
        raise WrongMutant(f"the package that is imported is not the copy's but {found}")


def _end(process: "subprocess.Popen[str]", folder: Path) -> None:
    """Tests stop their servers when they are interrupted; what is left after that is killed."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=END_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in _started_in(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _started_in(folder: Path) -> Iterator[int]:
    """Processes with this tree in their command lines: some have sessions of their own. (Found on Linux only.)"""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"{folder}/".encode() in path.read_bytes():
                yield int(path.parent.name)
