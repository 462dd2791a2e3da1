"""From a request's JSON object to the terms of a gig, or to the list of everything that is wrong with it.

What is wrong comes in two kinds. A broken *shape* can never become a gig: there are no terms. A broken *limit*
(the operator's minimum, the clock) refuses new buyers only: the terms are there, because a payment that was
settled yesterday must find its gig also when the limit has moved since.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

from msgspec import Struct
from pydantic import AwareDatetime, BaseModel, ConfigDict

from x402_gig.errors import NotFound
from x402_gig.gigs.catalogue import KNOWN_CHAINS, RULES, Duration, GigType, Platform
from x402_gig.gigs.pricing import USDC_DECIMALS, USDC_SYMBOL, to_tokens
from x402_gig.gigs.records import TokenInfo
from x402_gig.gigs.requests import GigRequest, KeyedGigRequest, PaidGigRequest, Reading, Rules, address, read_request

USUAL_DECIMALS = 18
DEFAULT_TEXTS = ("how_to_earn", "earning_criteria")


class Terms(BaseModel):
    """What was ordered, in its one normal form: the same meaning, however it was spelled, gives equal terms.

    Survives `model_dump(mode="json")` and `model_validate`, which is how the ledger keeps it. `amount_units` are
    base units of the token, `token_amount_needed` is a decimal string in tokens, addresses are lower-case, and
    `start_time` is as given, in UTC: a start in the past is moved when the gig goes live, not here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    chain: str
    token_address: str
    amount_units: int
    start_time: AwareDatetime
    duration: Duration
    gig_type: GigType
    platform: Platform
    url: str | None = None
    how_to_earn: str
    earning_criteria: str
    keyword: str | None = None
    token_contract: str | None = None
    token_amount_needed: str | None = None
    verifier: str | None = None


class Draft(NamedTuple):
    """What was read: `request` is None when a shape is broken; `problems` are those of shape and limits, in order."""

    request: Mapping[str, Any] | None
    problems: tuple[str, ...]

    @property
    def terms(self) -> Terms | None:
        return _terms(self.request) if self.request is not None else None


class Limits(Struct, frozen=True):
    """What this operator sells: amounts in base units of the USDC at `token_address`, on the chain it serves."""

    request: ClassVar[type[GigRequest]] = PaidGigRequest

    minimum_units: int
    maximum_units: int
    token_address: str
    chain: str = "base"
    decimals: int = USDC_DECIMALS

    def token_problem(self, address: str) -> str | None:
        return None if address == self.token_address.lower() else "Only USDC is supported"

    def amount_problem(self, units: int) -> str | None:
        if units < self.minimum_units:
            return f"Minimum amount is {to_tokens(self.minimum_units)}"
        if units > self.maximum_units:
            return f"Maximum amount is {to_tokens(self.maximum_units)}"
        return None


class KeyLimits(Struct, frozen=True):
    """What a holder of an API key may create: rewards in `token`, which is None when there is no such ERC-20."""

    request: ClassVar[type[GigRequest]] = KeyedGigRequest

    token: TokenInfo | None
    maximum_tokens: int
    chain: str = "base"

    @property
    def decimals(self) -> int:
        # Without a token the rest is read all the same: every problem is listed at once.
        return self.token.decimals if self.token else USUAL_DECIMALS

    def token_problem(self, address: str) -> str | None:
        return None if self.token else "Invalid token address"

    def amount_problem(self, units: int) -> str | None:
        if units == 0:
            return "Invalid amount"
        if units > self.maximum_tokens * 10**self.decimals:
            return f"Maximum amount is {self.maximum_tokens}"
        return None


def token_of(body: Mapping[str, object]) -> str | None:
    """The token that a reward is to be in, lower case; None when it is no address."""
    try:
        return address(body.get("token_address"))
    except ValueError:
        return None


def check_chain(chain: object, served: str) -> None:
    """Raises NotFound for a chain that exists but is not the one served here."""
    if isinstance(chain, str) and chain in KNOWN_CHAINS and chain != served:
        raise NotFound("Chain not found")


def read_terms(body: Mapping[str, object], limits: Rules, now: datetime) -> Draft:
    """Read a create call's JSON object (gig API, "The fine print"), whose numbers are int or Decimal.

    Raises NotFound for a chain that is not served. Everything else that is wrong is in the draft's problems.
    """
    check_chain(body.get("chain"), limits.chain)
    request, problems = read_request(body, Reading(limits, now))
    return Draft(request, tuple(dict.fromkeys(problems)) if problems else ())


def defaults_of(body: Mapping[str, object], request: Mapping[str, Any]) -> tuple[str, ...]:
    """The terms of a gig in USDC that its buyer left to us: texts that were not sent, and what is as if it were not."""
    gig_type = request["gig_type"]
    usual: dict[str, object] = {"platform": RULES[gig_type].platform}
    if gig_type is GigType.MENTION:
        usual["keyword"] = USDC_SYMBOL
    texts = tuple(name for name in DEFAULT_TEXTS if body.get(name) in (None, ""))
    return texts + tuple(name for name, value in usual.items() if request[name] == value)


def _terms(request: Mapping[str, Any]) -> Terms:
    values = dict(request)
    return Terms(amount_units=values.pop("amount"), **values)
