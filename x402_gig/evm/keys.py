"""Keys of the curve secp256k1: signatures that tell their signer, addresses, and BIP-32's sum of keys.

A public key is 65 bytes, `04 ‖ x ‖ y` (SEC 1, section 2.3.3). The only importer of libsecp256k1.
"""

from btclib_secp256k1 import keys, recovery

from x402_gig.evm.keccak import keccak


class PrivateKey:
    """A private key of 32 bytes, which `repr` does not show. Raises ValueError outside [1, n - 1]."""

    __slots__ = ("public", "secret")

    def __init__(self, secret: bytes) -> None:
        self.secret = secret
        self.public = keys.pubkey_from_prvkey(secret, compressed=False)

    def sign(self, digest: bytes) -> bytes:
        """65 bytes: r ‖ s ‖ recovery id (0 or 1), with a low s and the nonce of RFC 6979."""
        # The library recovers the signer from each signature before it returns it: a fault while signing shows there.
        signature, recovery_id = recovery.sign(digest, self.secret, pubkey=self.public)
        return signature + bytes([recovery_id])

    def plus(self, tweak: bytes) -> "PrivateKey":
        """The key of `self + tweak`, as BIP-32 derives a child."""
        return PrivateKey(keys.prvkey_tweak_add(self.secret, tweak))


def recover(digest: bytes, signature: bytes) -> bytes:
    """The public key that made `signature` (as `PrivateKey.sign` writes it). Raises ValueError if none did."""
    return recovery.recover(digest, signature[:64], signature[64], compressed=False)


def public_plus(public: bytes, tweak: bytes) -> bytes:
    """The public key of `PrivateKey.plus`, from public keys alone."""
    return keys.pubkey_tweak_add(public, tweak, compressed=False)


def compressed(public: bytes) -> bytes:
    """The same public key in 33 bytes, as BIP-32 hashes it."""
    return keys.reserialize(public)


def address_of(public: bytes) -> str:
    """The account of a public key, lower-case hex."""
    return "0x" + keccak(public[1:])[12:].hex()
