"""A ledger that an earlier version wrote."""

import hashlib
import json
from pathlib import Path

import pytest

from tests.support import ledgers
from tests.support.harness import Chain, gig_terms, payment_header
from tests.support.operator import PRICE, operated


def old_fingerprint(terms: str) -> str:
    """Over all that is in the ledger, with the default texts."""
    canonical = json.dumps(["gig", json.loads(terms)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.usefixtures("database")
def test_what_an_earlier_version_sold_is_answered_and_inherited(chain: Chain, tmp_path: Path) -> None:
    with operated(chain, tmp_path) as shop:
        buyer, terms = shop.buyer(2 * PRICE), gig_terms(earning_criteria=None, platform=None)
        header = payment_header(buyer, shop.quote(terms))
        bought = shop.post(terms, header)
        assert bought.status_code == 200, bought.text
        [(kept,)] = shop.desk.rows("select terms from payments")
        ledgers.change(shop.desk.ledger, f"update payments set fingerprint = '{old_fingerprint(kept)}', abandoned = 1")

        heir = shop.post(terms, payment_header(buyer, shop.quote(terms)))
        again = shop.post(terms | {"platform": "farcaster"}, header)
        other = shop.post(terms | {"platform": "x", "url": "https://x.com/base/status/1"}, header)

        assert heir.json()["gig_id"] == again.json()["gig_id"] == bought.json()["gig_id"]
        assert other.status_code == 409
        assert shop.usdc(buyer.address) == PRICE
