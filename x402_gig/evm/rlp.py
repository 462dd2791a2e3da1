"""The encoding of transactions (RLP: Ethereum's yellow paper, appendix B), of numbers, byte strings and lists.

The rlp package does the same, and importing it takes a tenth of the server's start; the tests compare the two.
"""

from collections.abc import Iterator, Sequence
from typing import Union

Item = Union[int, bytes, Sequence["Item"]]  # noqa: UP007 - a name that is not there yet has no |

STRING, LIST = 0x80, 0xC0
# From here on the length is written in bytes of its own.
LONG = 56


def encode(item: Item) -> bytes:
    if isinstance(item, int):
        item = _big_endian(item)
    if isinstance(item, bytes):
        return item if len(item) == 1 and item[0] < STRING else _head(STRING, len(item)) + item
    body = b"".join(map(encode, item))
    return _head(LIST, len(body)) + body


def _head(kind: int, length: int) -> bytes:
    if length < LONG:
        return bytes([kind + length])
    size = _big_endian(length)
    return bytes([kind + LONG - 1 + len(size)]) + size


def _big_endian(number: int) -> bytes:
    return number.to_bytes((number.bit_length() + 7) // 8)


def elements(encoded: bytes) -> Iterator[bytes]:
    """What is in an encoded list, without what says how long it is."""
    place, end = _content(encoded, 0)
    while place < end:
        start, place = _content(encoded, place)
        yield encoded[start:place]


def _content(encoded: bytes, place: int) -> tuple[int, int]:
    """Where that of the item at this place begins and ends."""
    head = encoded[place]
    if head < STRING:
        return place, place + 1
    length = head % (LIST - STRING)
    if length < LONG:
        return place + 1, place + 1 + length
    start = place + 1 + length - (LONG - 1)
    return start, start + int.from_bytes(encoded[place + 1 : start])
