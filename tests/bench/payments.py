"""Payments signed before the clock starts, from 20 payers, and what became of their money.

They are signed with the server's own code, which the tests prove against other libraries': it is the quick one.
"""

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, cycle

from eth_utils.address import to_checksum_address

from tests.bench.load import Address, post
from tests.support.harness import Chain, Json, encode, gig_terms
from x402_gig.evm.keys import PrivateKey, address_of
from x402_gig.payments.payment import Authorization
from x402_gig.settings import NETWORKS

PAYERS = 20
# A buyer's own choice; presigned payments wait longer than others.
LIFETIME_S = 3600
PLENTY_UNITS = 10**15
DURATIONS = ("1day", "3days")
# Of the rewards, in USDC: a few dozen prices are asked for again and again.
REWARDS = range(10, 42)
TOKEN = NETWORKS["devnet"].token


def questions() -> list[bytes]:
    """Create bodies of all kinds: what buyers ask the price of."""
    kinds = ({"gig_type": name, "duration": length} for name in ("like", "recast", "boost") for length in DURATIONS)
    return [
        json.dumps(gig_terms(amount=reward, url=_post(number), **kind)).encode()
        for number, (reward, kind) in enumerate(zip(REWARDS, cycle(kinds), strict=False))
    ]


def orders() -> Iterator[bytes]:
    """Create bodies, each for another gig, all at the same price."""
    return (json.dumps(gig_terms(url=_post(number))).encode() for number in count())


def _post(number: int) -> str:
    return f"https://farcaster.xyz/dwr/0x{number:08x}"


@dataclass
class Purse:
    """20 buyers with as much USDC as they need on `chain`."""

    chain: Chain
    keys: list[PrivateKey] = field(default_factory=lambda: [PrivateKey(secrets.token_bytes(32)) for _ in range(PAYERS)])

    def __post_init__(self) -> None:
        self.addresses = [address_of(key.public) for key in self.keys]
        for address in self.addresses:
            self.chain.give_usdc(address, PLENTY_UNITS)

    def sign(self, requirements: Json, payments: int) -> list[str]:
        """So many version 2 payment headers for what a 402 asks, by all payers in turn."""
        value = int(requirements["amount"])
        signed = (self.authorize(number, requirements["payTo"].lower(), value) for number in range(payments))
        return [_header(requirements, *one) for one in signed]

    def authorize(self, number: int, payee: str, value: int) -> tuple[Authorization, bytes]:
        """By the payer whose turn it is, and the signature."""
        authorization = Authorization(
            payer=self.addresses[number % PAYERS],
            payee=payee,
            value=value,
            valid_after=0,
            valid_before=int(time.time()) + LIFETIME_S,
            nonce="0x" + secrets.token_hex(32),
        )
        return authorization, TOKEN.sign(authorization, self.keys[number % PAYERS])

    def spent_units(self) -> int:
        """By all of them, so far."""
        return PAYERS * PLENTY_UNITS - sum(self.chain.usdc(address) for address in self.addresses)


def _header(requirements: Json, authorization: Authorization, signature: bytes) -> str:
    message = {
        # As other clients write them: the official facilitator takes no lower-case address.
        "from": to_checksum_address(authorization.payer),
        "to": requirements["payTo"],
        "value": str(authorization.value),
        "validAfter": str(authorization.valid_after),
        "validBefore": str(authorization.valid_before),
        "nonce": authorization.nonce,
    }
    payload = {"signature": "0x" + signature.hex(), "authorization": message}
    return encode({"x402Version": 2, "accepted": requirements, "payload": payload})


def paid_requests(address: Address, path: str, headers: Sequence[str]) -> list[bytes]:
    """One request for each payment, each for a gig of its own."""
    return [
        post(address, path, body, f"PAYMENT-SIGNATURE: {header}\r\n")
        for body, header in zip(orders(), headers, strict=False)
    ]
