"""Gigs as a product: a body becomes priced terms, a settled payment becomes a live gig."""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from typing import Any, Protocol

from msgspec import Struct

from x402_gig.errors import ValidationFailed
from x402_gig.gigs import lifecycle
from x402_gig.gigs.pricing import USDC_DECIMALS, Price, to_tokens
from x402_gig.gigs.records import TokenInfo
from x402_gig.gigs.rules import Rules, RuleSet
from x402_gig.gigs.terms import Draft, KeyLimits, Limits, Terms, defaults_of, read_terms
from x402_gig.payments.order import Fulfilled, Order, Purchase

PRODUCT = "gig"


class Shelf(Protocol):
    """Where gigs are put, inside a ledger transaction. Implemented in `ledger`."""

    def add(
        self, purchase: Purchase, *, reward_units: int, commission_units: int, start_at: int, end_at: int
    ) -> tuple[int, str]:
        """Make the gig and note that its reward is due; its id and its wallet's address. Times are Unix seconds."""
        ...


class Offer(Struct, frozen=True):
    """A gig to be created with an API key, and what it costs in base units of its token."""

    terms: Terms
    token: TokenInfo
    price: Price


class _GigOrder(Order, frozen=True, kw_only=True):
    """Its terms are made when they are needed: whoever only asks for the price does not wait for them."""

    draft: Draft
    body: Mapping[str, Any]

    @cached_property  # type: ignore[misc]  # a field, and this its value
    def terms(self) -> dict[str, Any]:
        terms = self.draft.terms
        return terms.model_dump(mode="json", exclude_none=True) if terms else {}

    @cached_property  # type: ignore[misc]  # as above
    def defaults(self) -> tuple[str, ...]:
        return defaults_of(self.body, self.draft.request) if self.draft.request else ()


def _now() -> datetime:
    return datetime.now(UTC)


class GigShop(Struct, frozen=True):
    """`payments.order.Product` for gigs, paid in the USDC at `token_address`, on the chain of this name and number."""

    rules: Rules
    token_address: str
    chain: str
    chain_id: int
    clock: Callable[[], datetime] = _now
    name: str = PRODUCT

    @property
    def limits(self) -> Limits:
        """Those in force. Raises Unavailable."""
        return self._limits(self.rules.current)

    def _limits(self, rules: RuleSet) -> Limits:
        return Limits(rules.minimum_reward, rules.maximum_reward, self.token_address, self.chain)

    def order(self, body: Mapping[str, Any]) -> Order:
        current, others, now = self.rules.current, self.rules.others, self.clock()
        alternatives = tuple(self._order(body, rules, now) for rules in others) if others else ()
        return self._order(body, current, now, alternatives)

    def _order(
        self, body: Mapping[str, Any], rules: RuleSet, now: datetime, alternatives: tuple[Order, ...] = ()
    ) -> Order:
        draft = read_terms(body, self._limits(rules), now)
        if draft.request is None and body:
            raise ValidationFailed(draft.problems)
        reward_units = draft.request["amount"] if draft.request else rules.minimum_reward
        total_units, description = _tag(reward_units, rules.commission_bps)
        return _GigOrder(PRODUCT, {}, total_units, description, draft.problems, alternatives, draft=draft, body=body)

    def fulfil(self, book: Shelf, purchase: Purchase) -> Fulfilled:
        terms = Terms.model_validate(purchase.terms)
        now = self.clock()
        start, end = lifecycle.schedule(terms.start_time, terms.duration, now)
        # What was paid beyond the reward is the commission, whatever the rate is by now.
        price = Price(terms.amount_units, purchase.value_units - terms.amount_units)
        gig_id, wallet = book.add(
            purchase,
            reward_units=price.reward_units,
            commission_units=price.commission_units,
            start_at=int(start.timestamp()),
            end_at=int(end.timestamp()),
        )
        status = lifecycle.status(start, end, now)
        answer = {
            "gig_id": gig_id,
            "gig_wallet_address": wallet,
            "gig_token_address": terms.token_address,
            "gig_chain_id": self.chain_id,
            **_amounts(price),
            "status": status,
            "start_time": iso(start),
            "end_time": iso(end),
            "message": "Gig created and started" if status == "active" else "Gig created, it starts at its start time",
        }
        return Fulfilled(answer, price.commission_units)

    # With an API key

    def offer(self, body: Mapping[str, Any], token: TokenInfo | None) -> Offer:
        """Terms and price for a key's holder. Raises ValidationFailed, NotFound or Unavailable."""
        rules = self.rules.current
        limits = KeyLimits(token, rules.maximum_reward // 10**USDC_DECIMALS, self.chain)
        draft = read_terms(body, limits, self.clock())
        terms = draft.terms
        if draft.problems or terms is None or token is None:
            raise ValidationFailed(draft.problems)
        return Offer(terms, token, Price.of(terms.amount_units, rules.commission_bps))

    def created(self, gig_id: int, wallet: str, offer: Offer) -> dict[str, Any]:
        """The answer to whoever is to fund it."""
        return {
            "gig_id": gig_id,
            "gig_wallet_address": wallet,
            "gig_token_address": offer.token.address,
            "gig_chain_id": self.chain_id,
            **_amounts(offer.price, offer.token.decimals),
        }


@lru_cache(maxsize=1024)
def _tag(reward_units: int, commission_bps: int) -> tuple[int, str]:
    """What a gig with that reward costs, and what it says about it."""
    price = Price.of(reward_units, commission_bps)
    reward, commission = to_tokens(price.reward_units), to_tokens(price.commission_units)
    return price.total_units, f"A gig that pays {reward} USDC, plus {commission} USDC commission"


def _amounts(price: Price, decimals: int = USDC_DECIMALS) -> dict[str, str]:
    return {
        "gig_balance": to_tokens(price.reward_units, decimals),
        "platform_fee": to_tokens(price.commission_units, decimals),
        "total_amount": to_tokens(price.total_units, decimals),
    }


def iso(moment: datetime) -> str:
    """`2025-10-01T15:00:00Z`"""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
