"""Beside the rlp package, which encodes any type."""

from typing import Any

import pytest
import rlp as theirs
from hypothesis import given
from hypothesis import strategies as st

from x402_gig.evm import rlp

STRINGS = st.binary(max_size=80)


@given(st.recursive(STRINGS | st.integers(0, 2**256 - 1), lambda inner: st.lists(inner, max_size=9)))
def test_numbers_strings_and_lists_are_encoded_as_the_package_does(item: Any) -> None:
    assert rlp.encode(item) == theirs.encode(item)


@pytest.mark.parametrize("size", [0, 1, 54, 55, 56, 57, 255, 256, 65_535, 65_536, 100_000])
def test_strings_of_any_length_come_back(size: int) -> None:
    given = [b"\x7f" * size, b"\x80" * size, bytes(size)]
    encoded = rlp.encode(given)
    assert encoded == theirs.encode(given)
    assert list(rlp.elements(encoded)) == given


@given(st.lists(STRINGS))
def test_what_was_encoded_comes_back(strings: list[bytes]) -> None:
    assert list(rlp.elements(theirs.encode(strings))) == strings
