"""What the documents name exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_test_that_threats_names_exists() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/threats.md").read_text()))
    defined = {
        name for path in ROOT.glob("tests/**/test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert named - defined == set()
    assert len(named) > 40
