from datetime import UTC, datetime
from typing import Any

import pytest

from x402_gig.gigs.catalogue import GigType, Platform
from x402_gig.gigs.records import GigRecord, TokenInfo
from x402_gig.gigs.views import gig_view

USDC, ODD = "0x" + "11" * 20, "0x" + "22" * 20
NOW = 1_760_000_000
FIELDS = {
    "id", "created_at", "start_time_ms", "end_time_ms", "duration_ms", "amount", "payout_interval_ms", "how_to_earn",
    "earning_criteria", "ticker", "gigbot_transactions_id", "platform", "external_url", "gig_address", "total_balance",
    "action_params", "token", "chain", "gig_type",
}  # fmt: skip
DISPLAY = {"icon", "label", "filter_id", "with_input", "how_to_earn", "earning_criteria", "input_placeholder"}


def view(token: TokenInfo = TokenInfo(USDC, "USDC", 6), **terms: Any) -> dict[str, Any]:  # noqa: B008 - frozen
    said = {
        "chain": "base",
        "token_address": token.address,
        "amount_units": 10_500_000,
        "start_time": "2025-10-01T15:00:00Z",
        "duration": "1day",
        "gig_type": "like",
        "platform": "farcaster",
        "how_to_earn": "Do it",
        "earning_criteria": "It is done",
    } | terms
    gig = GigRecord(
        gig_id=7, key_id=None, state="live", wallet="0x" + "33" * 20, creator="0x" + "44" * 20, terms=said, token=token,
        reward_units=10_500_000, commission_units=1_050_000, surplus_units=0, start_at=NOW, end_at=NOW + 86_400,
        created_at=NOW, suspended=False, deposit_transaction="0x" + "55" * 32, reward_transaction=None,
        commission_transaction=None,
    )  # fmt: skip
    return gig_view(gig, 8453, USDC, datetime.fromtimestamp(NOW, UTC))


@pytest.mark.parametrize("gig_type", GigType)
@pytest.mark.parametrize("platform", Platform)
def test_every_gig_has_every_field_that_clients_read(gig_type: GigType, platform: Platform) -> None:
    gig = view(gig_type=gig_type, platform=platform)
    assert set(gig) >= FIELDS
    assert set(gig["token"]) == {"id", "image_url", "symbol", "coingecko_id", "address", "decimals"}
    assert set(gig["chain"]) == {"id", "name", "image_url", "chain_id"}
    assert gig["gig_type"]["id"] == gig_type
    for shown in (gig["gig_type"]["display"][name] for name in ("x", "farcaster")):
        assert set(shown) == DISPLAY
        assert shown["label"]


@pytest.mark.parametrize(
    ("token", "amount", "coingecko_id"),
    [
        (TokenInfo(USDC, "USDC", 6), "10.5", "usd-coin"),
        (TokenInfo(ODD, "ODD", 11), "0.000105", ""),
        (TokenInfo(ODD, "USDC", 0), "10500000", ""),
    ],
)
def test_amounts_are_in_the_gigs_own_token(token: TokenInfo, amount: str, coingecko_id: str) -> None:
    gig = view(token)
    assert (gig["amount"], gig["total_balance"], gig["ticker"]) == (amount, amount, token.symbol)
    assert (gig["token"]["address"], gig["token"]["coingecko_id"]) == (token.address, coingecko_id)
    assert (gig["token"]["symbol"], gig["token"]["decimals"]) == (token.symbol, token.decimals)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        (None, ""),
        ("https://x.com/dwr/status/123", "https://x.com/dwr/status/123"),
        ("https://example.com/post/9/?ref=a/b#c", "https://example.com/post/9"),
        ("https://example.com/#/post/9", "https://example.com"),
        ("https://example.com/?next=/a/", "https://example.com"),
    ],
)
def test_an_external_url_ends_with_the_posts_id(url: str | None, shown: str) -> None:
    assert view(gig_type="custom_bounty", platform="x", url=url)["external_url"] == shown


@pytest.mark.parametrize(
    ("url", "params"),
    [
        ("https://farcaster.xyz/dwr/0x1a2b3c4d", {"target_cast_hash": "0x1a2b3c4d"}),
        ("https://farcaster.xyz/0xdesigner", {}),
        ("https://farcaster.xyz/0xdesigner/0x1a2b3c4d", {"target_cast_hash": "0x1a2b3c4d"}),
        ("https://explorer.example/address/0x1a2b3c4d", {}),
        (None, {}),
    ],
)
def test_only_a_cast_is_a_target(url: str | None, params: dict[str, str]) -> None:
    assert view(gig_type="custom_bounty", url=url)["action_params"] == params


def test_a_mention_names_its_keyword_or_else_the_token() -> None:
    odd = TokenInfo(ODD, "ODD", 11)
    assert view(odd, gig_type="mention")["action_params"] == {"tip_query_keyword": "ODD"}
    assert view(odd, gig_type="mention", keyword="gm")["action_params"] == {"tip_query_keyword": "gm"}
