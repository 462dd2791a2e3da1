"""How the operator's commands get at the ledger: with the settings of `serve`, beside a running server."""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from x402_gig.cli.terminal import complain, run_to_end
from x402_gig.errors import Refused

if TYPE_CHECKING:
    from x402_gig.ledger.engine import Connection
    from x402_gig.operator.opening import Office

T = TypeVar("T")
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
INTERRUPTED = 130


def parse_address(given: str | None) -> str | None:
    from eth_utils.address import is_address

    if given is not None and not (given.startswith("0x") and is_address(given)):
        raise typer.BadParameter(
            f"{given} is no address: 0x and 40 hex digits (with a right checksum where letters mix)"
        )
    return given.lower() if given is not None else None


def read_office(work: "Callable[[Connection, Office], T]") -> T:
    return with_office(lambda office: office.ledger.read(lambda connection: work(connection, office)))


def write_office(work: "Callable[[Connection, Office], T]") -> T:
    return with_office(lambda office: office.ledger.write(lambda connection: work(connection, office)))


def with_office(work: "Callable[[Office], Awaitable[T]]") -> T:
    """Run `work`, which gives anything but None, on the ledger of the settings.

    What it refuses ends the command with exit code 1.
    """
    from x402_gig import settings
    from x402_gig.operator.opening import open_office

    async def main() -> T | Refused:
        async with open_office(settings.load()) as office:
            try:
                return await work(office)
            except Refused as exc:
                return exc

    done = run_to_end(main(), logging.WARNING, cannot_start=2, failed=3)
    if done is None:
        complain("Interrupted.")
        raise typer.Exit(INTERRUPTED)
    if isinstance(done, Refused):
        complain(done.detail)
        raise typer.Exit(1)
    return done
