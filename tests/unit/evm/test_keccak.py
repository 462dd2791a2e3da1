from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak as theirs
from hypothesis import given
from hypothesis import strategies as st

from x402_gig.evm.keccak import keccak, with_checksum


@given(st.binary(max_size=300))
def test_a_hash_is_the_one_that_ethereum_knows(data: bytes) -> None:
    assert keccak(data) == theirs(data)


@given(st.binary(min_size=20, max_size=20))
def test_an_address_has_the_checksum_that_wallets_look_for(data: bytes) -> None:
    address = "0x" + data.hex()
    assert with_checksum(address) == with_checksum(address.upper().replace("X", "x")) == to_checksum_address(address)
