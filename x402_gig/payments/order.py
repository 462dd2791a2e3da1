"""What a payment buys: an order, the product that makes it, and what the seller wants for it.

`payments` knows nothing of gigs. Whatever has a price and something to do once it is paid can be sold by
implementing `Product`.
"""

import hashlib
import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any, Protocol

from msgspec import Struct
from x402.schemas import PaymentRequirements
from x402.schemas.v1 import PaymentRequirementsV1


class Order(Struct, frozen=True, dict=True):
    """Priced terms.

    `terms` is JSON and all that `Product.fulfil` gets, also after a restart. `problems` break a rule of the
    moment (a minimum, a date): they refuse a new payment, never one that is known already. `alternatives` are the same
    terms as they were quoted a moment ago, or as another server quotes them already. `defaults` names terms that the
    buyer left to the product, whose wording may change. `kept` is the fingerprint that the ledger has.
    """

    product: str
    terms: Mapping[str, Any]
    price_units: int
    description: str = ""
    problems: tuple[str, ...] = ()
    alternatives: tuple["Order", ...] = ()
    defaults: tuple[str, ...] = ()
    kept: str = ""

    def at_price(self, units: int) -> "Order":
        """This order as it was quoted to whoever pays so much: an offer is kept when its price has changed since."""
        offers = (self, *self.alternatives)
        return next((offer for offer in offers if offer.price_units == units and not offer.problems), self)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over product and terms, without those that are defaults; key order and spacing do not count."""
        asked = {name: value for name, value in self.terms.items() if name not in self.defaults}
        return self.kept or _hash({self.product: asked})

    def old_fingerprint(self, kept_terms: Mapping[str, Any] | None = None) -> str:
        """As earlier versions made it, with the defaults in it: those of `kept_terms`, or else today's."""
        then = {name: kept_terms[name] for name in self.defaults if name in kept_terms} if kept_terms else {}
        return _hash([self.product, {**self.terms, **then}])


def _hash(document: Any) -> str:
    canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


class Purchase(Struct, frozen=True):
    """A settled payment, as `Product.fulfil` sees it."""

    payment_id: int
    payer: str
    value_units: int
    transaction: str
    network: str
    terms: Mapping[str, Any]


class Fulfilled(Struct, frozen=True):
    """What a product did: the answer for the buyer, kept with the payment and given again on a replay.

    `commission_units` is the platform's share; it is moved to the commission address.
    """

    answer: dict[str, Any]
    commission_units: int


class Product(Protocol):
    """Something that can be bought with one payment. Its name is kept with the payment and finds it again later."""

    @property
    def name(self) -> str: ...

    def order(self, body: Mapping[str, Any]) -> Order:
        """Terms and price from a request's JSON object (`{}` when there is none).

        Raises ValidationFailed or NotFound when the terms cannot be understood, and Unavailable.
        """
        ...

    def fulfil(self, book: Any, purchase: Purchase) -> Fulfilled:
        """Deliver, inside the ledger transaction `book` that settles the payment; no I/O besides it."""
        ...


class Network(Struct, frozen=True):
    """A chain as x402 names it: `caip2` in version 2, `v1_name` in version 1."""

    chain_id: int
    v1_name: str

    @property
    def caip2(self) -> str:
        return f"eip155:{self.chain_id}"


class Seller(Struct, frozen=True):
    """What every payment requirement of this server has in common."""

    network: Network
    asset: str
    asset_name: str
    asset_version: str
    pay_to: str
    max_timeout_s: int

    @property
    def domain(self) -> dict[str, str]:
        """The token's EIP-712 domain, as `extra` carries it to the buyer."""
        return {"name": self.asset_name, "version": self.asset_version}

    def requirements(self, amount_units: int) -> PaymentRequirements:
        """Version 2 payment requirements for exactly `amount_units` base units."""
        return PaymentRequirements(
            scheme="exact",
            network=self.network.caip2,
            asset=self.asset,
            amount=str(amount_units),
            pay_to=self.pay_to,
            max_timeout_seconds=self.max_timeout_s,
            extra=self.domain,
        )

    def requirements_v1(self, amount_units: int, resource: str, description: str) -> PaymentRequirementsV1:
        """The same in version 1."""
        return PaymentRequirementsV1(
            scheme="exact",
            network=self.network.v1_name,
            max_amount_required=str(amount_units),
            resource=resource,
            description=description,
            mime_type="application/json",
            pay_to=self.pay_to,
            max_timeout_seconds=self.max_timeout_s,
            asset=self.asset,
            extra=self.domain,
        )
