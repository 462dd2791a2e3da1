"""The bodies of the create calls, as models: what reads them is also what the API's document shows.

A validator turns a value into what the terms hold, or raises: then the *shape* is broken. A broken *limit* does not
keep a field from being read, so it is noted in the `Reading`, which every validator has as its context.

The fields' validators are called from here rather than by pydantic, which would do the same in twice the time.
"""

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Protocol, TypeVar, cast, get_args

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

from x402_gig.gigs.catalogue import ANY_URL, RULES, Duration, GigType, Platform, TypeRules, normal_url
from x402_gig.gigs.pricing import UINT256_MAX, to_tokens, to_units

MAX_TEXT_CHARS = 2000
MAX_WORD_CHARS = 100
MAX_URL_CHARS = 500
MAX_NAME_CHARS = 100
MAX_AHEAD = timedelta(days=365)

_ADDRESS = re.compile(r"0[xX][0-9a-fA-F]{40}")
_DIGITS = re.compile(r"[0-9]+(\.[0-9]+)?")
# Needed beside `fromisoformat`, which takes any character between date and time: "1712120112345", some
# milliseconds as a string, would be a date in 1712, and so mean "now".
_ISO_8601 = re.compile(r"[0-9]{4}-?[0-9]{2}-?[0-9]{2}([T ][0-9:.,]+(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_CONTROL_IN_LINES = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")

# Stands in for the rules of a type we do not know, so that its other fields are read all the same.
_NO_RULES = TypeRules(how_to_earn=None, earning_criteria=None, url_kinds=ANY_URL)

_SAID_PROBLEM = "said"
_SPELLED_AS_THEY_ARE = ("how_to_earn", "earning_criteria")

T = TypeVar("T")
Named = TypeVar("Named", bound=StrEnum)


class Rules(Protocol):
    """What a create call may ask for. `decimals` are those of the token that the reward is in."""

    request: ClassVar[type["GigRequest"]]

    @property
    def chain(self) -> str: ...
    @property
    def decimals(self) -> int: ...
    def token_problem(self, address: str) -> str | None: ...
    def amount_problem(self, units: int) -> str | None: ...


class Reading(Struct):
    """What a body is read against, and the problems of fields that could be read all the same."""

    rules: Rules
    now: datetime
    of_type: TypeRules = _NO_RULES
    noted: dict[str, str] = {}
    is_broken: bool = False

    def note(self, name: str | None, problem: str | None) -> None:
        if problem and name:
            self.noted[name] = problem


class Info(Protocol):
    """What a validator is told beside its value: the part of pydantic's `ValidationInfo` that counts here."""

    @property
    def context(self) -> Reading: ...
    @property
    def data(self) -> dict[str, Any]: ...
    @property
    def field_name(self) -> str | None: ...


Validator = Callable[[object, Info], object]


class _Info(Struct):
    context: Reading
    data: dict[str, Any] = {}
    field_name: str | None = None


def read_request(body: Mapping[str, object], reading: Reading) -> tuple[dict[str, Any] | None, list[str]]:
    """The request's fields, None when its shape is broken, and all that is wrong with it in the order of the fields.

    `null` and `""` are as good as absent.
    """
    validators, defaults = _fields(reading.rules.request)
    gig_type = body.get("gig_type")
    absent = defaults.get(gig_type, {}) if isinstance(gig_type, str) else {}
    data: dict[str, Any] = {}
    info, errors = _Info(reading, data), {}
    for name, validate in validators.items():
        value = body.get(name)
        if not value and (value is None or value == ""):
            if name in absent:
                data[name] = absent[name]
                continue
            value = None
        info.field_name = name
        try:
            data[name] = validate(value, info)
        except ValueError as exc:
            errors[name] = _problem(name, exc)
    if not errors and not reading.noted and body.keys() <= validators.keys():
        return data, []
    problems = reading.noted | errors
    unknown = [name for name, value in body.items() if name not in validators and value is not None and value != ""]
    is_broken = errors or unknown or reading.is_broken
    said = [problems[name] for name in validators if name in problems] + [_unknown(name) for name in unknown]
    return None if is_broken else data, said


