"""Keccak-256, and what an address looks like with its checksum."""

from sha3 import keccak_256


def keccak(data: bytes) -> bytes:
    digest: bytes = keccak_256(data).digest()
    return digest


def with_checksum(address: str) -> str:
    """A hex address, each letter a capital where its digit of the hash is 8 or more (EIP-55)."""
    digits = address[2:].lower()
    marks = keccak(digits.encode()).hex()
    return "0x" + "".join(digit.upper() if mark >= "8" else digit for digit, mark in zip(digits, marks, strict=False))
