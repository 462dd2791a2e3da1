"""What a list of gigs can be asked for: one model reads the query's parameters, checks and documents them."""

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from msgspec import Struct
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from x402_gig.errors import ValidationFailed
from x402_gig.gigs.catalogue import GigType, Platform
from x402_gig.gigs.records import GigRecord
from x402_gig.gigs.requests import MAX_NAME_CHARS, printable

MAX_ID = 2**63 - 1


def _digits(value: object) -> object:
    """Python would take "+1", " 1" and "1_0" too."""
    if isinstance(value, str) and not re.fullmatch("[0-9]{1,19}", value):
        raise ValueError("not plain digits")
    return value


def _split(value: object) -> object:
    if isinstance(value, list):
        raise ValueError("given more than once")  # noqa: TRY004 - pydantic reads ValueError only
    return value.split(",") if isinstance(value, str) else value


Limit = Annotated[int, Field(ge=1, le=500), BeforeValidator(_digits)]
Cursor = Annotated[int, Field(ge=1, le=MAX_ID), BeforeValidator(_digits)]
Address = Annotated[str, StringConstraints(pattern="^0[xX][0-9a-fA-F]{40}$", to_lower=True)]


class GigQuery(BaseModel):
    """The parameters of a list. Addresses are lower case; the page begins below the id `cursor`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    status: Literal["active", "scheduled", "ended", "all", "created"] = Field(
        "active", description="By the chain's clock. `created`: not started yet, of the API key that asks."
    )
    platforms: Annotated[tuple[Platform, ...], BeforeValidator(_split)] = Field(
        (), description="Separated by commas; all when absent."
    )
    gig_type: GigType | None = None
    token: Address | None = Field(None, description="Contract of the token that the reward is in.")
    creator: Address | None = Field(None, description="Who paid for the gig.")
    limit: Limit = Field(100, description="Gigs on a page.")
    cursor: Cursor | None = Field(None, description="From the `next` of the page before.")


class Page(Struct, frozen=True):
    """Newest first. `cursor` leads to the next page and is None on the last."""

    gigs: list[GigRecord]
    cursor: int | None


def read_query(parameters: Iterable[tuple[str, str]]) -> GigQuery:
    """Names and values as they stand in a URL; an empty value is as good as none.

    Raises ValidationFailed with every problem.
    """
    values: dict[str, Any] = {}
    for name, value in parameters:
        if value or name not in GigQuery.model_fields:
            # Nobody can tell which of two was meant.
            values[name] = value if name not in values else [value]
    try:
        return GigQuery.model_validate(values)
    except ValidationError as exc:
        problems = [_problem(error["type"], str(error["loc"][0])) for error in exc.errors()]
        raise ValidationFailed(dict.fromkeys(problems)) from None


def _problem(kind: str, name: str) -> str:
    if kind == "extra_forbidden":
        return f"Unknown parameter: {printable(name[:MAX_NAME_CHARS])}"
    return f"Invalid {name.replace('_', ' ')}"
