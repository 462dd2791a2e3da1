"""A gig as the API shows it. Field names are the public gig API's; clients depend on every one of them."""

from datetime import UTC, datetime
from functools import cache, partial
from typing import Any

from x402_gig.gigs import lifecycle
from x402_gig.gigs.catalogue import DISPLAY, RULES, SOCIAL_URLS, GigType, Platform
from x402_gig.gigs.pricing import to_tokens
from x402_gig.gigs.records import GigRecord
from x402_gig.gigs.shop import iso
from x402_gig.gigs.terms import Terms


def gig_view(gig: GigRecord, chain_id: int, usdc: str, now: datetime) -> dict[str, Any]:
    """The gig as lists show it, with its status, its payment and its funding; `usdc` is that token's address."""
    terms = Terms.model_validate(gig.terms)
    tokens = partial(to_tokens, decimals=gig.token.decimals)
    duration_ms = (gig.end_at - gig.start_at) * 1000
    return {
        "id": gig.gig_id,
        "status": status_of(gig, now),
        "created_at": iso(datetime.fromtimestamp(gig.created_at, UTC)),
        "start_time_ms": gig.start_at * 1000,
        "end_time_ms": gig.end_at * 1000,
        "duration_ms": duration_ms,
        "payout_interval_ms": duration_ms,
        "amount": tokens(gig.reward_units),
        "total_balance": tokens(gig.reward_units),
        "platform_fee": tokens(gig.commission_units),
        "how_to_earn": terms.how_to_earn,
        "earning_criteria": terms.earning_criteria,
        "ticker": gig.token.symbol,
        "gigbot_transactions_id": gig.deposit_transaction,
        "platform": terms.platform,
        "external_url": external_url(terms),
        "gig_address": gig.wallet,
        "gig_wallet_address": gig.wallet,
        "creator": gig.creator,
        "action_params": _action_params(terms, gig.token.symbol),
        "token": {
            "id": gig.token.address,
            "address": gig.token.address,
            "symbol": gig.token.symbol,
            "decimals": gig.token.decimals,
            "coingecko_id": "usd-coin" if gig.token.address == usdc else "",
            "image_url": "",
        },
        "chain": {"id": terms.chain, "name": terms.chain.title(), "chain_id": chain_id, "image_url": ""},
        "gig_type": {"id": terms.gig_type, "display": _displays(terms.gig_type)},
        "payment": {"payer": gig.creator, "transaction": gig.deposit_transaction, "network": f"eip155:{chain_id}"},
        "funding": _funding(gig),
    }


def external_url(terms: Terms) -> str:
    """Without query and trailing slash: a client reads the post's id from what follows the last `/`."""
    return (terms.url or "").split("#")[0].split("?")[0].rstrip("/")


def status_of(gig: GigRecord, now: datetime) -> str:
    """`scheduled`, `active`, `ended`; `suspended` without its deposit; `created`, `cancelled` where it is not live."""
    if gig.state != "live":
        return gig.state
    return "suspended" if gig.suspended else lifecycle.status(float(gig.start_at), gig.end_at, now.timestamp())


def _action_params(terms: Terms, symbol: str) -> dict[str, str]:
    url = external_url(terms)
    params = {}
    # An account's name may begin with 0x too.
    cast = SOCIAL_URLS[Platform.FARCASTER].fullmatch(url)
    if terms.platform is Platform.FARCASTER and cast and cast["post"]:
        params["target_cast_hash"] = cast["post"].removeprefix("/")
    if terms.gig_type is GigType.MENTION:
        params["tip_query_keyword"] = terms.keyword or symbol
    asked = {name: getattr(terms, name) for name in ("token_contract", "token_amount_needed", "verifier")}
    return params | {name: value for name, value in asked.items() if value is not None}


@cache
def _displays(gig_type: GigType) -> dict[str, dict[str, Any]]:
    rules, display = RULES[gig_type], DISPLAY[gig_type]
    texts = {"how_to_earn": rules.how_to_earn or "", "earning_criteria": rules.earning_criteria or ""}
    return {
        platform.value: {
            "icon": display.icon,
            "label": display.labels[platform],
            "filter_id": gig_type.value,
            "with_input": bool(display.placeholder),
            "input_placeholder": display.placeholder,
            **texts,
        }
        for platform in (Platform.X, Platform.FARCASTER)
    }


def _funding(gig: GigRecord) -> dict[str, Any]:
    """`funded` once the reward is in the gig's wallet; the commission follows on its own.

    `missing` while the deposit is not on chain (any more): the gig is suspended. A gig that was created with a key is
    paid into its wallet at once, and what came beyond the total is its `surplus`.
    """
    direct = {"surplus": to_tokens(gig.surplus_units, gig.token.decimals)} if gig.key_id is not None else {}
    return {
        "state": _funding_state(gig),
        "deposit_transaction": gig.deposit_transaction,
        "reward_transaction": gig.reward_transaction or (gig.deposit_transaction if direct else None),
        "commission_transaction": gig.commission_transaction,
        **direct,
    }


def _funding_state(gig: GigRecord) -> str:
    if gig.state != "live":
        return "unfunded" if gig.state == "created" else "refunded"
    if gig.suspended:
        return "missing"
    return "funded" if gig.reward_transaction or gig.key_id is not None else "deposited"
