"""Which gigs' wallets were used (contracts/UsedWallets.sol)? One eth_call tells of many."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from x402_gig.evm import abi

# In one eth_call: as much as a contract's creation may be long (EIP-3860), and what they cost.
MAX_ASKED = 250
GAS = 15_000_000


class Trace(NamedTuple):
    """What a gig that was given out once may have left on the chain: its wallet, and two nonces of USDC."""

    wallet: str
    reward_nonce: str
    fee_nonce: str


def call_data(token: str, intake: str, traces: Sequence[Trace]) -> bytes:
    """Of a call without a recipient."""
    heads = abi.account(token) + abi.account(intake) + abi.word(96) + abi.word(len(traces))
    return _code() + heads + b"".join(map(_encoded, traces))


def _encoded(trace: Trace) -> bytes:
    return abi.account(trace.wallet) + bytes.fromhex(trace.reward_nonce[2:] + trace.fee_nonce[2:])


@cache
def _code() -> bytes:
    artifact = json.loads((files("x402_gig.evm") / "UsedWallets.json").read_text())
    return bytes.fromhex(artifact["bytecode"].removeprefix("0x"))


def read_answer(returned: bytes, count: int) -> list[bool]:
    """One for each trace. Raises ValueError for anything else."""
    if len(returned) != count or returned.strip(b"\0\1"):
        raise ValueError("not an answer about so many wallets")
    return [byte == 1 for byte in returned]
