"""The list: lines on which money depends, each with the way in which it is broken (`*.toml` in this folder)."""

import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTS = sorted(Path(__file__).parent.glob("*.toml"))


class WrongMutant(Exception):
    """A mutant that cannot be made; the text says why."""


@dataclass(frozen=True)
class Mutant:
    """`text` stands exactly once in `file` and becomes `broken`; `tests` should notice, as pytest or Forge name them.

    `why`: how money is lost, doubled or stuck without the line.
    """

    name: str
    file: str
    text: str
    broken: str
    why: str
    tests: Sequence[str]

    @property
    def is_contract(self) -> bool:
        return self.file.endswith(".sol")

    def source(self, folder: Path) -> str:
        """The file of this tree with the line broken. Raises WrongMutant."""
        whole = (folder / self.file).read_text()
        if (count := whole.count(self.text)) != 1:
            raise WrongMutant(f"the text to be replaced is in {self.file} {count} times, not once")
        source = whole.replace(self.text, self.broken)
        if not self.is_contract:
            try:
                compile(source, self.file, "exec")
            except SyntaxError as exc:
                raise WrongMutant(f"the broken {self.file} is no Python: {exc}") from None
        return source

    def check(self, folder: Path) -> None:
        """Raises WrongMutant when it does not fit this tree."""
        self.source(folder)
        if missing := [test for test in self.tests if not _exists(test, folder)]:
            raise WrongMutant(f"there is no test {', '.join(missing)}")
        if not self.tests:
            raise WrongMutant("it names no test")


def _exists(test: str, folder: Path) -> bool:
    path, _, name = test.partition("::")
    source = folder / path
    plain = name.partition("[")[0]
    return source.is_file() and re.search(rf"\b(def|function) {plain}\(", source.read_text()) is not None


def read(paths: Iterable[Path] = LISTS) -> list[Mutant]:
    return [Mutant(**row) for path in paths for row in tomllib.loads(path.read_text())["mutant"]]
