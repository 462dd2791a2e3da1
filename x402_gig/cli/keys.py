"""The operator's commands on API keys: with the settings of `serve`, beside a running server."""

import re
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec.structs import asdict

from x402_gig.cli.access import Json, read_office, write_office
from x402_gig.cli.terminal import err, print_json
from x402_gig.errors import Refused

if TYPE_CHECKING:
    from x402_gig.ledger.api_keys import ApiKey
    from x402_gig.ledger.engine import Connection

MAX_NAME_CHARS = 100

keys = typer.Typer(no_args_is_help=True, help="API keys: hand one out, list them, revoke one.")

Expires = Annotated[
    str | None, typer.Option(metavar="30d|DATE", help="After so many days, or at this date (UTC); else never.")
]


@keys.command("create", epilog="Example: x402-gig keys create 'The blue agent' --expires 90d")
def create_key(
    name: Annotated[str, typer.Argument(help="Whose it is, for you to remember.")],
    expires: Expires = None,
    as_json: Json = False,
) -> None:
    """Make a key and print it, once: it is kept as a hash, and nobody can show it again."""
    from x402_gig.ledger import api_keys

    if not name.strip() or len(name) > MAX_NAME_CHARS or not name.isprintable():
        raise typer.BadParameter(f"a name has 1 to {MAX_NAME_CHARS} printable characters")
    expires_at = _expiry(expires)
    row, key = write_office(lambda connection, _: api_keys.create(connection, name.strip(), expires_at))
    if as_json:
        print_json({**_as_json(row), "key": key})
        return
    print(key)
    err().print(f"{row.prefix} is {row.name}'s. Keep it now: it is shown this once. It goes into the header x-api-key.")


@keys.command("list", epilog="Example: x402-gig keys list")
def list_keys(as_json: Json = False) -> None:
    """All keys: prefix, state, name, and when they were made, used, and end (UTC)."""
    from x402_gig.ledger import api_keys

    rows = read_office(lambda connection, _: api_keys.listed(connection))
    if as_json:
        print_json([_as_json(row) for row in rows])
        return
    for row in rows:
        print(_line(row))
    if not rows:
        err().print("There is none: x402-gig keys create NAME")


@keys.command("revoke", epilog="Example: x402-gig keys revoke gig_1f2e3d4c")
def revoke_key(
    what: Annotated[
        str, typer.Argument(metavar="PREFIX|ID|KEY", help="As x402-gig keys list names it, or the key itself.")
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Refuse a key from now on. The gigs that were created with it stay as they are."""
    from x402_gig.ledger import api_keys

    row = read_office(lambda connection, _: _meant(connection, what))
    if row.revoked_at is not None:
        raise typer.BadParameter(f"{row.prefix} is revoked already")
    if not yes:
        typer.confirm(f"Revoke {row.prefix} ({row.name})?", abort=True, err=True)
    write_office(lambda connection, _: api_keys.revoke(connection, row))
    err().print(f"{row.prefix} ({row.name}) is revoked.")


def _meant(connection: "Connection", what: str) -> "ApiKey":
    from x402_gig.ledger import api_keys

    # Whoever has to hurry has the whole key at hand; it is not printed again.
    name = what[: api_keys.PREFIX_CHARS] if what.startswith("gig_") else what
    for row in api_keys.listed(connection):
        if name in (row.prefix, str(row.id)):
            return row
    raise Refused(f"There is no key {name}: x402-gig keys list")


def _expiry(given: str | None) -> int | None:
    """Unix seconds."""
    if given is None:
        return None
    now = datetime.now(UTC)
    if days := re.fullmatch(r"([1-9][0-9]{0,4})d", given):
        return int((now + timedelta(days=int(days[1]))).timestamp())
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise typer.BadParameter(f"--expires {given}: a number of days (30d) or a date (2030-01-31)") from None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    if moment <= now:
        raise typer.BadParameter(f"--expires {given} is in the past")
    return int(moment.timestamp())


def _as_json(row: "ApiKey") -> dict[str, object]:
    """Times in Unix seconds."""
    return {**asdict(row), "state": row.state(int(time.time()))}


def _line(row: "ApiKey") -> str:
    from x402_gig.operator.words import clock

    used = f"used {clock(row.last_used_at)}" if row.last_used_at else "never used"
    times = [f"made {clock(row.created_at)}", used, *([f"ends {clock(row.expires_at)}"] if row.expires_at else [])]
    return "  ".join([f"{row.id:>3}", row.prefix, f"{row.state(int(time.time())):<7}", *times, row.name])
