"""docs/payment-states.md shows the very table that the ledger goes by."""

import re
from pathlib import Path

import pytest

from x402_gig.ledger.states import TRANSITIONS, Transition, before

DOC = Path(__file__).resolve().parents[3] / "docs/payment-states.md"


def test_the_documented_transitions_are_the_codes() -> None:
    table = DOC.read_text().split("| thing |")[1].split("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in re.split(r"\|", line)[1:-1]] for line in table]
    assert [Transition(*row) for row in rows] == list(TRANSITIONS)


@pytest.mark.parametrize(
    ("thing", "after", "expected"),
    [
        ("payment", "settled", ["open"]),
        ("payment", "open", ["settled"]),
        ("payment", "rejected", ["open"]),
        ("movement", "done", ["due", "void"]),
        ("movement", "void", ["due"]),
        ("slot", "open", ["filled", "lost", "mined", "reverted"]),
        ("slot", "mined", ["open"]),
    ],
)
def test_a_row_may_come_from_these_states_only(thing: str, after: str, expected: list[str]) -> None:
    assert before(thing, after) == expected
