import pytest
from eth_abi.abi import decode, encode
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.evm.examples import AUTHORIZATION, signature
from x402_gig.evm import batcher, eip3009
from x402_gig.evm.batcher import Call, Result

TARGET = "0x" + "33" * 20
HASH = "0x" + "44" * 32


def selector(text: str) -> bytes:
    return keccak(text=text)[:4]


# Where it is


def test_the_address_is_eip_1014s() -> None:
    deployer = bytes.fromhex("4e59b44847b379578588920cA78FbF26c0B4956C")
    expected = keccak(b"\xff" + deployer + bytes(32) + keccak(batcher.creation_code()))[12:]
    assert batcher.address() == "0x" + expected.hex()


def test_creation_ends_with_the_code_that_stays() -> None:
    """No constructor arguments, no immutables: so the code can be compared with the chain's."""
    assert batcher.creation_code().endswith(batcher.runtime_code())


# What it is told


def test_a_batch_is_encoded_as_the_contract_reads_it() -> None:
    data = batcher.execute_data(TARGET, 100_000, [b"one", b""])
    assert data[:4] == selector("execute(address,uint256,bytes[])")
    assert decode(["address", "uint256", "bytes[]"], data[4:]) == (TARGET, 100_000, (b"one", b""))


def test_a_batch_may_name_a_block_that_its_chain_must_have() -> None:
    data = batcher.execute_on_data(7, HASH, TARGET, 100_000, [b"one"])
    assert data[:4] == selector("executeOn(uint256,bytes32,address,uint256,bytes[])")
    values = decode(["uint256", "bytes32", "address", "uint256", "bytes[]"], data[4:])
    assert values == (7, bytes.fromhex(HASH[2:]), TARGET, 100_000, (b"one",))


def test_a_simulation_is_encoded_as_the_contract_reads_it() -> None:
    data = batcher.simulate_data([Call(TARGET, 5, b"x"), Call(TARGET, 6, b"")])
    assert data[:4] == selector("simulate((address,uint256,bytes)[])")
    assert decode(["(address,uint256,bytes)[]"], data[4:]) == (((TARGET, 5, b"x"), (TARGET, 6, b"")),)


# What it answers


def test_a_simulations_answer_is_its_block_and_a_result_for_each_call() -> None:
    returned = encode(
        ["uint256", "(bool,bool,uint256,bytes)[]"], [9, [(True, False, 5, b"no"), (False, False, 0, b"")]]
    )
    assert batcher.simulated(returned) == (9, [Result(True, False, 5, b"no"), Result(False, False, 0, b"")])


def failed(data: bytes) -> Result:
    return Result(True, False, 0, data)


ERROR = selector("Error(string)")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (ERROR + encode(["string"], ["ERC20: no"]), "ERC20: no"),
        (ERROR + encode(["string"], [""]), ""),
        (ERROR + encode(["string"], ["x" * 1000]), None),
        ((ERROR + encode(["string"], ["y" * 300]))[:256], "y" * 188),
        (ERROR + encode(["string"], ["a"])[:32] + b"\xff" * 32 + b"short", "short"),
        (ERROR + encode(["uint256", "uint256"], [32, 4]) + b"\xff\xfe\xfd\xfc", "\ufffd" * 4),
        (ERROR, "0x08c379a0"),
        (ERROR + bytes(63), "0x08c379a0"),
        (selector("Panic(uint256)") + bytes(32), "0x4e487b71"),
        (b"\x01\x02", "0x0102"),
        (b"", "no reason"),
    ],
)
def test_a_reason_is_read_as_far_as_it_goes(data: bytes, reason: str | None) -> None:
    assert failed(data).revert_reason == ("x" * 1000 if reason is None else reason)


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda rest: ERROR + rest))
def test_no_answer_is_too_strange_to_be_shown(data: bytes) -> None:
    failed(data).revert_reason.encode()


@pytest.mark.parametrize(
    ("data", "number"), [(b"", 0), (b"\x05", 5), ((2**256 - 1).to_bytes(32), 2**256 - 1), (bytes(32) + b"\1", 0)]
)
def test_a_number_is_the_first_word(data: bytes, number: int) -> None:
    assert failed(data).number == number


# What it costs


@given(st.binary(max_size=500))
def test_intrinsic_gas_is_the_dearer_of_both_rules(data: bytes) -> None:
    zeros = data.count(0)
    standard = 21_000 + 4 * zeros + 16 * (len(data) - zeros)
    floor = 21_000 + 10 * zeros + 40 * (len(data) - zeros)
    assert batcher.intrinsic_gas(data) == max(standard, floor)


@given(st.integers(1, batcher.MAX_BATCH), st.sampled_from([batcher.PLAIN_CALL_GAS, batcher.CONTRACT_CALL_GAS]))
def test_the_last_call_still_gets_its_limit(calls: int, limit: int) -> None:
    """After every call before it used what was held ready; 10,000 are kept back by the contract (RESERVE)."""
    data = batcher.execute_data(TARGET, limit, [bytes(300)] * calls)
    left = batcher.batch_gas(data, limit, calls) - batcher.intrinsic_gas(data)
    for _ in range(calls):
        assert (left - 10_000 - 300) * 63 // 64 >= limit
        left -= batcher.READY[limit] + 3_000


def test_a_full_batch_of_rewards_fits_one_transaction() -> None:
    """`treasury.funding` packs them by number."""
    call = eip3009.transfer_call(AUTHORIZATION, signature(), ecdsa=True)
    data = batcher.execute_on_data(2**32, HASH, TARGET, batcher.PLAIN_CALL_GAS, [call] * batcher.MAX_BATCH)
    assert batcher.batch_gas(data, batcher.PLAIN_CALL_GAS, batcher.MAX_BATCH) <= batcher.MAX_TRANSACTION_GAS
    assert len(data) <= batcher.MAX_CALLDATA_BYTES