@cache
def _fields(model: type["GigRequest"]) -> tuple[dict[str, Validator], dict[str, dict[str, object]]]:
    """The validators, and for each type of gig what they make of fields that it allows to be absent."""
    validators = {name: _validator(field.metadata) for name, field in model.model_fields.items()}
    optional = {name: validators[name] for name, field in model.model_fields.items() if not field.is_required()}
    return validators, {gig_type: _defaults(optional, gig_type) for gig_type in GigType}


def _defaults(optional: Mapping[str, Validator], gig_type: GigType) -> dict[str, object]:
    # Neither limits nor the time make a default.
    info = _Info(Reading(cast(Rules, None), datetime.min, RULES[gig_type]), {"gig_type": gig_type})
    defaults: dict[str, object] = {}
    for info.field_name, validate in optional.items():
        with contextlib.suppress(ValueError):
            defaults[info.field_name] = validate(None, info)
    return defaults


def _validator(metadata: list[Any]) -> Validator:
    [validator] = (item.func for item in metadata if isinstance(item, PlainValidator))
    return validator  # type: ignore[return-value] # all of ours take the value and its `Info`


def _problem(name: str, error: ValueError) -> str:
    """The gig API's words for what is wrong with a field."""
    if isinstance(error, PydanticCustomError):
        return error.message()
    return f"Invalid {name if name in _SPELLED_AS_THEY_ARE else name.replace('_', ' ')}"


def _said(problem: str) -> PydanticCustomError:
    return PydanticCustomError(_SAID_PROBLEM, problem)


def _unknown(name: str) -> str:
    """A typo or a wish; a buyer must not pay for finding out."""
    return f"Unknown field: {printable(name[:MAX_NAME_CHARS])}"


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else "?" for char in text)


# How fields are read


def address(value: object) -> str:
    """An address in lower case. Raises ValueError."""
    if not isinstance(value, str) or not _ADDRESS.fullmatch(value):
        raise ValueError("not an address")
    return value.lower()


def _chain(value: object, info: Info) -> str:
    if value != info.context.rules.chain:
        raise ValueError("not the chain that is served")
    return info.context.rules.chain


def _token(value: object, info: Info) -> str:
    token = address(value)
    info.context.note(info.field_name, info.context.rules.token_problem(token))
    return token


def _amount(value: object, info: Info) -> int:
    units = _units(value, info.context.rules.decimals)
    info.context.note(info.field_name, info.context.rules.amount_problem(units))
    return units


def _units(value: object, decimals: int) -> int:
    """Base units from a JSON number or a string of plain digits; bool is an int to Python, but no number."""
    if isinstance(value, str):
        if not _DIGITS.fullmatch(value):
            raise ValueError("not plain digits")
    elif isinstance(value, bool) or not isinstance(value, int | Decimal) or _is_huge(value):
        raise ValueError("not a number")
    return to_units(value if isinstance(value, int) else Decimal(value), decimals)


def _is_huge(value: int | Decimal) -> bool:
    """Decimal keeps its exponent and is safe as it is; an int has all of its digits, and converting them takes time."""
    return isinstance(value, int) and abs(value) > UINT256_MAX


def _start_time(value: object, info: Info) -> datetime:
    if not isinstance(value, str) or not _ISO_8601.fullmatch(value):
        raise ValueError("not ISO 8601")
    start = _in_utc(datetime.fromisoformat(value))
    if start - info.context.now > MAX_AHEAD:
        info.context.note(info.field_name, "Invalid start time")
    return start


def _in_utc(moment: datetime) -> datetime:
    try:
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except OverflowError:
        raise ValueError("outside the years 1 to 9999 in UTC") from None


def _member(by_name: Mapping[str, T], value: object) -> T:
    """What calling the enumeration does, in a quarter of the time."""
    if not isinstance(value, str) or value not in by_name:
        raise ValueError("none of those")
    return by_name[value]


def _by_name(members: Iterable[Named]) -> Mapping[str, Named]:
    return {str(member): member for member in members}


_GIG_TYPES, _PLATFORMS = _by_name(GigType), _by_name(Platform)


