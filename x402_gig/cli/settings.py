"""The operator's commands on the settings that the ledger keeps for all its servers."""

from typing import Annotated, Any

import typer

from x402_gig.cli.access import Json, read_office, write_office
from x402_gig.cli.terminal import err, print_json

settings = typer.Typer(
    no_args_is_help=True, help="Settings that all servers of the ledger share: show them, change them while they run."
)

BPS = Annotated[str | None, typer.Option(metavar="BPS", help="On top of the reward, in hundredths of a percent.")]
Reward = Annotated[str | None, typer.Option(metavar="USDC", help="Of gigs that are paid by x402.")]
Address = Annotated[str | None, typer.Option(metavar="ADDRESS", help="Who gets the commissions from now on.")]


@settings.command("show", epilog="Example: x402-gig settings show")
def show_settings(as_json: Json = False) -> None:
    """Who the servers are, and their prices: the rule sets with their times (UTC), the newest first."""
    from x402_gig.operator import shared_settings as shown

    found, warnings = read_office(
        lambda connection, office: (shown.shared(connection), shown.warnings(connection, office))
    )
    if as_json:
        print_json(shown.as_json(found))
    else:
        print(shown.told(found))
    _warn(warnings)


@settings.command("set", epilog="Example: x402-gig settings set --commission-bps 500 --minimum-reward 20")
def set_settings(
    commission_bps: BPS = None,
    minimum_reward: Reward = None,
    maximum_reward: Reward = None,
    commission_address: Address = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Change settings of all servers at once. Prices change in ten seconds, and what was quoted before is kept.

    A commission that is signed already goes where it was to go: see "Settings that servers share" in
    docs/operations.md.
    """
    from x402_gig.operator import shared_settings as shown

    given = {
        "commission_bps": commission_bps,
        "minimum_reward": minimum_reward,
        "maximum_reward": maximum_reward,
        "commission_address": commission_address,
    }
    wanted = _checked({name: value for name, value in given.items() if value is not None})
    changed, found = read_office(
        lambda connection, office: (shown.planned(connection, office, wanted), shown.shared(connection))
    )
    if not changed:
        err().print(f"The ledger says so already: {shown.when(found)}.", soft_wrap=True)
        return
    for name, (before, after) in changed.items():
        err().print(f"{name}: {before} → {after}", soft_wrap=True)
    if not yes:
        typer.confirm("Change that for all servers of this ledger?", abort=True, err=True)

    found, warnings = write_office(
        lambda connection, office: (shown.change(connection, office, wanted), shown.warnings(connection, office))
    )
    err().print(f"Written down in the ledger: {shown.when(found)}. See x402-gig settings show", soft_wrap=True)
    if as_json:
        print_json(shown.as_json(found))
    _warn(warnings)


def _checked(given: dict[str, str]) -> dict[str, Any]:
    """By name, as the ledger keeps them."""
    from pydantic import ValidationError

    from x402_gig.settings import Changeable

    if not given:
        raise typer.BadParameter("name what is to change: x402-gig settings set --help")
    try:
        values = Changeable(**given)  # as in the environment: text
    except ValidationError as exc:
        problems = [(error["loc"][0], error["msg"].removeprefix("Value error, ")) for error in exc.errors()]
        said = "; ".join(f"--{str(name).replace('_', '-')} {message}" for name, message in problems)
        raise typer.BadParameter(said) from None
    return {name: getattr(values, name) for name in given}


def _warn(warnings: list[str]) -> None:
    for warning in warnings:
        err().print(warning, style="yellow", markup=False, soft_wrap=True)
