import json
import sys
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from x402_gig.payments.jsontext import MAX_DEPTH, loads

WITHOUT_FLOATS = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(WITHOUT_FLOATS)
def test_what_json_writes_is_read(value: Any) -> None:
    assert loads(json.dumps(value).encode()) == value


NUMBERS = ["1", "-0", "0.10", "1e2", "01", "+1", "18446744073709551615", "18446744073709551616", "-9223372036854775809"]
TEXTS = ['""', '"a"', "'a'", r'"\ud800"', r'"\ud83d\ude00"', r'"\u0000"', r'"\x"']
OTHERS = ["true", "null", "NaN", "[1.5]", "[[]]", '{"a": 1.5}']


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(NUMBERS + TEXTS + OTHERS)), max_size=4))
def test_objects_are_read_as_python_reads_them(fields: list[tuple[str, str]]) -> None:
    """In Python's order, with its integers, and the last of several of one name."""
    text = "{" + ", ".join(f'"{name}": {word}' for name, word in fields) + "}"

    def read(parse: Callable[[], Any]) -> str:
        try:
            return repr(parse())
        except ValueError:
            return "refused"

    def refuse(name: str) -> None:
        raise ValueError(name)

    expected = read(lambda: json.loads(text, parse_float=Decimal, parse_constant=refuse))
    assert read(lambda: loads(text.encode())) == expected


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_fractions_keep_every_digit(number: Decimal) -> None:
    assert Decimal(loads(str(number).encode())) == number


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_bounded(opening: bytes) -> None:
    closing = b"]" if opening == b"[" else b"}"

    def nested(depth: int) -> bytes:
        return opening * depth + b"1" + closing * depth

    assert loads(nested(MAX_DEPTH))
    with pytest.raises(ValueError, match="nested deeper"):
        loads(nested(MAX_DEPTH + 1))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(b"[" * 200_000, id="lists"),
        pytest.param(b'{"a":' * 200_000, id="objects"),
        pytest.param(b'["\\"]' + b"[" * 200_000, id="after an escaped quote"),
        pytest.param(b'["' + b"]" * 1000 + b'",' + b"[" * 200_000, id="after closing brackets in a string"),
        pytest.param(b"]" * 1000 + b"[" * 200_000, id="after closing brackets"),
    ],
)
def test_no_nesting_reaches_the_parser(text: bytes) -> None:
    """With the recursion limit that web3 leaves behind, the parser would run out of stack and end the process."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        with pytest.raises(ValueError):
            loads(text)
    finally:
        sys.setrecursionlimit(limit)


def test_depth_that_a_later_value_of_the_name_hides_is_bounded_too() -> None:
    deep = b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1)
    with pytest.raises(ValueError, match="nested"):
        loads(b'{"a": ' + deep + b', "a": 1}')


def test_width_is_not_depth() -> None:
    assert loads(b"[" + b",".join([b"[]"] * 1000) + b"]") == [[]] * 1000


@pytest.mark.parametrize("inside", ["[" * 100, "{" * 100, '\\"' + "[" * 100, "\\\\", "]" * 100])
def test_brackets_in_strings_are_text(inside: str) -> None:
    text = '{"a": "' + inside + '", "b": [' + ", ".join('"["' for _ in range(50)) + "]}"
    assert loads(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", '{"amount": NaN}', "[-Infinity]"])
def test_numbers_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not JSON"):
        loads(text.encode())


@pytest.mark.parametrize("text", ["1e9999999999999999999", "1e-9999999999999999999", "[1.0E+99999999999999999999]"])
def test_exponents_beyond_all_bounds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="out of range"):
        loads(text.encode())


def test_a_large_exponent_is_only_a_number() -> None:
    assert loads(b"1e999999999") == Decimal("1e999999999")


def test_a_number_of_many_digits_costs_nothing() -> None:
    with pytest.raises(ValueError):
        loads(b"9" * 60_000)


def test_a_lone_surrogate_is_read_as_the_text_it_is() -> None:
    """JSON allows the escape; who writes it to UTF-8 must expect it."""
    assert loads(b'"\\ud800"') == "\ud800"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"{'a': 1}",
        b'{"a": 1,}',
        b"[1 2]",
        b"01",
        b"+1",
        b"// 1",
        b'"\x01"',
        b"\xff",
        b'"\xed\xa0\x80"',
        b"1 1",
    ],
)
def test_what_is_not_json_is_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError):
        loads(data)


@given(st.binary(max_size=200))
def test_bytes_are_json_or_a_value_error(data: bytes) -> None:
    try:
        loads(data)
    except ValueError:
        return
    json.loads(data.decode())