def _one_of(form: Any, members: Iterable[StrEnum]) -> PlainValidator:
    by_name = _by_name(members)
    return PlainValidator(lambda value, _: _member(by_name, value), json_schema_input_type=form)


def _gig_type(value: object, info: Info) -> GigType:
    gig_type = _member(_GIG_TYPES, value)
    info.context.of_type = RULES[gig_type]
    return gig_type


def _platform(value: object, info: Info) -> Platform:
    platform = _member(_PLATFORMS, value) if value is not None else None
    rules = info.context.of_type
    if platform is Platform.ONCHAIN and rules is not _NO_RULES and not rules.may_be_onchain:
        # Not raised: the URL is read against the platform that was meant.
        info.context.note(info.field_name, "Platform onchain is only for hold_erc20 and buy_erc20 tasks")
        info.context.is_broken = True
    return platform or rules.platform


def _optional(
    read: Callable[[object, Info], T], default: Callable[[TypeRules], T | None] = lambda _: None
) -> PlainValidator:
    """Reads a field that only some types of gig need; absent elsewhere, it is what the type says."""

    def validate(value: object, info: Info) -> T | None:
        if value is not None:
            return read(value, info)
        rules = info.context.of_type
        if info.field_name in rules.required:
            said = "URL" if info.field_name == "url" else info.field_name
            raise _said(f"{said} required for {info.data['gig_type']} tasks")
        return default(rules)

    return PlainValidator(validate)


def _url(value: object, info: Info) -> str:
    gig_type, platform = info.data.get("gig_type"), info.data.get("platform")
    try:
        return normal_url(_clean(value, info, MAX_URL_CHARS, _CONTROL), info.context.of_type.url_kinds, platform)
    except PydanticCustomError:
        raise
    except ValueError:
        label = f"URL for {platform} {gig_type} tasks" if platform and gig_type else "url"
        raise _said(f"Invalid {label}") from None


def _clean(value: object, info: Info, max_chars: int, forbidden: re.Pattern[str]) -> str:
    if not isinstance(value, str) or forbidden.search(value) or value.isspace():
        raise ValueError("not text that can be shown")
    if len(value) > max_chars:
        raise _said(f"{info.field_name} is too long")
    return value


def _text(value: object, info: Info) -> str:
    return _clean(value, info, MAX_TEXT_CHARS, _CONTROL_IN_LINES)


def _word(value: object, info: Info) -> str:
    return _clean(value, info, MAX_WORD_CHARS, _CONTROL)


def _token_amount(value: object, info: Info) -> str:
    decimals = info.context.rules.decimals
    units = _units(value, decimals)
    if units == 0:
        raise ValueError("needs to be more than nothing")
    return to_tokens(units, decimals)


# How they are described

_ADDRESS_FORM = {"pattern": "^0[xX][0-9a-fA-F]{40}$"}
_NUMBER = {"pattern": r"^[0-9]+(\.[0-9]+)?$", "exclusiveMinimum": 0}
_DEGEN = "0x4ed4E862860beD51a9570b96d89aF5E1B0Efefed"
_USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"


def _text_form(max_chars: int, **more: object) -> WithJsonSchema:
    return WithJsonSchema({"type": ["string", "null"], "maxLength": max_chars, **more})


def _needs_of_types(schema: dict[str, Any]) -> None:
    """What the types of gigs require beside the fields that all of them do."""
    types: dict[tuple[str, ...], list[str]] = {}
    for gig_type, rules in RULES.items():
        types.setdefault(rules.required, []).append(gig_type)
    schema["anyOf"] = [
        {
            "title": ", ".join(names),
            "properties": {"gig_type": {"enum": names}},
            "required": ["gig_type", *required],
        }
        for required, names in types.items()
    ]


