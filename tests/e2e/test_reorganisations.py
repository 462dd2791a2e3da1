"""The chain changes its mind: what it dropped is sent again, and nothing is lost, doubled or paid out of a neighbour's."""

import time
from collections.abc import Iterator

import httpx
import pytest
from eth_account.signers.local import LocalAccount

from tests.harness import Dev, Json, dev_server, gig_terms, payment_header, until


@pytest.fixture(scope="module")
def shop() -> Iterator[Dev]:
    with dev_server() as running:
        # Deep enough that no reorganisation reaches the tokens and the batcher.
        running.rpc("anvil_mine", "0x10")
        yield running


def bought(shop: Dev, buyer: LocalAccount) -> tuple[Json, Json, Json]:
    """Terms, payment header and answer of a purchase."""
    terms = gig_terms()
    header = payment_header(buyer, shop.quote(terms), validBefore=str(int(time.time()) + 3600))
    return terms, header, ok(shop.post(terms, header))


def ok(answer: httpx.Response) -> Json:
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize("depth", [1, 2, 3, 5])
def test_a_gig_that_was_funded_is_funded_again(shop: Dev, depth: int) -> None:
    buyer, other = shop.buyer(11_000_000), shop.buyer(11_000_000)
    shop.rpc("anvil_mine", "0x5")
    sales = [bought(shop, account) for account in (buyer, other)]
    for _, _, gig in sales:
        shop.funded(gig["gig_id"])

    shop.rpc("anvil_reorg", depth, [])

    for account, (terms, header, gig) in zip((buyer, other), sales, strict=True):
        until(lambda gig=gig: shop.usdc(gig["gig_wallet_address"]) == 10_000_000)  # type: ignore[misc]
        assert ok(shop.post(terms, header))["gig_id"] == gig["gig_id"]
        assert shop.usdc(account.address) == 0
    until(lambda: shop.usdc(shop.intake) == 0)
