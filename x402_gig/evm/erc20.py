"""ERC-20 tokens that we know nothing about (EIP-20): what to ask them, and how much of the answer to believe."""

from collections.abc import Iterable, Mapping
from typing import Any

from x402_gig.evm import abi
from x402_gig.evm.batcher import Call, Result, code_size_call
from x402_gig.evm.eip3009 import balance_of_call
from x402_gig.evm.keccak import keccak
from x402_gig.gigs.records import TokenInfo

# A proxy in front of a cold token that computes its balances.
ASKED_GAS = 200_000
# 10^36 of them is far beyond any token that is traded.
MAX_DECIMALS = 36
MAX_SYMBOL_CHARS = 32

_SYMBOL = keccak(b"symbol()")[:4]
_DECIMALS = keccak(b"decimals()")[:4]
_TRANSFER = keccak(b"transfer(address,uint256)")[:4]


def transfer_call(payee: str, value: int) -> bytes:
    """Calldata of `transfer`."""
    return _TRANSFER + abi.account(payee) + abi.word(value)


def info_calls(token: str, batcher: str) -> list[Call]:
    """What `token_info` reads the answers of; the batcher tells the size of the code."""
    asked = [Call(token, ASKED_GAS, data) for data in (_DECIMALS, _DECIMALS, _SYMBOL, balance_of_call(token))]
    return [Call(batcher, ASKED_GAS, code_size_call(token)), *asked]


def token_info(token: str, answers: Iterable[Result]) -> TokenInfo | None:
    """None when it is no contract, keeps no balances, or its `decimals` are missing or not to be believed."""
    code_size, decimals, again, symbol, balance = answers
    is_token = code_size.number > 0 and is_word(balance) and is_word(decimals) and decimals.data == again.data
    if not is_token or decimals.number > MAX_DECIMALS:
        return None
    return TokenInfo(token, _text(symbol) or f"{token[:6]}…{token[-4:]}", decimals.number)


def is_word(result: Result) -> bool:
    """Did it answer with one number?"""
    return result.success and len(result.data) == 32


def is_refusal(result: Result) -> bool:
    """`transfer` may answer with nothing, as older tokens do, but not with false."""
    return not result.success or (len(result.data) >= 32 and result.number == 0)


def _text(result: Result) -> str:
    """A `string`, or the `bytes32` of older tokens; empty when it cannot be shown."""
    if not result.success:
        return ""
    try:
        raw = result.data if is_word(result) else abi.read_byte_string(result.data, abi.read_word(result.data, 0))
        text = raw.rstrip(b"\0").decode().strip()
    except ValueError:
        return ""
    return text if text.isprintable() and len(text) <= MAX_SYMBOL_CHARS else ""


def plain_transfers(logs: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those logs that have the shape of ERC-20's Transfer: an NFT's has another one, and a token may emit anything."""
    return [log for log in logs if len(log["topics"]) == 3 and len(log["data"]) == 66]
