"""Which orders are the same, whatever a release does to the texts that buyers leave to us."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.gigs.test_terms import CAST, LIMITS, NOW, USDC, body_of
from x402_gig.errors import PaymentConflict
from x402_gig.gigs import catalogue, requests
from x402_gig.gigs.catalogue import GigType
from x402_gig.gigs.rules import Rules, RuleSet
from x402_gig.gigs.shop import GigShop
from x402_gig.payments.checkout import Known
from x402_gig.payments.order import Order

RULES = Rules(RuleSet(1, 0, 1000, LIMITS.minimum_units, LIMITS.maximum_units))
SHOP = GigShop(RULES, USDC.lower(), LIMITS.chain, 8453, lambda: NOW)
Reword = Callable[[], None]

# As a ledger has it that was written when fingerprints held the default texts.
OLD_TERMS = {
    "chain": "base",
    "token_address": USDC.lower(),
    "amount_units": 10_000_000,
    "start_time": "2025-10-01T15:00:00Z",
    "duration": "1day",
    "gig_type": "mention",
    "platform": "farcaster",
    "how_to_earn": "Write a public post of your own that contains the keyword of this gig.",
    "earning_criteria": "Mine",
    "keyword": "usdc",
}
OLD_FINGERPRINT = "42330641eff10262944ee44eff208a77824588df02c504c30d96934c4c865671"


def order(gig_type: str = "mention", /, **fields: Any) -> Order:
    return SHOP.order(body_of(gig_type, **fields))


@pytest.fixture
def reword(monkeypatch: pytest.MonkeyPatch) -> Iterator[Reword]:
    """A later release, with other default texts."""

    def reword() -> None:
        for gig_type, rules in catalogue.RULES.items():
            changed = replace(rules, how_to_earn=rules.how_to_earn and "Do it.", earning_criteria="It is done.")
            monkeypatch.setitem(catalogue.RULES, gig_type, changed)
        requests._fields.cache_clear()

    yield reword
    monkeypatch.undo()
    requests._fields.cache_clear()


@pytest.mark.parametrize("gig_type", GigType)
def test_a_default_text_that_is_reworded_makes_no_other_order(gig_type: str, reword: Reword) -> None:
    before = order(gig_type)
    texts, fingerprint = before.terms["earning_criteria"], before.fingerprint
    reword()
    assert order(gig_type).terms["earning_criteria"] != texts
    assert order(gig_type).fingerprint == fingerprint


@pytest.mark.parametrize("absent", [None, ""])
@pytest.mark.parametrize("field", ["platform", "keyword", "how_to_earn", "earning_criteria", "verifier"])
def test_what_is_as_good_as_absent_makes_no_other_order(field: str, absent: object) -> None:
    assert order(**{field: absent}).fingerprint == order().fingerprint


@pytest.mark.parametrize(
    ("gig_type", "fields"),
    [
        ("mention", {"platform": "farcaster"}),
        ("mention", {"keyword": "USDC"}),
        ("hold_erc20", {"platform": "onchain"}),
        ("like", {"url": CAST + "?utm=1"}),
    ],
)
def test_what_is_sent_as_it_would_have_been_makes_no_other_order(gig_type: str, fields: dict[str, str]) -> None:
    assert order(gig_type, **fields).fingerprint == order(gig_type).fingerprint


@pytest.mark.parametrize(
    ("gig_type", "fields"),
    [
        ("mention", {"platform": "x"}),
        ("mention", {"keyword": "usdc"}),
        ("like", {"keyword": "USDC"}),
        ("mention", {"how_to_earn": "Mine"}),
        ("mention", {"how_to_earn": OLD_TERMS["how_to_earn"]}),
        ("mention", {"verifier": "mine"}),
        ("mention", {"amount": 11}),
    ],
)
def test_what_the_buyer_chose_makes_another_order(gig_type: str, fields: dict[str, Any]) -> None:
    assert order(gig_type, **fields).fingerprint != order(gig_type).fingerprint


@pytest.mark.parametrize("is_reworded", [False, True])
def test_a_payment_of_an_earlier_version_is_known_by_its_terms(reword: Reword, *, is_reworded: bool) -> None:
    known = Known(1, OLD_FINGERPRINT, b"", None, False, json.dumps(OLD_TERMS))
    if is_reworded:
        reword()
    known.check_terms(order(keyword="usdc", earning_criteria="Mine"))
    known.check_terms(order(keyword="usdc", earning_criteria="Mine", platform="farcaster"))
    for fields in ({"keyword": "usdc", "earning_criteria": "Yours"}, {"earning_criteria": "Mine"}):
        with pytest.raises(PaymentConflict):
            known.check_terms(order(**fields))


def test_what_is_known_by_its_new_fingerprint_is_not_taken_for_old() -> None:
    """All is chosen in the one, and one text is left to us in the other."""
    chosen = {"platform": "x", "keyword": "k", "how_to_earn": "Mine", "earning_criteria": "Mine"}
    bought = order(**chosen)
    known = Known(1, bought.fingerprint, b"", None, False, json.dumps(bought.terms))
    known.check_terms(order(**chosen))
    with pytest.raises(PaymentConflict):
        known.check_terms(order(**chosen | {"how_to_earn": None}))
