import random
from typing import Any

import pytest
from eth_abi.abi import decode
from eth_account import Account
from eth_account.messages import _hash_eip191_message
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from tests.unit.evm.examples import (
    AUTHORIZATION,
    BLOCK,
    NONCE,
    PAYEE,
    PAYER,
    PAYER_ACCOUNT,
    TOKEN,
    TRANSACTION,
    Log,
    authorization,
    moved,
    signature,
    typed_data,
    used,
)
from x402_gig.evm import eip3009
from x402_gig.evm.eip3009 import Token, TokenTransfer, token_transfers
from x402_gig.evm.keys import PrivateKey, address_of
from x402_gig.payments.payment import Authorization

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
OTHER = "0x" + "99" * 20
UINT256 = st.integers(0, 2**256 - 1)
ADDRESSES = st.binary(min_size=20, max_size=20).map(lambda raw: "0x" + raw.hex())
NONCES = st.binary(min_size=32, max_size=32).map(lambda raw: "0x" + raw.hex())
AUTHORIZATIONS = st.builds(Authorization, ADDRESSES, ADDRESSES, UINT256, UINT256, UINT256, NONCES)


# Signatures


@given(AUTHORIZATIONS)
def test_the_digest_is_eip_712s(given_: Authorization) -> None:
    assert TOKEN.digest(given_) == _hash_eip191_message(typed_data(given_))


@pytest.mark.parametrize(
    "token",
    [
        Token(OTHER, "USD Coin", "2", 8453),
        Token(TOKEN.address, "USDC", "2", 8453),
        Token(TOKEN.address, "USD Coin", "1", 8453),
        Token(TOKEN.address, "USD Coin", "2", 84532),
    ],
)
def test_every_part_of_the_domain_counts(token: Token) -> None:
    assert token.digest(AUTHORIZATION) == _hash_eip191_message(typed_data(AUTHORIZATION, token))
    assert token.digest(AUTHORIZATION) != TOKEN.digest(AUTHORIZATION)
    assert not token.recovers(AUTHORIZATION, signature())


@given(st.integers(1, ORDER - 1))
def test_what_we_sign_is_what_eth_account_signs(secret: int) -> None:
    key = PrivateKey(secret.to_bytes(32))
    account = Account.from_key(key.secret)
    own = authorization(payer=account.address.lower())
    assert TOKEN.sign(own, key) == signature(own, account)
    assert TOKEN.recovers(own, TOKEN.sign(own, key))


def with_v(raw: bytes, v: int) -> bytes:
    return raw[:64] + bytes([v])


def test_both_spellings_of_v_are_the_payers() -> None:
    raw = signature()
    assert raw[64] in (27, 28)
    assert TOKEN.recovers(AUTHORIZATION, raw)
    assert TOKEN.recovers(AUTHORIZATION, with_v(raw, raw[64] - 27))


@pytest.mark.parametrize("v", [2, 3, 4, 26, 29, 30, 31, 35, 255])
def test_no_other_v_is(v: int) -> None:
    assert not TOKEN.recovers(AUTHORIZATION, with_v(signature(), v))


def test_the_wrong_half_of_v_is_somebody_else() -> None:
    raw = signature()
    assert not TOKEN.recovers(AUTHORIZATION, with_v(raw, 27 + 28 - raw[64]))


def test_a_high_s_is_refused() -> None:
    """The twin of a signature that every curve library accepts; USDC does not."""
    raw = signature()
    s = ORDER - int.from_bytes(raw[32:64])
    twin = raw[:32] + s.to_bytes(32) + bytes([27 + 28 - raw[64]])
    assert Account.recover_message(typed_data(AUTHORIZATION), signature=twin).lower() == PAYER
    assert not TOKEN.recovers(AUTHORIZATION, twin)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(65), id="zeros"),
        pytest.param(signature()[:64], id="64 bytes"),
        pytest.param(signature() + b"\0", id="66 bytes"),
        pytest.param(b"\xff" * 32 + signature()[32:], id="r beyond the curve"),
        pytest.param(signature()[:32] + bytes(32) + signature()[64:], id="s is zero"),
    ],
)
def test_what_is_no_signature_recovers_nobody(raw: bytes) -> None:
    assert not TOKEN.recovers(AUTHORIZATION, raw)


