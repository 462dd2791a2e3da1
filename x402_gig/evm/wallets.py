"""All wallets of the server, from one BIP-39 seed by BIP-32 paths (BIP-44 coin 60). Nothing here prints a key."""

import hmac
from functools import lru_cache

from mnemonic import Mnemonic
from msgspec import Struct

from x402_gig.evm.keccak import keccak
from x402_gig.evm.keys import PrivateKey, address_of, compressed, public_plus

MAX_GIG_ID = 2**31 - 1
HARDENED = 2**31


class Branch(Struct, frozen=True):
    """An extended private key (BIP-32)."""

    key: PrivateKey
    chain_code: bytes


class Wallet(Struct, frozen=True):
    """An account we hold the key of; `address` is lower-case hex."""

    address: str
    key: PrivateKey

    def __repr__(self) -> str:
        return f"Wallet({self.address})"


class Wallets:
    """Intake, relayers and gig wallets of wallet account `W` (a setting); a new W shares nothing with an old one.

    Raises ValueError when `mnemonic` is not a valid BIP-39 phrase.
    """

    def __init__(self, mnemonic: str, account: int = 0) -> None:
        seed = seed_of(mnemonic)
        self.account = account
        # Only the branches are kept: a wallet is one derivation below.
        self._gigs = _branch(seed, f"44'/60'/0'/{account}")
        self._relayers = _branch(seed, f"44'/60'/1'/{account}")
        self.intake = _child(_branch(seed, "44'/60'/2'/0"), account)
        # The wallet's address. It is asked for when the wallet is looked at, and again when its gig is sold.
        self.gig_address = lru_cache(maxsize=8192)(self._gig_address)

    def relayer(self, index: int) -> Wallet:
        return _child(self._relayers, index)

    def gig_wallet(self, gig_id: int) -> Wallet:
        """The wallet that belongs to one gig for ever."""
        return _child(self._gigs, _checked_id(gig_id))

    def _gig_address(self, gig_id: int) -> str:
        """From public keys alone: making its private key takes longer than that."""
        tweak = _digest(self._gigs, _checked_id(gig_id))[:32]
        return address_of(public_plus(self._gigs.key.public, tweak))

    def reward_nonce(self, gig_id: int) -> str:
        """The nonce of the one authorization that can ever fund this gig."""
        return self._nonce("reward", gig_id)

    def commission_nonce(self, row: int) -> str:
        return self._nonce("commission", row)

    def fee_nonce(self, gig_id: int) -> str:
        """Of the commission that leaves the gig's own wallet."""
        return self._nonce("fee", gig_id)

    def surplus_nonce(self, row: int) -> str:
        return self._nonce("surplus", row)

    def refund_nonce(self, *source: str | int) -> str:
        """`source` is what the deposit is known by: (asset, payer, nonce), or (asset, transaction, log index)."""
        return self._nonce("refund", *source)

    def _nonce(self, purpose: str, *what: str | int) -> str:
        words = (self.account, *(int(word, 16) if isinstance(word, str) else word for word in what))
        return "0x" + keccak(purpose.encode() + b"".join(word.to_bytes(32) for word in words)).hex()


def _checked_id(gig_id: int) -> int:
    if not 0 < gig_id <= MAX_GIG_ID:
        raise ValueError(f"gig id {gig_id} has no wallet")
    return gig_id


def seed_of(mnemonic: str) -> bytes:
    """The seed of a BIP-39 phrase, in any of its languages. Raises ValueError, which does not repeat the phrase."""
    try:
        # Most are in English, and finding the language takes longer than all the rest.
        phrase = _checked(mnemonic, "english") or _checked(mnemonic, Mnemonic.detect_language(mnemonic))
    except Exception:  # noqa: BLE001 - the library's message repeats the phrase
        phrase = ""
    if not phrase:
        raise ValueError("not a valid BIP-39 phrase")
    return Mnemonic.to_seed(phrase)


def _checked(mnemonic: str, language: str) -> str:
    words = Mnemonic(language)
    phrase = words.expand(mnemonic)
    return phrase if words.check(phrase) else ""


def _branch(seed: bytes, path: str) -> Branch:
    """The extended private key at `m/path` (BIP-32)."""
    branch = _extended(hmac.digest(b"Bitcoin seed", seed, "sha512"))
    for step in path.split("/"):
        branch = _derive(branch, int(step.removesuffix("'")) + HARDENED * step.endswith("'"))
    return branch


def _extended(digest: bytes, parent: PrivateKey | None = None) -> Branch:
    key = PrivateKey(digest[:32]) if parent is None else parent.plus(digest[:32])
    return Branch(key, digest[32:])


def _derive(branch: Branch, index: int) -> Branch:
    return _extended(_digest(branch, index), branch.key)


def _digest(branch: Branch, index: int) -> bytes:
    data = b"\0" + branch.key.secret if index >= HARDENED else compressed(branch.key.public)
    return hmac.digest(branch.chain_code, data + index.to_bytes(4), "sha512")


def _child(branch: Branch, index: int) -> Wallet:
    key = _derive(branch, index).key
    return Wallet(address_of(key.public), key)
