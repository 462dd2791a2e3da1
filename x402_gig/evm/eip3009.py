"""EIP-3009 on an EIP-712 token: digests, signatures, calldata, and the transfers a log list proves."""

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

from msgspec import Struct

from x402_gig.evm import abi
from x402_gig.evm.answers import count, quantity, word
from x402_gig.evm.keccak import keccak
from x402_gig.evm.keys import PrivateKey, address_of, recover
from x402_gig.payments.payment import Authorization

TRANSFER_TOPIC = "0x" + keccak(b"Transfer(address,address,uint256)").hex()
AUTHORIZATION_USED_TOPIC = "0x" + keccak(b"AuthorizationUsed(address,bytes32)").hex()
# As a filter: both halves of every pair.
MOVED_TOPICS = [AUTHORIZATION_USED_TOPIC, TRANSFER_TOPIC]

_DOMAIN_TYPEHASH = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_TRANSFER_TYPEHASH = keccak(
    b"TransferWithAuthorization(address from,address to,uint256 value,"
    b"uint256 validAfter,uint256 validBefore,bytes32 nonce)"
)
_TRANSFER_VRS = keccak(
    b"transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)"
)[:4]
_TRANSFER_BYTES = keccak(b"transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,bytes)")[:4]
_AUTHORIZATION_STATE = keccak(b"authorizationState(address,bytes32)")[:4]
_BALANCE_OF = keccak(b"balanceOf(address)")[:4]
_IS_BLACKLISTED = keccak(b"isBlacklisted(address)")[:4]
PAUSED_CALL = keccak(b"paused()")[:4]
_IS_VALID_SIGNATURE = keccak(b"isValidSignature(bytes32,bytes)")[:4]
DOMAIN_SEPARATOR_CALL = keccak(b"DOMAIN_SEPARATOR()")[:4]
_ERC1271_MAGIC = _IS_VALID_SIGNATURE.ljust(32, b"\0")

_HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


class Token(Struct, frozen=True, dict=True):
    """A token with EIP-3009, by its address (lower case) and EIP-712 domain."""

    address: str
    name: str
    version: str
    chain_id: int

    @cached_property
    def domain_separator(self) -> bytes:
        return keccak(
            _DOMAIN_TYPEHASH
            + keccak(self.name.encode())
            + keccak(self.version.encode())
            + abi.word(self.chain_id)
            + abi.account(self.address)
        )

    def digest(self, authorization: Authorization) -> bytes:
        """The EIP-712 hash that the payer signs."""
        struct = keccak(_TRANSFER_TYPEHASH + _encoded(authorization))
        return keccak(b"\x19\x01" + self.domain_separator + struct)

    def sign(self, authorization: Authorization, key: PrivateKey) -> bytes:
        """65 bytes r ‖ s ‖ v with v 27 or 28 and a low s."""
        signature = key.sign(self.digest(authorization))
        return signature[:64] + bytes([signature[64] + 27])

    def recovers(self, authorization: Authorization, signature: bytes) -> bool:
        """Is it the payer's own ECDSA signature? v may be 27/28 or 0/1; a high s is refused, as USDC does."""
        if len(signature) != 65 or int.from_bytes(signature[32:64]) > _HALF_ORDER:
            return False
        recovery_id = signature[64] - 27 if signature[64] >= 27 else signature[64]
        if recovery_id not in (0, 1):
            return False
        try:
            public = recover(self.digest(authorization), signature[:64] + bytes([recovery_id]))
        except ValueError:  # r or s is no point of the curve
            return False
        return address_of(public) == authorization.payer


def _encoded(authorization: Authorization) -> bytes:
    numbers = (authorization.value, authorization.valid_after, authorization.valid_before)
    return b"".join(
        [
            abi.account(authorization.payer),
            abi.account(authorization.payee),
            *(abi.word(number) for number in numbers),
            bytes.fromhex(authorization.nonce[2:]),
        ]
    )


