"""A gig as the ledger keeps it."""

from typing import Any, Literal

from msgspec import Struct

from x402_gig.gigs.pricing import to_tokens


class TokenInfo(Struct, frozen=True):
    """An ERC-20 by its address (lower case), with what it said of itself when the gig was created."""

    address: str
    symbol: str
    decimals: int

    def told(self, units: int) -> str:
        """So much of it, for people: "10.5 DEGEN"."""
        return f"{to_tokens(units, self.decimals)} {self.symbol}"


class GigRecord(Struct, frozen=True):
    """A gig with its money. Amounts are base units of its token; a transaction is None until it is on chain.

    `state`: bought gigs are `live` at once; one that was created with the API key `key_id` is `created` until it is
    started, or `cancelled` when its money was given back instead. `suspended` while a reorganisation has taken its
    deposit off the chain. `deposit_transaction` is what paid for it; of a gig created with a key it goes to the gig's
    wallet directly, and there is no `reward_transaction`.
    """

    gig_id: int
    key_id: int | None
    state: Literal["created", "live", "cancelled"]
    wallet: str
    creator: str
    terms: dict[str, Any]
    token: TokenInfo
    reward_units: int
    commission_units: int
    surplus_units: int
    start_at: int
    end_at: int
    created_at: int
    suspended: bool
    deposit_transaction: str | None
    reward_transaction: str | None
    commission_transaction: str | None

    @property
    def total_units(self) -> int:
        return self.reward_units + self.commission_units
