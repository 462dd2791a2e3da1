"""JSON from strangers: bounded depth, exact numbers, no NaN."""

import json
import re
from decimal import Decimal
from typing import Any, NoReturn

import orjson

MAX_DEPTH = 32

# What orjson reads exactly as we do. A float may have been an integer of more than 64 bits.
_PLAIN = frozenset({str, int, bool, type(None)})

_STRINGS = re.compile(r'"(?:[^"\\]|\\.)*"?', re.DOTALL)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_float=Decimal, parse_constant=_refuse_constant)


def _depth(text: str) -> int:
    deepest = depth = 0
    for bracket in re.findall(r"[\[{}\]]", _STRINGS.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def loads(data: bytes) -> Any:
    """Parse UTF-8 JSON; numbers with a fraction or exponent become Decimal.

    Raises ValueError for anything that is not JSON or is nested deeper than `MAX_DEPTH`.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError:
        return _loads_exactly(data)
    # Most bodies are such objects, which take half the time this way. (A name may be there twice, and hide anything.)
    is_deep = data.count(b"[") + data.count(b"{") > MAX_DEPTH
    if isinstance(value, dict) and not is_deep and _PLAIN.issuperset(map(type, value.values())):
        return value
    return _loads_exactly(data)


def _loads_exactly(data: bytes) -> Any:
    """The depth is counted here because importing web3 raises Python's recursion limit, and with it the only guard."""
    text = data.decode("utf-8")
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    try:
        return _DECODER.decode(text)
    except ArithmeticError:  # Decimal's own, for an exponent of twenty digits
        raise ValueError("a number is out of range") from None
