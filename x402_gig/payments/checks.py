"""The checks that need neither chain nor ledger, against what the server itself asked for.

Reasons are the x402 error reasons. They run for every payment, also when a remote facilitator verifies too.
"""

from x402_gig.payments.order import Seller
from x402_gig.payments.outcome import Rejected
from x402_gig.payments.payment import Payment, PaymentKey

MIN_REMAINING_S = 6
MAX_AHEAD_S = 2 * 60 * 60
ERC6492_MAGIC = bytes.fromhex("6492" * 16)

_AUTHORIZATION = "invalid_exact_evm_payload_authorization"


def check_identity(payment: Payment, seller: Seller) -> Rejected | None:
    """Is it for this scheme, network and asset at all? What passes has a `PaymentKey`."""
    network = seller.network.caip2 if payment.version == 2 else seller.network.v1_name
    if payment.scheme != "exact":
        return Rejected("unsupported_scheme", "Only the scheme exact is accepted")
    if payment.network != network:
        return Rejected("invalid_network", f"Only the network {network} is accepted")
    if payment.asset not in (None, seller.asset.lower()):
        return Rejected("invalid_payment_requirements", f"Only the asset {seller.asset} is accepted")
    return None


def payment_key(payment: Payment, seller: Seller) -> PaymentKey:
    """The identity of a payment that passed `check_identity`."""
    authorization = payment.authorization
    return PaymentKey(seller.network.caip2, seller.asset.lower(), authorization.payer, authorization.nonce)


def check_terms(payment: Payment, seller: Seller, price_units: int) -> Rejected | None:
    """Does it pay exactly this price to this seller?"""
    return _check_recipient(payment, seller) or _check_amount(payment, price_units) or _check_signature_form(payment)


def _check_recipient(payment: Payment, seller: Seller) -> Rejected | None:
    pay_to = seller.pay_to.lower()
    if payment.authorization.payee != pay_to or payment.pay_to not in (None, pay_to):
        return Rejected("invalid_exact_evm_payload_recipient_mismatch", f"Pay to {seller.pay_to}")
    return None


def _check_amount(payment: Payment, price_units: int) -> Rejected | None:
    if payment.authorization.value != price_units or payment.amount not in (None, price_units):
        return Rejected(f"{_AUTHORIZATION}_value_mismatch", f"The price is exactly {price_units} base units")
    return None


def check_times(payment: Payment, now_s: int) -> Rejected | None:
    """Is it valid now, and for long enough to settle it?"""
    authorization = payment.authorization
    if authorization.valid_after >= now_s:
        return Rejected(f"{_AUTHORIZATION}_valid_after", "The authorization is not valid yet")
    if authorization.valid_before < now_s + MIN_REMAINING_S:
        return Rejected(f"{_AUTHORIZATION}_valid_before", "The authorization is expired or about to: sign a new one")
    # One that lives for years never becomes final: it could be executed long after we gave it up.
    if authorization.valid_before > now_s + MAX_AHEAD_S:
        return Rejected(f"{_AUTHORIZATION}_valid_before", "validBefore may be two hours ahead at most")
    return None


def _check_signature_form(payment: Payment) -> Rejected | None:
    if payment.signature.endswith(ERC6492_MAGIC):
        return Rejected(
            "invalid_exact_evm_payload_signature",
            "ERC-6492 signatures are not accepted: deploy the wallet first, then pay with its ERC-1271 signature",
        )
    return None
