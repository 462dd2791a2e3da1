"""A purchase from outside: answers, and above all balances on chain."""

import time
from statistics import median

from tests.support.harness import (
    Dev,
    decode,
    dev_server,
    devnet,
    gig_terms,
    payload_v2,
    payment_header,
    payment_header_v1,
    served,
    until,
)


def test_a_paid_gig_is_live_and_its_reward_is_in_its_own_wallet() -> None:
    with dev_server() as dev:
        _buy_and_check_every_balance(dev)


def _buy_and_check_every_balance(dev: Dev) -> None:
    buyer = dev.buyer(11_000_000)

    bought = dev.buy(buyer)

    assert bought.status_code == 200, bought.text
    gig = bought.json()
    assert (gig["gig_balance"], gig["platform_fee"], gig["total_amount"]) == ("10", "1", "11")
    assert gig["status"] == "active"
    receipt = decode(bought.headers["PAYMENT-RESPONSE"])
    assert receipt["success"] is True
    assert receipt["network"] == "eip155:8453"
    assert receipt["transaction"] == gig["payment"]["transaction"]
    assert dev.usdc(buyer.address) == 0
    shown = dev.funded(gig["gig_id"])
    assert shown["status"] == "active"
    assert dev.usdc(gig["gig_wallet_address"]) == 10_000_000
    assert dev.usdc(dev.commission) == 1_000_000
    assert dev.usdc(dev.intake) == 0


def test_version_1_is_paid_and_answered_in_version_1(dev: Dev) -> None:
    terms = gig_terms()
    payload = payload_v2(dev.buyer(), dev.quote(terms))

    bought = dev.post(terms, payment_header_v1(payload))

    assert bought.status_code == 200, bought.text
    assert "PAYMENT-RESPONSE" not in bought.headers
    receipt = decode(bought.headers["X-PAYMENT-RESPONSE"])
    assert (receipt["success"], receipt["network"]) == (True, "base")


def test_the_same_payment_again_is_the_same_gig_and_charged_once(dev: Dev) -> None:
    buyer, terms = dev.buyer(100_000_000), gig_terms()
    header = payment_header(buyer, dev.quote(terms))

    answers = [dev.post(terms, header) for _ in range(3)]

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert dev.usdc(buyer.address) == 89_000_000


def test_with_one_relayer_a_buyer_does_not_wait_until_somebody_looks_for_the_last_ones_reward() -> None:
    with devnet() as chain, served(chain, relayers=1) as server:

        def took() -> float:
            began = time.monotonic()
            bought = server.buy(server.buyer())
            seconds = time.monotonic() - began
            assert bought.status_code == 200, bought.text
            until(lambda: server.usdc(bought.json()["gig_wallet_address"]))
            return seconds

        # The median, since one purchase may meet a busy machine. Polling alone would take up to half a second each.
        assert median(took() for _ in range(7)) < 0.25