@pytest.mark.parametrize(
    "change",
    [
        {"payer": OTHER},
        {"payee": OTHER},
        {"value": 1},
        {"valid_after": 1},
        {"valid_before": 1},
        {"nonce": "0x" + "00" * 32},
    ],
    ids=str,
)
def test_a_signature_is_for_one_authorization(change: dict[str, Any]) -> None:
    assert not TOKEN.recovers(authorization(**change), signature())


@given(st.binary(max_size=70))
def test_random_bytes_are_not_the_payers(raw: bytes) -> None:
    assert not TOKEN.recovers(AUTHORIZATION, raw)


# Calldata

FIELDS = ["address", "address", "uint256", "uint256", "uint256", "bytes32"]
VALUES = (PAYER, PAYEE, 11_000_000, 0, 1_760_000_000, bytes.fromhex(NONCE[2:]))


@pytest.mark.parametrize("v", [0, 1, 27, 28])
def test_the_vrs_form_has_v_as_the_token_wants_it(v: int) -> None:
    raw = with_v(signature(), v)
    data = eip3009.transfer_call(AUTHORIZATION, raw, ecdsa=True)
    assert (
        data[:4]
        == keccak(
            text="transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
        )[:4]
    )
    expected = (*VALUES, v % 27 + 27, raw[:32], raw[32:64])
    assert decode([*FIELDS, "uint8", "bytes32", "bytes32"], data[4:]) == expected


@pytest.mark.parametrize("raw", [b"", signature(), bytes(200)])
def test_the_bytes_form_carries_the_signature_as_it_is(raw: bytes) -> None:
    data = eip3009.transfer_call(AUTHORIZATION, raw, ecdsa=False)
    assert (
        data[:4] == keccak(text="transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)")[:4]
    )
    assert decode([*FIELDS, "bytes"], data[4:]) == (*VALUES, raw)


@pytest.mark.parametrize(
    ("success", "returned", "yes"),
    [
        (True, bytes.fromhex("1626ba7e") + bytes(28), True),
        (True, bytes.fromhex("1626ba7e") + bytes(28 + 64), True),
        (False, bytes.fromhex("1626ba7e") + bytes(28), False),
        (True, bytes.fromhex("1626ba7e"), False),
        (True, bytes.fromhex("1626ba7e") + b"\1" * 28, False),
        (True, (1).to_bytes(32), False),
        (True, b"", False),
    ],
)
def test_only_the_whole_magic_word_is_a_yes(success: bool, returned: bytes, yes: bool) -> None:
    assert eip3009.approves(success, returned) is yes


# What a log list proves


def found(*logs: Log) -> list[TokenTransfer]:
    return token_transfers(logs, TOKEN.address)


def nonces(*logs: Log) -> list[str | None]:
    """Of each transfer that these logs prove; None for a plain one."""
    return [t.nonce for t in found(*logs)]


def test_a_pair_of_neighbours_is_an_authorized_transfer() -> None:
    assert found(used(4), moved(5)) == [TokenTransfer(PAYER, NONCE, PAYEE, 11_000_000, TRANSACTION, 4, 16, BLOCK)]


def test_letter_case_does_not_count() -> None:
    loud = [
        {
            **log,
            "address": "0x" + log["address"][2:].upper(),
            "topics": [log["topics"][0], *("0x" + topic[2:].upper() for topic in log["topics"][1:])],
            "transactionHash": "0x" + TRANSACTION[2:].upper(),
            "blockHash": "0x" + BLOCK[2:].upper(),
        }
        for log in (used(4), moved(5))
    ]
    assert found(*loud) == found(used(4), moved(5))


def test_a_transfer_without_an_authorization_is_a_plain_one() -> None:
    assert found(moved(5)) == [TokenTransfer(PAYER, None, PAYEE, 11_000_000, TRANSACTION, 5, 16, BLOCK)]


@pytest.mark.parametrize(
    "logs",
    [
        pytest.param([moved(5)], id="moved without an authorization"),
        pytest.param([used(4), moved(6)], id="not neighbours"),
        pytest.param([moved(4), used(5)], id="the other way round"),
        pytest.param([used(4), moved(5, payer=OTHER)], id="another payer moved"),
        pytest.param([used(4, payer=OTHER), moved(5)], id="another payer authorized"),
        pytest.param([used(4), moved(5, transactionHash="0x" + "72" * 32)], id="another transaction"),
        pytest.param([used(4, address=OTHER), moved(5)], id="an event of another contract"),
        pytest.param([used(4, removed=True), moved(5)], id="half removed"),
        pytest.param([used(4, topics=[]), moved(5)], id="an authorization without topics"),
        pytest.param([{**used(4), "topics": ["0x" + "00" * 32]}, moved(5)], id="another event before it"),
        pytest.param([used(4), moved(5, logIndex="0x4")], id="one log twice"),
    ],
)
def test_a_transfer_without_its_authorization_right_before_it_is_a_plain_one(logs: list[Log]) -> None:
    assert nonces(*logs) == [None]


