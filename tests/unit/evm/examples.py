"""Log objects as a node gives them, and authorizations signed by eth_account."""

from typing import Any

from eth_account import Account
from eth_account.messages import SignableMessage, encode_typed_data
from eth_account.signers.local import LocalAccount
from eth_utils.address import to_checksum_address
from msgspec.structs import asdict, replace

from x402_gig.evm.eip3009 import AUTHORIZATION_USED_TOPIC, TRANSFER_TOPIC, Token
from x402_gig.payments.payment import Authorization

Log = dict[str, Any]
TOKEN = Token("0x833589fcd6edb6e08f4c7c32d4f71b54bda02913", "USD Coin", "2", 8453)
PAYER_ACCOUNT: LocalAccount = Account.from_key("0x" + "42" * 32)
PAYER = PAYER_ACCOUNT.address.lower()
PAYEE = "0x" + "17" * 20
NONCE = "0x" + "ab" * 32
TRANSACTION = "0x" + "71" * 32
BLOCK = "0x" + "b1" * 32
AUTHORIZATION = Authorization(PAYER, PAYEE, 11_000_000, 0, 1_760_000_000, NONCE)


def authorization(**changes: Any) -> Authorization:
    return replace(AUTHORIZATION, **changes)


def typed_data(given: Authorization, token: Token = TOKEN) -> SignableMessage:
    """The same authorization as eth_account hashes it."""
    fields = asdict(given)
    names = ("from", "to", "value", "validAfter", "validBefore", "nonce")
    types = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
    message = dict(zip(names, fields.values(), strict=True)) | {"nonce": bytes.fromhex(given.nonce[2:])}
    return encode_typed_data(
        domain_data={
            "name": token.name,
            "version": token.version,
            "chainId": token.chain_id,
            "verifyingContract": to_checksum_address(token.address),
        },
        message_types={
            "TransferWithAuthorization": [{"name": n, "type": t} for n, t in zip(names, types, strict=True)]
        },
        message_data=message,
    )


def signature(given: Authorization = AUTHORIZATION, account: LocalAccount = PAYER_ACCOUNT) -> bytes:
    return bytes(account.sign_message(typed_data(given)).signature)


def _log(index: int, topics: list[str], data: str) -> Log:
    return {
        "address": TOKEN.address,
        "topics": topics,
        "data": data,
        "transactionHash": TRANSACTION,
        "logIndex": hex(index),
        "blockNumber": "0x10",
        "blockHash": BLOCK,
        "removed": False,
    }


def _word(address: str) -> str:
    return "0x" + address[2:].rjust(64, "0")


def used(index: int, payer: str = PAYER, nonce: str = NONCE, **changes: Any) -> Log:
    return _log(index, [AUTHORIZATION_USED_TOPIC, _word(payer), nonce], "0x") | changes


def moved(index: int, payer: str = PAYER, payee: str = PAYEE, value: int = 11_000_000, **changes: Any) -> Log:
    return _log(index, [TRANSFER_TOPIC, _word(payer), _word(payee)], f"0x{value:064x}") | changes