def transfer_call(authorization: Authorization, signature: bytes, *, ecdsa: bool) -> bytes:
    """Calldata of `transferWithAuthorization`, in the (v, r, s) form or, for contract wallets, the bytes form."""
    if not ecdsa:
        return _TRANSFER_BYTES + _encoded(authorization) + abi.word(7 * 32) + abi.byte_string(signature)
    v = signature[64] if signature[64] >= 27 else signature[64] + 27
    return _TRANSFER_VRS + _encoded(authorization) + abi.word(v) + signature[:64]


def authorization_state_call(payer: str, nonce: str) -> bytes:
    return _AUTHORIZATION_STATE + abi.account(payer) + bytes.fromhex(nonce[2:])


def balance_of_call(account: str) -> bytes:
    return _BALANCE_OF + abi.account(account)


def is_blacklisted_call(account: str) -> bytes:
    """Circle's FiatToken. Another token has no such function, and its answer is empty: no."""
    return _IS_BLACKLISTED + abi.account(account)


def is_valid_signature_call(digest: bytes, signature: bytes) -> bytes:
    """ERC-1271 `isValidSignature`."""
    return _IS_VALID_SIGNATURE + digest + abi.word(64) + abi.byte_string(signature)


def approves(success: bool, returned: bytes) -> bool:
    """Did a contract answer `isValidSignature` with yes?"""
    return success and returned[:32] == _ERC1271_MAGIC


class TokenTransfer(Struct, frozen=True):
    """Money that moved: the only evidence there is. Hex is lower case.

    `nonce` is that of the authorization that moved it (EIP-3009); None for a plain transfer.
    """

    payer: str
    nonce: str | None
    payee: str
    value: int
    transaction: str
    log_index: int
    block_number: int
    block_hash: str


def token_transfers(logs: Iterable[Mapping[str, Any]], token: str) -> list[TokenTransfer]:
    """Every transfer of `token` in `logs`, JSON-RPC log objects of one block or one receipt.

    An authorization moved it when its AuthorizationUsed(payer, nonce) is the log right before
    Transfer(payer → payee, value). Only neighbours count: two logs somewhere in one transaction would let one
    transfer prove two payments.
    """
    ours = sorted((log for log in logs if _is_live(log, token)), key=_position)
    return [
        _transfer(before, log) for before, log in zip([None, *ours], ours, strict=False) if _is(log, TRANSFER_TOPIC)
    ]


def _is_live(log: Mapping[str, Any], token: str) -> bool:
    return log["address"].lower() == token and not log.get("removed", False)


def _position(log: Mapping[str, Any]) -> tuple[int, int]:
    return count(log["blockNumber"]), count(log["logIndex"])


def _is(log: Mapping[str, Any], topic: str) -> bool:
    return bool([*log["topics"], None][0] == topic)


def _transfer(before: Mapping[str, Any] | None, log: Mapping[str, Any]) -> TokenTransfer:
    nonce = word(before["topics"][2]) if before is not None and _authorizes(before, log) else None
    return TokenTransfer(
        payer=address_in(log["topics"][1]),
        nonce=nonce,
        payee=address_in(log["topics"][2]),
        value=quantity(log["data"]),
        transaction=word(log["transactionHash"]),
        log_index=count(log["logIndex"]) - (nonce is not None),
        block_number=count(log["blockNumber"]),
        block_hash=word(log["blockHash"]),
    )


def _authorizes(used: Mapping[str, Any], moved: Mapping[str, Any]) -> bool:
    return (
        _is(used, AUTHORIZATION_USED_TOPIC)
        and used["transactionHash"] == moved["transactionHash"]
        and count(used["logIndex"]) + 1 == count(moved["logIndex"])
        and address_in(used["topics"][1]) == address_in(moved["topics"][1])
    )


def address_in(topic: str) -> str:
    return "0x" + word(topic)[-40:]