@pytest.mark.parametrize(
    "logs",
    [
        pytest.param([], id="nothing"),
        pytest.param([used(4)], id="used and not moved: cancelled, or another event in between"),
        pytest.param([used(4), moved(5, address=OTHER)], id="a transfer of another token"),
        pytest.param([used(4, address=OTHER), moved(5, address=OTHER)], id="all of another token"),
        pytest.param([used(4, removed=True), moved(5, removed=True)], id="removed by a reorganisation"),
        pytest.param([used(4), moved(5, removed=True)], id="the other half removed"),
        pytest.param([used(4), moved(5, topics=[])], id="a log without topics"),
        pytest.param([used(4), {**moved(5), "topics": ["0x" + "00" * 32]}], id="another event"),
    ],
)
def test_such_logs_prove_no_transfer(logs: list[Log]) -> None:
    assert found(*logs) == []


def test_one_transfer_proves_one_payment() -> None:
    """Two authorizations used and one transfer: the first was cancelled, or the logs are somebody's trick."""
    other = "0x" + "cd" * 32
    assert nonces(used(4, nonce=other), used(5), moved(6)) == [NONCE]


def test_one_authorization_proves_one_transfer() -> None:
    both = found(used(4), moved(5, value=1), moved(6, value=2))
    assert [(t.nonce, t.value, t.log_index) for t in both] == [(NONCE, 1, 4), (None, 2, 6)]


def test_every_pair_of_a_transaction_counts() -> None:
    signed = ["0x" + f"{n:064x}" for n in range(5)]
    logs = [log for n, nonce in enumerate(signed) for log in (used(2 * n, nonce=nonce), moved(2 * n + 1, value=n))]
    assert [(t.nonce, t.value) for t in found(*logs)] == [(nonce, n) for n, nonce in enumerate(signed)]
    random.Random(7).shuffle(logs)
    assert nonces(*logs) == signed


def test_neighbours_of_two_blocks_are_none() -> None:
    later = moved(5, blockNumber="0x11", transactionHash="0x" + "72" * 32)
    assert nonces(used(4, blockNumber="0x10"), later) == [None]
    first = [used(0, blockNumber="0x10"), moved(1, blockNumber="0x10")]
    second = [used(0, blockNumber="0x11"), moved(1, blockNumber="0x11")]
    assert [(t.block_number, t.nonce) for t in found(*second, *first)] == [(16, NONCE), (17, NONCE)]


def test_logs_of_other_tokens_between_pairs_do_not_matter_but_indices_do() -> None:
    assert nonces(used(4), moved(5, address=OTHER), moved(6)) == [None]
    assert nonces(moved(3, address=OTHER), used(4), moved(5), used(6, address=OTHER)) == [NONCE]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.sampled_from([PAYER, OTHER])), max_size=7))
def test_no_two_transfers_share_a_log(shape: list[tuple[bool, int, str]]) -> None:
    by_index = {index: (used if is_used else moved)(index, payer) for is_used, index, payer in shape}
    transfers = found(*by_index.values())
    authorized = [t.log_index for t in transfers if t.nonce is not None]
    plain = [t.log_index for t in transfers if t.nonce is None]
    moves = [*(i + 1 for i in authorized), *plain]
    # Every transfer is found, once, and each authorization proves one at most.
    assert sorted(moves) == sorted(i for i, log in by_index.items() if log["topics"][0] == eip3009.TRANSFER_TOPIC)
    assert len({*authorized, *moves}) == len(authorized) + len(moves)
    assert all(by_index[i]["topics"][0] == eip3009.AUTHORIZATION_USED_TOPIC for i in authorized)


def test_addresses_come_from_keys() -> None:
    key = PrivateKey(bytes(PAYER_ACCOUNT.key))
    assert address_of(key.public) == PAYER
    assert replace(AUTHORIZATION).payer == PAYER
