"""The batcher contract (contracts/Batcher.sol): calldata, gas limits, deployment data."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from msgspec import Struct

from x402_gig.evm import abi
from x402_gig.evm.keccak import keccak

# The deterministic deployment proxy: calldata is salt ‖ creation code, the address follows from both.
CREATE2_DEPLOYER = "0x4e59b44847b379578588920ca78fbf26c0b4956c"
SALT = bytes(32)

MAX_BATCH = 180
MAX_TRANSACTION_GAS = 2**24  # Base's cap for one transaction
MAX_CALLDATA_BYTES = 100_000
# What a call may use: 100,000 confines a payer that burns gas.
PLAIN_CALL_GAS = 100_000
CONTRACT_CALL_GAS = 500_000
# What a batch holds ready for each. With Circle's token the first call needs 80,000 when the payee held nothing, which
# opens two storage slots; those after it need 37,000 to 59,000. A payer with code may use all that it is given.
READY = {PLAIN_CALL_GAS: 80_000, CONTRACT_CALL_GAS: CONTRACT_CALL_GAS}

# A word of calldata with three bytes in it, for no batch is longer than that.
OFFSET_GAS = 410

_EXECUTE = keccak(b"execute(address,uint256,bytes[])")[:4]
_EXECUTE_ON = keccak(b"executeOn(uint256,bytes32,address,uint256,bytes[])")[:4]
_SIMULATE = keccak(b"simulate((address,uint256,bytes)[])")[:4]
_CODE_SIZE = keccak(b"codeSize(address)")[:4]


class Call(Struct, frozen=True):
    target: str
    gas_limit: int
    data: bytes


class Result(Struct, frozen=True):
    """One simulated call; `data` is what it returned or reverted with, its first 256 bytes at most."""

    tried: bool
    success: bool
    gas_used: int
    data: bytes

    @property
    def number(self) -> int:
        """The returned word as an integer; 0 when there is none."""
        return int.from_bytes(self.data[:32])

    @property
    def revert_reason(self) -> str:
        """The text of `Error(string)`, or the selector of a custom error."""
        if self.data[:4] == bytes.fromhex("08c379a0") and len(self.data) >= 68:
            length = min(int.from_bytes(self.data[36:68]), len(self.data) - 68)
            return self.data[68 : 68 + length].decode("utf-8", "replace")
        return "0x" + self.data[:4].hex() if self.data else "no reason"


def creation_code() -> bytes:
    return _code("bytecode")


def runtime_code() -> bytes:
    return _code("deployedBytecode")


@cache
def _code(kind: str) -> bytes:
    artifact = json.loads((files("x402_gig.evm") / "Batcher.json").read_text())
    return bytes.fromhex(artifact[kind].removeprefix("0x"))


@cache
def address() -> str:
    """The same on every chain (EIP-1014)."""
    deployer = bytes.fromhex(CREATE2_DEPLOYER[2:])
    return "0x" + keccak(b"\xff" + deployer + SALT + keccak(creation_code()))[12:].hex()


def execute_data(target: str, gas_each: int, calls: Sequence[bytes]) -> bytes:
    return _EXECUTE + abi.account(target) + abi.word(gas_each) + abi.word(96) + _byte_strings(calls)


def execute_on_data(block_number: int, block_hash: str, target: str, gas_each: int, calls: Sequence[bytes]) -> bytes:
    """As `execute_data`, for a chain that has this block only."""
    anchor = abi.word(block_number) + bytes.fromhex(block_hash[2:])
    return _EXECUTE_ON + anchor + abi.account(target) + abi.word(gas_each) + abi.word(160) + _byte_strings(calls)


def _byte_strings(calls: Sequence[bytes]) -> bytes:
    return abi.sequence([abi.byte_string(call) for call in calls])


def simulate_data(calls: Sequence[Call]) -> bytes:
    return _SIMULATE + abi.word(32) + abi.sequence([_call(call) for call in calls])


def _call(call: Call) -> bytes:
    return abi.account(call.target) + abi.word(call.gas_limit) + abi.word(96) + abi.byte_string(call.data)


def simulated(returned: bytes) -> tuple[int, list[Result]]:
    """The block that the simulation saw and one result for each call. Raises ValueError for anything else."""
    places = abi.read_sequence(returned, abi.read_word(returned, 32))
    return abi.read_word(returned, 0), [_result(returned, place) for place in places]


def _result(returned: bytes, place: int) -> Result:
    tried, success, gas_used, offset = (abi.read_word(returned, place + 32 * i) for i in range(4))
    return Result(bool(tried), bool(success), gas_used, abi.read_byte_string(returned, place + offset))


def code_size_call(account: str) -> bytes:
    return _CODE_SIZE + abi.account(account)


def intrinsic_gas(data: bytes) -> int:
    """What a transaction with this calldata costs before it runs, EIP-7623's floor included."""
    return 21_000 + calldata_gas(data)


def calldata_gas(data: bytes) -> int:
    zeros = data.count(0)
    tokens = zeros + 4 * (len(data) - zeros)
    return 10 * tokens  # the floor is above the standard 4 a token


def place_gas(call: bytes) -> int:
    """What one call costs as a part of a batch's calldata: the word that says where it is, its length, and padding."""
    return OFFSET_GAS + calldata_gas(abi.byte_string(call))


def call_gas(gas_each: int) -> int:
    """What a batch holds ready for one call and what is around it (63/64 rule)."""
    return READY[gas_each] * 64 // 63 + 3_000


def batch_gas(data: bytes, gas_each: int, calls: int) -> int:
    """A gas limit under which the batcher starts every call with its full limit, while they use what is READY.

    What it does not reach stays open, and is sent again when its buyer asks.
    """
    return intrinsic_gas(data) + calls * call_gas(gas_each) + gas_each - READY[gas_each] + 20_000
