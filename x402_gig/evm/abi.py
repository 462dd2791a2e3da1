"""The few shapes of Solidity's ABI that we send and read: words, byte strings, and lists of dynamic values.

eth-abi does the same for any type, and takes many times longer; the tests compare the two.
"""

from collections.abc import Sequence


def word(value: int) -> bytes:
    """A uint256. Raises OverflowError for what is none."""
    return value.to_bytes(32)


def account(address: str) -> bytes:
    return bytes.fromhex(address[2:]).rjust(32, b"\0")


def byte_string(data: bytes) -> bytes:
    return word(len(data)) + data + bytes(-len(data) % 32)


def sequence(elements: Sequence[bytes]) -> bytes:
    """A list of dynamic values, each of them encoded already."""
    offset, heads = 32 * len(elements), []
    for element in elements:
        heads.append(word(offset))
        offset += len(element)
    return b"".join([word(len(elements)), *heads, *elements])


def read_word(data: bytes, position: int) -> int:
    """Raises ValueError where the data end before."""
    if position + 32 > len(data):
        raise ValueError("the data end too early")
    return int.from_bytes(data[position : position + 32])


def read_byte_string(data: bytes, position: int) -> bytes:
    """Raises ValueError where the data end before."""
    start = position + 32
    end = start + read_word(data, position)
    if end > len(data):
        raise ValueError("the data end too early")
    return data[start:end]


def read_sequence(data: bytes, position: int) -> list[int]:
    """Where each element of a list of dynamic values begins. Raises ValueError where the data end before."""
    start = position + 32
    return [start + read_word(data, start + 32 * i) for i in range(read_word(data, position))]
