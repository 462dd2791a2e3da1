"""What the API answers, as models: the API's document shows them, and its tests hold the answers against them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from x402.schemas.v1 import PaymentRequiredV1

from x402_gig.gigs.catalogue import GigType, Platform

Address = Annotated[str, Field(pattern="^0x[0-9a-f]{40}$")]
Transaction = Annotated[str, Field(pattern="^0x[0-9a-f]{64}$")]
Tokens = Annotated[
    str, Field(pattern=r"^[0-9]+(\.[0-9]+)?$", description="In tokens: neither trailing zeros nor an exponent.")
]
Iso = Annotated[str, Field(description="ISO 8601, UTC.", examples=["2026-11-21T12:00:00Z"])]


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", json_schema_mode="serialization")  # type: ignore[typeddict-unknown-key]


# Errors


class Failed(Answer):
    error: str


class Refused(Answer):
    """`error` is for people, `reason` is stable and for programs."""

    error: str
    reason: str


class Invalid(Answer):
    """Every problem of the request, in the order of its fields."""

    error: Literal["Validation failed"]
    details: list[str]


class Expected(Answer):
    message: str
    details: list[str]


class Unfunded(Answer):
    """What the gig's wallet should hold, what it holds, and where it is."""

    error: Expected


class PaymentRequired(PaymentRequiredV1):
    """Version 1 of the requirements; version 2, with the same price, is in the header `PAYMENT-REQUIRED`.

    `error` is the x402 reason why a payment was refused, and `detail` says it in a sentence.
    """

    detail: str | None = None


# Gigs


class CreatedGig(Answer):
    gig_id: int
    gig_wallet_address: Address
    gig_token_address: Address
    gig_chain_id: int
    gig_balance: Annotated[Tokens, Field(description="The reward.")]
    platform_fee: Annotated[Tokens, Field(description="The commission.")]
    total_amount: Tokens


class Payment(Answer):
    payer: Address
    transaction: Transaction
    network: str


class PaidGig(CreatedGig):
    """A gig that is paid for and live."""

    status: Literal["active", "scheduled"]
    start_time: Iso
    end_time: Iso
    message: str
    payment: Payment


class KeyedGig(CreatedGig):
    """A gig that is to be funded: send `tx_data` to `gig_token_address`, then start it."""

    tx_data: Annotated[str, Field(pattern="^0xa9059cbb[0-9a-f]{128}$", description="`transfer(wallet, total)`")]


class Started(Answer):
    message: Literal["Gig started successfully"]
    gig_id: int


class StartedGig(Answer):
    data: Started


class Token(Answer):
    id: Address
    address: Address
    symbol: str
    decimals: int
    coingecko_id: str
    image_url: str


class Chain(Answer):
    id: str
    name: str
    chain_id: int
    image_url: str


class Display(Answer):
    icon: str
    label: str
    filter_id: str
    with_input: bool
    input_placeholder: str
    how_to_earn: str
    earning_criteria: str


class Displays(Answer):
    x: Display
    farcaster: Display


class TypeShown(Answer):
    id: GigType
    display: Displays


class GigPayment(Answer):
    payer: str
    transaction: Transaction | None
    network: str


class Funding(Answer):
    """`deposited` until the reward is in the gig's wallet; `missing` while its deposit is not on chain."""

    state: Literal["unfunded", "missing", "deposited", "funded", "refunded"]
    deposit_transaction: Transaction | None
    reward_transaction: Transaction | None
    commission_transaction: Transaction | None
    surplus: Annotated[
        Tokens | None,
        Field(description="Of gigs created with a key: beyond the total when it was started, and not given back."),
    ] = None


class ActionParams(Answer):
    target_cast_hash: str | None = None
    tip_query_keyword: str | None = None
    token_contract: Annotated[Address | None, Field(description="hold_erc20, buy_erc20: the token.")] = None
    token_amount_needed: Annotated[Tokens | None, Field(description="hold_erc20, buy_erc20: how much of it.")] = None
    verifier: str | None = None


class Gig(Answer):
    id: int
    status: Literal["created", "scheduled", "active", "ended", "suspended", "cancelled"]
    created_at: Iso
    start_time_ms: int
    end_time_ms: int
    duration_ms: int
    payout_interval_ms: int
    amount: Tokens
    total_balance: Tokens
    platform_fee: Tokens
    how_to_earn: str
    earning_criteria: str
    ticker: str
    gigbot_transactions_id: Transaction | None
    platform: Platform
    external_url: str
    gig_address: Address
    gig_wallet_address: Address
    creator: str
    action_params: ActionParams
    token: Token
    chain: Chain
    gig_type: TypeShown
    payment: GigPayment
    funding: Funding
    total_amount: Annotated[Tokens | None, Field(description="`created` only: what is to be paid.")] = None
    tx_data: Annotated[str | None, Field(description="`created` only: the transfer that pays it.")] = None


class OneGig(Answer):
    data: Gig


class Gigs(Answer):
    """`data` and `gigs` are the same: one client reads the one, an older client the other."""

    data: list[Gig]
    gigs: list[Gig]
    next: Annotated[str | None, Field(description="URL of the next page, null on the last.")]


class Types(Answer):
    data: list[GigType]


# Probes


class Alive(Answer):
    status: Literal["ok"]


class Readiness(Answer):
    """`problems` keep it from selling; `warnings` do not concern buyers."""

    status: Literal["ready", "degraded", "unavailable"]
    problems: dict[str, str]
    warnings: dict[str, str]
