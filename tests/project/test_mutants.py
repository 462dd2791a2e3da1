"""The list of `scripts/mutants` fits the tree."""

from dataclasses import replace
from typing import Any

import pytest

from tests.mutants.listed import ROOT, Mutant, WrongMutant, read

LISTED = read()
OF_PYTHON = next(mutant for mutant in LISTED if not mutant.is_contract)


@pytest.mark.parametrize("mutant", LISTED, ids=lambda mutant: mutant.name)
def test_each_line_is_there_once_and_each_test_exists(mutant: Mutant) -> None:
    mutant.check(ROOT)
    assert mutant.broken != mutant.text


def test_there_are_many_and_each_has_a_name_of_its_own() -> None:
    names = [mutant.name for mutant in LISTED]
    assert len(set(names)) == len(names) > 40


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"text": "no line of it"}, "0 times"),
        ({"text": "return"}, "times, not once"),
        ({"broken": "if ("}, "is no Python"),
        ({"tests": ["tests/project/test_mutants.py::test_of_nothing"]}, "there is no test"),
        ({"tests": ["tests/unit/nowhere.py::test_each_line_is_there_once_and_each_test_exists"]}, "there is no test"),
        ({"tests": []}, "it names no test"),
    ],
)
def test_what_does_not_fit_says_why(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(WrongMutant, match=problem):
        replace(OF_PYTHON, **changes).check(ROOT)