class GigRequest(BaseModel):
    """The terms of a gig. `null` and `""` count as absent; a field that is not in this list is an error."""

    # Pydantic only describes it: `read_request` reads.
    model_config = ConfigDict(extra="forbid", json_schema_extra=_needs_of_types, defer_build=True)

    chain: Annotated[str, PlainValidator(_chain), WithJsonSchema({"type": "string"})] = Field(
        description="The chain that this server serves.", examples=["base"]
    )
    token_address: Annotated[str, PlainValidator(_token), WithJsonSchema({"type": "string", **_ADDRESS_FORM})] = Field(
        description="The token of the reward, in any letter case.", examples=[_USDC]
    )
    amount: Annotated[int, PlainValidator(_amount), WithJsonSchema({"type": ["number", "string"], **_NUMBER})] = Field(
        description="The reward in tokens, as a number or in plain digits, with no more decimals than the token has. "
        "The commission comes on top.",
        examples=[10, "10.5"],
    )
    start_time: Annotated[datetime, PlainValidator(_start_time), WithJsonSchema({"type": "string"})] = Field(
        description="ISO 8601, UTC where it names no offset, at most a year ahead. A past one means now, and the end "
        "moves with it.",
        examples=["2025-10-01T15:00:00Z"],
    )
    duration: Annotated[Duration, _one_of(Duration, Duration)] = Field(
        description="How long the gig runs.", examples=["1day"]
    )
    gig_type: Annotated[GigType, PlainValidator(_gig_type, json_schema_input_type=GigType)] = Field(
        description="What is to be done.", examples=["like"]
    )
    platform: Annotated[Platform | None, PlainValidator(_platform, json_schema_input_type=Platform | None)] = Field(
        None,
        validate_default=True,
        description="`farcaster` where it is absent. `onchain` is for hold_erc20 and buy_erc20 only, and is theirs "
        "where it is absent.",
    )
    url: Annotated[str | None, _optional(_url), _text_form(MAX_URL_CHARS)] = Field(
        None,
        validate_default=True,
        description="like, recast, boost: a post; follow: an account; both on the gig's platform. custom_bounty: any "
        "http(s) URL.",
        examples=["https://farcaster.xyz/dwr/0x1a2b3c4d", "https://x.com/alice/status/1234567890"],
    )
    how_to_earn: Annotated[
        str | None, _optional(_text, lambda rules: rules.how_to_earn), _text_form(MAX_TEXT_CHARS)
    ] = Field(
        None,
        validate_default=True,
        description="Instructions. Required for custom_bounty; the other types have a text of their own.",
        examples=["Draw a cat and post it."],
    )
    earning_criteria: Annotated[
        str | None, _optional(_text, lambda rules: rules.earning_criteria), _text_form(MAX_TEXT_CHARS)
    ] = Field(
        None,
        validate_default=True,
        description="What counts as done; each type has a text of its own.",
        examples=["The picture shows a cat."],
    )
    keyword: Annotated[str | None, _optional(_word), _text_form(MAX_WORD_CHARS)] = Field(
        None,
        description="mention: what is to be mentioned, the token's symbol where it is absent.",
        examples=["$DEGEN"],
    )
    token_contract: Annotated[
        str | None, _optional(lambda value, _: address(value)), _text_form(42, **_ADDRESS_FORM)
    ] = Field(None, validate_default=True, description="hold_erc20, buy_erc20: the token.", examples=[_DEGEN])
    token_amount_needed: Annotated[
        str | None, _optional(_token_amount), WithJsonSchema({"type": ["number", "string", "null"], **_NUMBER})
    ] = Field(
        None, validate_default=True, description="hold_erc20, buy_erc20: how much of it, more than 0.", examples=[5]
    )
    verifier: Annotated[str | None, _optional(_word), _text_form(MAX_WORD_CHARS)] = Field(
        None, description="A verifier of your own."
    )


PaidDuration = Literal[Duration.ONE_DAY, Duration.THREE_DAYS]


class PaidGigRequest(GigRequest):
    """The terms of a gig that is paid by x402, in USDC."""

    duration: Annotated[Duration, _one_of(PaidDuration, get_args(PaidDuration))] = Field(
        description="How long the gig runs.", examples=["1day"]
    )


class KeyedGigRequest(GigRequest):
    """The terms of a gig that is created with an API key, in any ERC-20 of the chain."""


class StartRequest(BaseModel):
    """Which gig is to start."""

    gig_id: Annotated[int, Field(strict=True, description="Of a gig that this key has created.", examples=[123])]
