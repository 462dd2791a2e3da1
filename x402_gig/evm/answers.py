"""Numbers, hashes and bytes in a node's answers: anything of another shape raises ChainUnavailable."""

import re
from typing import Any

from x402_gig.errors import ChainUnavailable

_QUANTITY = re.compile(r"0x[0-9a-fA-F]{1,64}")
_WORD = re.compile(r"0x[0-9a-fA-F]{64}")
# Heights, times and gas; a ledger's column holds no more.
COUNT_LIMIT = 2**63


def quantity(value: Any) -> int:
    """A number of at most 32 bytes."""
    if not isinstance(value, str) or not _QUANTITY.fullmatch(value):
        raise ChainUnavailable("the chain node answered with something else than a number")
    return int(value, 16)


def count(value: Any) -> int:
    """A height, a time in Unix seconds, or gas."""
    number = quantity(value)
    if number >= COUNT_LIMIT:
        raise ChainUnavailable("the chain node answered with a number that is too large")
    return number


def word(value: Any) -> str:
    """32 bytes, as a hash or a topic, in lower case."""
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise ChainUnavailable("the chain node answered with something else than a hash")
    return value.lower()


def octets(value: Any) -> bytes:
    try:
        return bytes.fromhex(value.removeprefix("0x"))
    except (AttributeError, ValueError):
        raise ChainUnavailable("the chain node answered with something else than bytes") from None
