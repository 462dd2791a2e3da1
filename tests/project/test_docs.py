"""Names in the documents exist, their links lead somewhere, and their lines are short enough to read."""

import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "x402_gig"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
ROOMS |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
WIDTH = 100

document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)


def prose(text: str) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.M | re.S)


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def architecture(title: str) -> str:
    return section((ROOT / "docs/architecture.md").read_text(), title)


# Tests


def test_every_test_that_threats_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/threats.md").read_text()))
    defined = {
        name for path in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named - defined == set()
    assert len(named) > 40


# Code


def names_of_code(text: str) -> list[str]:
    """Names such as `room.module.Class.function`, without the package's own."""
    return [name for name in re.findall(r"`(\w+(?:\.\w+)+)`", prose(text)) if name.split(".")[0] in ROOMS]


def find(name: str) -> Any:
    """The module, class or function of that name in the package. Raises ImportError or AttributeError."""
    return pkgutil.resolve_name(f"x402_gig.{name}")


@document
def test_every_module_and_function_that_a_document_names_exists(path: Path) -> None:
    for name in names_of_code(path.read_text()):
        find(name)


def test_the_way_of_a_payment_names_a_function_at_each_step() -> None:
    steps = re.findall(r"^\d+\. .+?(?=^\S|\Z)", architecture("The way of a payment"), re.M | re.S)
    assert len(steps) > 10
    assert [step for step in steps if not any(callable(find(name)) for name in names_of_code(step))] == []


@pytest.mark.parametrize("name", ["payments.gate.PaymentGate.call", "payments.gates", "ledger.reservations.reserved"])
def test_a_name_that_is_gone_is_noticed(name: str) -> None:
    assert names_of_code(f"See `{name}`.") == [name]
    with pytest.raises(AttributeError):
        find(name)


def test_architecture_has_a_line_for_each_room() -> None:
    assert set(re.findall(r"^\| `(\w+)` \|", architecture("Rooms"), re.M)) == ROOMS


# Links


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, as the repository's host makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@document
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(path: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose(path.read_text())):
        if not re.match(r"https?:", target):
            name, _, anchor = target.partition("#")
            linked = path.parent / name if name else path
            assert linked.exists(), target
            assert not anchor or anchor in anchors(linked), target


def test_the_readme_leads_to_every_document() -> None:
    linked = {(ROOT / name).resolve() for name in re.findall(r"\]\(([\w./-]+\.md)\)", (ROOT / "README.md").read_text())}
    assert set(DOCUMENTS) - {ROOT / "README.md"} == linked


# Form


@document
def test_lines_are_short_but_for_tables_and_code(path: Path) -> None:
    lines = prose(path.read_text()).splitlines()
    assert [line for line in lines if len(line) > WIDTH and not line.startswith("|")] == []
