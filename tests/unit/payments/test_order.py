import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.payments.examples import INTAKE, PRICE, SELLER, USDC
from x402_gig.payments.order import Order

NAMES = st.text(max_size=5)
VALUES = st.recursive(
    NAMES | st.integers(), lambda x: st.lists(x, max_size=3) | st.dictionaries(NAMES, x, max_size=3), max_leaves=6
)
TERMS = st.dictionaries(NAMES, VALUES, max_size=4)


def reversed_keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: reversed_keys(value[name]) for name in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@given(TERMS)
def test_key_order_and_spacing_do_not_make_other_terms(terms: Any) -> None:
    again = json.loads(json.dumps(reversed_keys(terms), indent=2))
    assert Order("gig", terms, 1).fingerprint == Order("gig", again, 1).fingerprint


@given(TERMS, TERMS)
def test_other_terms_have_another_fingerprint(one: Any, other: Any) -> None:
    assert (Order("gig", one, 1).fingerprint == Order("gig", other, 1).fingerprint) == (one == other)


def test_the_product_is_part_of_the_terms() -> None:
    assert Order("gig", {"a": 1}, 1).fingerprint != Order("joke", {"a": 1}, 1).fingerprint


def test_neither_price_nor_problems_are_terms() -> None:
    """A price list that changed, or a rule of the moment, must not turn a known payment into another one."""
    plain = Order("gig", {"a": 1}, 1)
    assert plain.fingerprint == Order("gig", {"a": 1}, 2, "dearer", ("too late",)).fingerprint


def test_requirements_are_the_same_in_both_versions() -> None:
    v2 = SELLER.requirements(PRICE).model_dump(by_alias=True)
    v1 = SELLER.requirements_v1(PRICE, "https://shop.example/x", "An x").model_dump(by_alias=True, exclude_none=True)
    shared = {
        "scheme": "exact",
        "asset": USDC,
        "payTo": INTAKE,
        "maxTimeoutSeconds": 60,
        "extra": {"name": "USD Coin", "version": "2"},
    }
    assert v2 == shared | {"network": "eip155:8453", "amount": "11000000"}
    assert v1 == shared | {
        "network": "base",
        "maxAmountRequired": "11000000",
        "resource": "https://shop.example/x",
        "description": "An x",
        "mimeType": "application/json",
    }
