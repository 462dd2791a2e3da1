from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.payments.examples import KEY, NOW, PAYER, PRICE, SELLER, payment
from x402_gig.payments.checks import ERC6492_MAGIC, check_identity, check_terms, check_times, payment_key

VERSIONS = pytest.mark.parametrize("version", [1, 2])
OTHER = "0x" + "99" * 20
TWO_HOURS = 7200


def identity(version: int = 2, **claims: Any) -> str | None:
    refused = check_identity(payment(version, claims=claims), SELLER)
    return refused.reason if refused else None


def terms(version: int = 2, **changes: Any) -> str | None:
    wrong = payment(version, **changes)
    refused = check_terms(wrong, SELLER, PRICE) or check_times(wrong, NOW)
    return refused.reason if refused else None


@VERSIONS
def test_a_payment_as_it_was_asked_for_passes(version: int) -> None:
    assert identity(version) is None
    assert terms(version) is None


@pytest.mark.parametrize(
    ("version", "claims", "reason"),
    [
        (1, {"scheme": "upto"}, "unsupported_scheme"),
        (2, {"scheme": "EXACT"}, "unsupported_scheme"),
        (1, {"network": "base-sepolia"}, "invalid_network"),
        (1, {"network": "eip155:8453"}, "invalid_network"),
        (2, {"network": "base"}, "invalid_network"),
        (2, {"network": "eip155:84532"}, "invalid_network"),
        (2, {"network": ""}, "invalid_network"),
        (2, {"asset": OTHER}, "invalid_payment_requirements"),
    ],
)
def test_a_payment_for_something_else_has_no_identity_here(version: int, claims: Any, reason: str) -> None:
    assert identity(version, **claims) == reason


@VERSIONS
def test_a_payments_key_does_not_depend_on_its_version(version: int) -> None:
    assert payment_key(payment(version), SELLER) == KEY


@VERSIONS
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"payee": OTHER}, "invalid_exact_evm_payload_recipient_mismatch"),
        ({"payee": PAYER.lower()}, "invalid_exact_evm_payload_recipient_mismatch"),
        ({"value": PRICE - 1}, "invalid_exact_evm_payload_authorization_value_mismatch"),
        ({"value": PRICE + 1}, "invalid_exact_evm_payload_authorization_value_mismatch"),
        ({"value": 0}, "invalid_exact_evm_payload_authorization_value_mismatch"),
        ({"valid_after": NOW - 1}, None),
        ({"valid_after": NOW}, "invalid_exact_evm_payload_authorization_valid_after"),
        ({"valid_after": NOW + 1}, "invalid_exact_evm_payload_authorization_valid_after"),
        ({"valid_before": 0}, "invalid_exact_evm_payload_authorization_valid_before"),
        ({"valid_before": NOW + 5}, "invalid_exact_evm_payload_authorization_valid_before"),
        ({"valid_before": NOW + 6}, None),
        ({"valid_before": NOW + TWO_HOURS}, None),
        ({"valid_before": NOW + TWO_HOURS + 1}, "invalid_exact_evm_payload_authorization_valid_before"),
        ({"valid_before": 2**256 - 1}, "invalid_exact_evm_payload_authorization_valid_before"),
        ({"signature": b""}, None),  # whether it is the payer's is for the chain's side
        ({"signature": bytes(65) + ERC6492_MAGIC}, "invalid_exact_evm_payload_signature"),
        ({"signature": ERC6492_MAGIC + b"\0"}, None),
    ],
    ids=str,
)
def test_terms_are_met_to_the_last_unit_and_second(version: int, changes: Any, reason: str | None) -> None:
    assert terms(version, **changes) == reason


@pytest.mark.parametrize(
    ("claims", "reason"),
    [
        ({"pay_to": OTHER}, "invalid_exact_evm_payload_recipient_mismatch"),
        ({"amount": PRICE + 1}, "invalid_exact_evm_payload_authorization_value_mismatch"),
        ({"amount": 0}, "invalid_exact_evm_payload_authorization_value_mismatch"),
    ],
)
def test_what_is_claimed_beside_the_authorization_must_agree_with_it(claims: Any, reason: str) -> None:
    assert terms(claims=claims) == reason


def test_a_refusal_says_what_would_be_right() -> None:
    refused = [check_terms(payment(**changes), SELLER, PRICE) for changes in ({"value": 1}, {"payee": OTHER})]
    assert [r and r.detail for r in refused] == [f"The price is exactly {PRICE} base units", f"Pay to {SELLER.pay_to}"]


@given(price=st.integers(0, 2**256 - 1), value=st.integers(0, 2**256 - 1))
def test_only_the_exact_price_passes(price: int, value: int) -> None:
    refused = check_terms(payment(1, value=value), SELLER, price)
    assert (refused is None) == (price == value)
