"""The operator's commands on gigs that were created with an API key."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from x402_gig.cli.access import Json, parse_address, read_office, with_office
from x402_gig.cli.terminal import err, print_json
from x402_gig.errors import Refused

if TYPE_CHECKING:
    from x402_gig.operator.gig_refunds import Spare
    from x402_gig.operator.gig_unblocking import Standstill
    from x402_gig.operator.opening import Office

gigs = typer.Typer(
    no_args_is_help=True, help="Gigs of API keys: list them, give back what they do not need, let one go on."
)


class State(StrEnum):
    """Of a gig that was created with an API key."""

    CREATED = "created"
    LIVE = "live"
    CANCELLED = "cancelled"


@gigs.command("list", epilog="Example: x402-gig gigs list --state created")
def list_gigs(
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """The newest gigs of API keys: id, state, reward, wallet, the key that made it, and what it holds beyond."""
    from x402_gig.ledger import keyed_gigs
    from x402_gig.operator.gig_refunds import as_json as told
    from x402_gig.operator.gig_refunds import line

    rows = read_office(lambda connection, _: keyed_gigs.newest(connection, limit, state))
    if as_json:
        print_json([told(gig, prefix) for gig, prefix in rows])
        return
    for gig, prefix in rows:
        print(line(gig, prefix))
    if not rows:
        err().print("There is none.")


@gigs.command("refund", epilog="Example: x402-gig gigs refund 12 --to 0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
def refund_gig(
    gig_id: Annotated[int, typer.Argument(metavar="GIG_ID", help="Its number.")],
    to: Annotated[str, typer.Option(metavar="ADDRESS", help="Who gets it: ask the gig's creator.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Give back what a gig's wallet holds beyond reward and commission; all of it when the gig was never started.

    A gig that was not started is cancelled by this. The running server sends the money within seconds.
    """
    address = parse_address(to) or ""
    found = with_office(lambda office: _spare(office, gig_id, address))
    for line in found.origins:
        err().print(line, soft_wrap=True)
    if found.gig.state == "created":
        err().print(f"Gig {gig_id} was never started: this cancels it.", style="yellow")
    if not yes:
        typer.confirm(f"Pay {found.text} of gig {gig_id} to {to}?", abort=True, err=True)
    with_office(lambda office: _pay(office, found, address))
    err().print(f"Written down: the running server pays {found.text} to {to} within seconds.", soft_wrap=True)


@gigs.command("unblock", epilog="Example: x402-gig gigs unblock 12")
def unblock_gig(
    gig_id: Annotated[int, typer.Argument(metavar="GIG_ID", help="Its number.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Let the wallet of a gig go on that stands still: its nonce was used by a transaction without a receipt.

    What the token's logs show as paid is written down as paid, and what they do not is sent again. The running server
    goes on within seconds.
    """
    found = with_office(lambda office: _standstill(office, gig_id))
    for line in found.lines():
        err().print(line, soft_wrap=True)
    if not yes:
        typer.confirm("Is that so?", abort=True, err=True)
    with_office(lambda office: _go_on(office, found))
    err().print("Written down: the running server goes on within seconds.")


async def _standstill(office: "Office", gig_id: int) -> "Standstill":
    from x402_gig.operator.gig_unblocking import look
    from x402_gig.operator.opening import open_chain

    async with open_chain(office) as node:
        return await look(office, node, gig_id)


async def _go_on(office: "Office", found: "Standstill") -> int:
    from x402_gig.operator.gig_unblocking import go_on

    return await office.ledger.write(lambda connection: go_on(connection, found))


async def _spare(office: "Office", gig_id: int, to: str) -> "Spare":
    from x402_gig.operator.gig_refunds import spare
    from x402_gig.operator.opening import open_chain

    async with open_chain(office) as node:
        found = await spare(office, node, gig_id)
    if to in (found.gig.wallet, found.gig.token.address, office.wallets.intake.address, f"0x{0:040x}"):
        raise Refused("--to must be the address of its owner, not the gig's wallet, the intake, the token or zero")
    return found


async def _pay(office: "Office", found: "Spare", to: str) -> int:
    from x402_gig.operator.gig_refunds import pay

    return await office.ledger.write(lambda connection: pay(connection, office, found, to))
