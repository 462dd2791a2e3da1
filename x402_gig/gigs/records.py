"""A gig as the ledger keeps it."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class GigRecord:
    """A gig with its payment and its funding transactions (None until they are on chain).

    `suspended` while a reorganisation has taken its deposit off the chain.
    """

    gig_id: int
    wallet: str
    creator: str
    terms: dict[str, Any]
    reward_units: int
    commission_units: int
    start_at: int
    end_at: int
    created_at: int
    suspended: bool
    payer: str
    network: str
    deposit_transaction: str | None
    reward_transaction: str | None
    commission_transaction: str | None
