"""The batcher contract (contracts/Batcher.sol): calldata, gas limits, deployment data."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from eth_abi.abi import decode, encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

# The deterministic deployment proxy: calldata is salt ‖ creation code, the address follows from both.
CREATE2_DEPLOYER = "0x4e59b44847b379578588920ca78fbf26c0b4956c"
SALT = bytes(32)

MAX_BATCH = 145
MAX_TRANSACTION_GAS = 2**24  # Base's cap for one transaction
MAX_CALLDATA_BYTES = 100_000
# The first deposit of all needs 80,000: it opens two storage slots. 100,000 confines a payer that burns gas.
PLAIN_CALL_GAS = 100_000
CONTRACT_CALL_GAS = 500_000

_EXECUTE = keccak(text="execute(address,uint256,bytes[])")[:4]
_EXECUTE_ON = keccak(text="executeOn(uint256,bytes32,address,uint256,bytes[])")[:4]
_SIMULATE = keccak(text="simulate((address,uint256,bytes)[])")[:4]
_CODE_SIZE = keccak(text="codeSize(address)")[:4]


@dataclass(frozen=True, slots=True)
class Call:
    target: str
    gas_limit: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Result:
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


@cache
def creation_code() -> bytes:
    artifact = json.loads((files("x402_gig.chain") / "Batcher.json").read_text())
    return bytes.fromhex(artifact["bytecode"].removeprefix("0x"))


@cache
def runtime_code() -> bytes:
    artifact = json.loads((files("x402_gig.chain") / "Batcher.json").read_text())
    return bytes.fromhex(artifact["deployedBytecode"].removeprefix("0x"))


@cache
def address() -> str:
    """The same on every chain (EIP-1014)."""
    deployer = bytes.fromhex(CREATE2_DEPLOYER[2:])
    return "0x" + keccak(b"\xff" + deployer + SALT + keccak(creation_code()))[12:].hex()


@cache
def checksum_address() -> str:
    """The address with EIP-55 letter case, as transaction signing wants it."""
    return to_checksum_address(address())


def deployer_checksum_address() -> str:
    return to_checksum_address(CREATE2_DEPLOYER)


def execute_data(target: str, gas_each: int, calls: Sequence[bytes]) -> bytes:
    return _EXECUTE + encode(["address", "uint256", "bytes[]"], [target, gas_each, calls])


def execute_on_data(block_number: int, block_hash: str, target: str, gas_each: int, calls: Sequence[bytes]) -> bytes:
    """As `execute_data`, for a chain that has this block only."""
    return _EXECUTE_ON + encode(
        ["uint256", "bytes32", "address", "uint256", "bytes[]"],
        [block_number, bytes.fromhex(block_hash[2:]), target, gas_each, calls],
    )


def simulate_data(calls: Sequence[Call]) -> bytes:
    return _SIMULATE + encode(["(address,uint256,bytes)[]"], [[(c.target, c.gas_limit, c.data) for c in calls]])


def simulated(returned: bytes) -> tuple[int, list[Result]]:
    """The block that the simulation saw and one result for each call."""
    number, results = decode(["uint256", "(bool,bool,uint256,bytes)[]"], returned)
    return number, [Result(*result) for result in results]


def code_size_call(account: str) -> bytes:
    return _CODE_SIZE + encode(["address"], [account])


def intrinsic_gas(data: bytes) -> int:
    """What a transaction with this calldata costs before it runs, EIP-7623's floor included."""
    return 21_000 + calldata_gas(data)


def calldata_gas(data: bytes) -> int:
    zeros = data.count(0)
    tokens = zeros + 4 * (len(data) - zeros)
    return 10 * tokens  # the floor is above the standard 4 a token


def call_gas(gas_each: int) -> int:
    """What a call needs around it to get its full limit (63/64 rule)."""
    return gas_each * 64 // 63 + 3_000


def batch_gas(data: bytes, gas_each: int, calls: int) -> int:
    """A gas limit under which the batcher reaches every call, each with its own full limit."""
    return intrinsic_gas(data) + calls * call_gas(gas_each) + 20_000
