"""The examples of the API's document: a request for each type of gig, and an answer for each thing that can happen."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from x402_gig.gigs.catalogue import RULES, GigType
from x402_gig.gigs.records import GigRecord, TokenInfo
from x402_gig.gigs.views import gig_view

Json = dict[str, Any]

_CAST = "https://farcaster.xyz/dwr/0x1a2b3c4d"
_ACCOUNT = "https://farcaster.xyz/dwr"
_DEGEN = "0x4ed4E862860beD51a9570b96d89aF5E1B0Efefed"
_WALLET = "0xb0d742b6c8a191466879f9f12563a5159b011d03"
_PAYER = "0xf39fd6e51aad88f6f4ce6ab8827279cfffb92266"
_TRANSACTION = "0x" + "3f" * 32
_START = "2025-10-01T15:00:00Z"
_BEGUN = "2026-11-21T12:00:00Z"

_OF_TYPE: Mapping[GigType, Json] = {
    GigType.LIKE: {"url": _CAST},
    GigType.RECAST: {"url": _CAST},
    GigType.BOOST: {"url": "https://x.com/alice/status/1234567890", "platform": "x"},
    GigType.FOLLOW: {"url": _ACCOUNT},
    GigType.MENTION: {"keyword": "$DEGEN"},
    GigType.CUSTOM_BOUNTY: {
        "how_to_earn": "Draw a cat and post it.",
        "earning_criteria": "The picture shows a cat and is your own.",
        "url": "https://example.com/cats",
    },
    GigType.HOLD_ERC20: {"token_contract": _DEGEN, "token_amount_needed": 1000},
    GigType.BUY_ERC20: {"token_contract": _DEGEN, "token_amount_needed": "0.5"},
}


def requests(chain: str, token: str, amount: str) -> dict[str, Json]:
    """A create body for every type of gig, by its name."""
    number = int(amount) if amount.isdecimal() else amount
    common = {"chain": chain, "token_address": token, "amount": number, "start_time": _START, "duration": "1day"}
    return {str(gig_type): {**common, "gig_type": str(gig_type), **more} for gig_type, more in _OF_TYPE.items()}


def created(chain_id: int, usdc: str) -> Json:
    return {
        "gig_id": 123,
        "gig_wallet_address": _WALLET,
        "gig_token_address": usdc.lower(),
        "gig_chain_id": chain_id,
        "gig_balance": "10",
        "platform_fee": "1",
        "total_amount": "11",
    }


def paid(chain_id: int, usdc: str) -> Json:
    return created(chain_id, usdc) | {
        "status": "active",
        "start_time": _BEGUN,
        "end_time": "2026-11-22T12:00:00Z",
        "message": "Gig created and started",
        "payment": {"payer": _PAYER, "transaction": _TRANSACTION, "network": f"eip155:{chain_id}"},
    }


def keyed(chain_id: int, usdc: str) -> Json:
    tx_data = "0xa9059cbb" + _WALLET[2:].rjust(64, "0") + f"{11_000_000:064x}"
    return created(chain_id, usdc) | {"tx_data": tx_data}


def gig(chain: str, chain_id: int, usdc: str) -> Json:
    """As it is shown once it is funded."""
    rules = RULES[GigType.LIKE]
    terms = {
        "chain": chain,
        "token_address": usdc.lower(),
        "amount_units": 10_000_000,
        "start_time": _START,
        "duration": "1day",
        "gig_type": "like",
        "platform": "farcaster",
        "url": _CAST,
        "how_to_earn": rules.how_to_earn,
        "earning_criteria": rules.earning_criteria,
    }
    begun = int(datetime.fromisoformat(_BEGUN).timestamp())
    record = GigRecord(
        gig_id=123,
        key_id=None,
        state="live",
        wallet=_WALLET,
        creator=_PAYER,
        terms=terms,
        token=TokenInfo(usdc.lower(), "USDC", 6),
        reward_units=10_000_000,
        commission_units=1_000_000,
        surplus_units=0,
        start_at=begun,
        end_at=begun + 86_400,
        created_at=begun,
        suspended=False,
        deposit_transaction=_TRANSACTION,
        reward_transaction="0x" + "4a" * 32,
        commission_transaction="0x" + "5b" * 32,
    )
    return gig_view(record, chain_id, usdc.lower(), datetime.fromtimestamp(begun, UTC))


INVALID = {"error": "Validation failed", "details": ["Invalid chain", "URL required for like tasks"]}
INVALID_ID = {"error": "Validation failed", "details": ["Invalid gig id"]}
INVALID_QUERY = {"error": "Validation failed", "details": ["Invalid status", "Invalid limit"]}
NO_JSON = {"error": "The body is not valid JSON", "reason": "bad_request"}
BAD_HEADER = {"error": "PAYMENT-SIGNATURE is not base64", "reason": "bad_request"}
INVALID_KEY = {"error": "Invalid API key"}
NO_CHAIN = {"error": "Chain not found"}
NO_GIG = {"error": "Gig with id 123 not found"}
NO_PAGE = {"error": "Not found"}
IS_LIVE = {"error": "Gig is already live"}
IN_PROGRESS = {"error": "Gig with id 123 is currently being processed"}
CONFLICT = {"error": "This payment already belongs to an order with other terms", "reason": "payment_conflict"}
TOO_LARGE = {"error": "The body is larger than 65536 bytes", "reason": "body_too_large"}
TOO_MANY = {"error": "Too many requests", "reason": "rate_limited"}
CREATE_FAILED = {"error": "Failed to create gig"}
TYPES_FAILED = {"error": "Failed to fetch gig types"}
UNKNOWN = {"error": "The payment is under way: send the same header again", "reason": "outcome_unknown"}
UNAVAILABLE = {"error": "The chain node does not answer", "reason": "chain_unavailable"}
NOT_FUNDED = {
    "error": {
        "message": "Gig with id 123 is not funded",
        "details": [
            "Expected amount: 100 DEGEN",
            "Actual amount: 0 DEGEN",
            f"Token Address: {_DEGEN.lower()}",
            "Chain: base",
            "Chain id: 8453",
            f"Gig wallet address: {_WALLET}",
        ],
    }
}
