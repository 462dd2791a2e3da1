"""From a request's JSON object to the terms of a gig, or to the list of everything that is wrong with it.

What is wrong comes in two kinds. A broken *shape* can never become a gig: there are no terms. A broken *limit*
(the operator's minimum, the clock) refuses new buyers only: the terms are there, because a payment that was
settled yesterday must find its gig also when the limit has moved since.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict

from x402_gig.errors import NotFound
from x402_gig.gigs.catalogue import (
    KNOWN_CHAINS,
    RULES,
    X402_DURATIONS,
    Duration,
    GigType,
    Platform,
    TypeRules,
    UrlKind,
    normal_url,
)
from x402_gig.gigs.pricing import UINT256_MAX, USDC_DECIMALS, to_tokens, to_units
from x402_gig.gigs.records import TokenInfo

MAX_TEXT_CHARS = 2000
MAX_WORD_CHARS = 100
MAX_URL_CHARS = 500
MAX_NAME_CHARS = 100
MAX_AHEAD = timedelta(days=365)
USUAL_DECIMALS = 18

_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}")
_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)?")
# Needed beside `fromisoformat`, which takes any character between date and time: "1712120112345", some
# milliseconds as a string, would be a date in 1712, and so mean "now".
_ISO_8601 = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}([T ][0-9:.,]+(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

# Stands in for the rules of a type we do not know, so that its other fields are read all the same.
_NO_RULES = TypeRules(how_to_earn=None, earning_criteria=None, url_kind=UrlKind.ANY)

_SAID = {"url": "URL"}

T = TypeVar("T")
Word = TypeVar("Word", bound=str)


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


@dataclass(frozen=True)
class Draft:
    """`terms` is None when a shape is broken; `problems` are those of shape and limits, in the order of the fields."""

    terms: Terms | None
    problems: tuple[str, ...]


class Rules(Protocol):
    """What a create call may ask for. `decimals` are those of the token that the reward is in."""

    @property
    def chain(self) -> str: ...
    @property
    def durations(self) -> Collection[Duration]: ...
    @property
    def decimals(self) -> int: ...
    def token_problem(self, address: str) -> str | None: ...
    def amount_problem(self, units: int) -> str | None: ...


@dataclass(frozen=True)
class Limits:
    """What this operator sells: amounts in base units of the USDC at `token_address`, on the chain it serves."""

    minimum_units: int
    maximum_units: int
    token_address: str
    chain: str = "base"
    durations: Collection[Duration] = X402_DURATIONS
    decimals: int = USDC_DECIMALS

    def token_problem(self, address: str) -> str | None:
        return None if address == self.token_address.lower() else "Only USDC is supported"

    def amount_problem(self, units: int) -> str | None:
        if units < self.minimum_units:
            return f"Minimum amount is {to_tokens(self.minimum_units)}"
        if units > self.maximum_units:
            return f"Maximum amount is {to_tokens(self.maximum_units)}"
        return None


@dataclass(frozen=True)
class KeyLimits:
    """What a holder of an API key may create: rewards in `token`, which is None when there is no such ERC-20."""

    token: TokenInfo | None
    maximum_tokens: int
    chain: str = "base"
    durations: Collection[Duration] = tuple(Duration)

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
        return _address(body.get("token_address"))
    except ValueError:
        return None


def start_problem(start: datetime, now: datetime) -> str | None:
    return "Invalid start time" if start - now > MAX_AHEAD else None


def check_chain(chain: object, served: str) -> None:
    """Raises NotFound for a chain that exists but is not the one served here."""
    if isinstance(chain, str) and chain in KNOWN_CHAINS and chain != served:
        raise NotFound("Chain not found")


def read_terms(body: Mapping[str, object], limits: Rules, now: datetime) -> Draft:
    """Read a create call's JSON object (gig API, "The fine print"), whose numbers are int or Decimal.

    Raises NotFound for a chain that is not served. Everything else that is wrong is in the draft's problems.
    """
    check_chain(body.get("chain"), limits.chain)
    form = _Form(body)
    values: dict[str, Any] = {
        "chain": form.read("chain", _one_of([limits.chain])),
        "token_address": form.read("token_address", _address, limit=limits.token_problem),
        "amount_units": form.read("amount", lambda v: _units(v, limits.decimals), limit=limits.amount_problem),
        "start_time": form.read("start_time", _start_time, limit=lambda start: start_problem(start, now)),
        "duration": form.read("duration", _one_of(limits.durations)),
        "gig_type": (gig_type := form.read("gig_type", _one_of(GigType))),
        **_read_by_type(form, gig_type, limits.decimals),
    }
    form.refuse_unknown()
    terms = None if form.is_broken else Terms.model_validate(values)
    return Draft(terms, tuple(dict.fromkeys(form.problems)))


def _read_by_type(form: "_Form", gig_type: GigType | None, decimals: int) -> dict[str, Any]:
    rules = RULES[gig_type] if gig_type else _NO_RULES
    form.missing = {name: f"{_SAID.get(name, name)} required for {gig_type} tasks" for name in rules.required}
    platform = _read_platform(form, gig_type, rules)
    return {
        "platform": platform,
        "url": _read_url(form, gig_type, rules, platform),
        "how_to_earn": form.read_optional("how_to_earn", _text, "how_to_earn") or rules.how_to_earn,
        "earning_criteria": form.read_optional("earning_criteria", _text, "earning_criteria") or rules.earning_criteria,
        "keyword": form.read_optional("keyword", _word),
        "token_contract": form.read_optional("token_contract", _address),
        "token_amount_needed": form.read_optional("token_amount_needed", lambda value: _token_amount(value, decimals)),
        "verifier": form.read_optional("verifier", _word),
    }


def _read_platform(form: "_Form", gig_type: GigType | None, rules: TypeRules) -> Platform | None:
    if "platform" not in form.unread:
        return rules.platform
    platform = form.read("platform", _one_of(Platform))
    if platform is Platform.ONCHAIN and gig_type and not rules.may_be_onchain:
        form.refuse("Platform onchain is only for hold_erc20 and buy_erc20 tasks")
    return platform


def _read_url(form: "_Form", gig_type: GigType | None, rules: TypeRules, platform: Platform | None) -> str | None:
    label = f"URL for {platform} {gig_type} tasks" if platform and gig_type else "url"
    return form.read_optional("url", lambda value: normal_url(_url_text(value), rules.url_kind, platform), label)


class _TooLong(ValueError):
    pass


class _Form:
    """A body that is read field by field and remembers what is wrong instead of stopping there.

    `null` and `""` are as good as absent. A reader turns a value into what the terms hold, or raises ValueError;
    a limit names the problem of a value that was read. `missing` has what to say when an optional field is not there.
    """

    def __init__(self, body: Mapping[str, object]) -> None:
        self.unread = {name: value for name, value in body.items() if value is not None and value != ""}
        self.missing: dict[str, str] = {}
        self.problems: list[str] = []
        self.is_broken = False

    def refuse(self, problem: str) -> None:
        self.problems.append(problem)
        self.is_broken = True

    def read(
        self,
        name: str,
        reader: Callable[[object], T],
        label: str = "",
        limit: Callable[[T], str | None] = lambda _: None,
    ) -> T | None:
        try:
            value = reader(self.unread.pop(name, None))
        except _TooLong:
            self.refuse(f"{name} is too long")
        except ValueError:
            self.refuse(f"Invalid {label or name.replace('_', ' ')}")
        else:
            self.problems += filter(None, [limit(value)])
            return value
        return None

    def read_optional(self, name: str, reader: Callable[[object], T], label: str = "") -> T | None:
        if name in self.unread:
            return self.read(name, reader, label)
        if name in self.missing:
            self.refuse(self.missing[name])
        return None

    def refuse_unknown(self) -> None:
        """What nobody has asked for by now is a typo or a wish; a buyer must not pay for finding out."""
        for name in self.unread:
            self.refuse(f"Unknown field: {_printable(name[:MAX_NAME_CHARS])}")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


def _one_of(choices: Iterable[Word]) -> Callable[[object], Word]:
    """A reader that takes these words and nothing else."""
    by_word = {str(choice): choice for choice in choices}

    def read(value: object) -> Word:
        if not isinstance(value, str) or value not in by_word:
            raise ValueError("not among the choices")
        return by_word[value]

    return read


def _address(value: object) -> str:
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise ValueError("not an address")
    return value.lower()


def _units(value: object, decimals: int) -> int:
    """Base units from a JSON number or a string of plain digits; bool is an int to Python, but no number."""
    if isinstance(value, str):
        if not _DIGITS.fullmatch(value):
            raise ValueError("not plain digits")
    elif isinstance(value, bool) or not isinstance(value, int | Decimal) or _is_huge(value):
        raise ValueError("not a number")
    return to_units(Decimal(value), decimals)


def _is_huge(value: int | Decimal) -> bool:
    """Decimal keeps its exponent and is safe as it is; an int has all of its digits, and converting them takes time."""
    return isinstance(value, int) and abs(value) > UINT256_MAX


def _token_amount(value: object, decimals: int) -> str:
    units = _units(value, decimals)
    if units == 0:
        raise ValueError("needs to be more than nothing")
    return to_tokens(units, decimals)


def _start_time(value: object) -> datetime:
    if not isinstance(value, str) or not _ISO_8601.fullmatch(value):
        raise ValueError("not ISO 8601")
    moment = datetime.fromisoformat(value)
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("outside the years 1 to 9999 in UTC") from None


def _clean(value: object, max_chars: int, forbidden: re.Pattern[str]) -> str:
    if not isinstance(value, str) or forbidden.search(value) or value.isspace():
        raise ValueError("not text that can be shown")
    if len(value) > max_chars:
        raise _TooLong
    return value


def _text(value: object) -> str:
    return _clean(value, MAX_TEXT_CHARS, _CONTROL_IN_LINES)


def _word(value: object) -> str:
    return _clean(value, MAX_WORD_CHARS, _CONTROL)


def _url_text(value: object) -> str:
    return _clean(value, MAX_URL_CHARS, _CONTROL)
