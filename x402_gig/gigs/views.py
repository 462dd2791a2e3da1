"""A gig as the API shows it. Field names are the public gig API's; clients depend on every one of them."""

from datetime import UTC, datetime
from typing import Any

from x402_gig.gigs import lifecycle
from x402_gig.gigs.catalogue import DISPLAY, RULES, GigType, Platform
from x402_gig.gigs.pricing import USDC_DECIMALS, to_tokens
from x402_gig.gigs.records import GigRecord
from x402_gig.gigs.shop import iso
from x402_gig.gigs.terms import Terms

SYMBOL = "USDC"


def gig_view(gig: GigRecord, chain_id: int, now: datetime) -> dict[str, Any]:
    """The gig as lists show it, with its status, its payment and its funding."""
    terms = Terms.model_validate(gig.terms)
    start, end = (datetime.fromtimestamp(t, UTC) for t in (gig.start_at, gig.end_at))
    duration_ms = (gig.end_at - gig.start_at) * 1000
    return {
        "id": gig.gig_id,
        "status": "suspended" if gig.suspended else lifecycle.status(start, end, now),
        "created_at": iso(datetime.fromtimestamp(gig.created_at, UTC)),
        "start_time_ms": gig.start_at * 1000,
        "end_time_ms": gig.end_at * 1000,
        "duration_ms": duration_ms,
        "payout_interval_ms": duration_ms,
        "amount": to_tokens(gig.reward_units),
        "total_balance": to_tokens(gig.reward_units),
        "platform_fee": to_tokens(gig.commission_units),
        "how_to_earn": terms.how_to_earn,
        "earning_criteria": terms.earning_criteria,
        "ticker": SYMBOL,
        "gigbot_transactions_id": gig.deposit_transaction,
        "platform": terms.platform,
        "external_url": external_url(terms),
        "gig_address": gig.wallet,
        "gig_wallet_address": gig.wallet,
        "creator": gig.creator,
        "action_params": _action_params(terms),
        "token": {
            "id": terms.token_address,
            "address": terms.token_address,
            "symbol": SYMBOL,
            "decimals": USDC_DECIMALS,
            "coingecko_id": "usd-coin",
            "image_url": "",
        },
        "chain": {"id": terms.chain, "name": terms.chain.title(), "chain_id": chain_id, "image_url": ""},
        "gig_type": {"id": terms.gig_type, "display": _displays(terms.gig_type)},
        "payment": {"payer": gig.payer, "transaction": gig.deposit_transaction, "network": gig.network},
        "funding": _funding(gig),
    }


def external_url(terms: Terms) -> str:
    """Without query and trailing slash: a client reads the post's id from what follows the last `/`."""
    return (terms.url or "").split("#")[0].split("?")[0].rstrip("/")


def _action_params(terms: Terms) -> dict[str, str]:
    url = external_url(terms)
    params = {}
    if terms.platform is Platform.FARCASTER and "/0x" in url:
        params["target_cast_hash"] = url.rsplit("/", 1)[-1]
    if terms.gig_type is GigType.MENTION:
        params["tip_query_keyword"] = terms.keyword or SYMBOL
    return params


def _displays(gig_type: GigType) -> dict[str, dict[str, Any]]:
    rules = RULES[gig_type]
    texts = {"how_to_earn": rules.how_to_earn or "", "earning_criteria": rules.earning_criteria or ""}
    return {
        platform: {
            "icon": display.icon,
            "label": display.labels[platform],
            "filter_id": gig_type.value,
            "with_input": bool(display.placeholder),
            "input_placeholder": display.placeholder,
            **texts,
        }
        for platform in (Platform.X, Platform.FARCASTER)
        for display in (DISPLAY[gig_type],)
    }


def _funding(gig: GigRecord) -> dict[str, Any]:
    """`funded` once the reward is in the gig's wallet; the commission follows on its own.

    `missing` while the deposit is not on chain (any more): the gig is suspended.
    """
    return {
        "state": "missing" if gig.suspended else "funded" if gig.reward_transaction else "deposited",
        "deposit_transaction": gig.deposit_transaction,
        "reward_transaction": gig.reward_transaction,
        "commission_transaction": gig.commission_transaction,
    }
