"""The operator's commands on the ledger: beside a running server, with its settings."""

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

import typer
from rich.progress import Progress

from x402_gig.terminal import Json, complain, err, print_json, run_to_end

if TYPE_CHECKING:
    from x402_gig.backoffice.audit import Report
    from x402_gig.backoffice.opening import Office

T = TypeVar("T")
INTERRUPTED = 130


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: x402-gig audit --json > audit.json")(audit)


def audit(as_json: Json = False) -> None:
    """Rebuild from the chain's logs what came and went, and compare it with the ledger, row by row.

    Takes the settings of `serve`, writes nothing, and works beside a live server.

    Exit code 0: all adds up; 1: it lists what differs; 2: wrong usage or settings; 3: chain or ledger cannot be read.
    """
    from x402_gig.backoffice import report as shown

    report = _with_office(_audit)
    if as_json:
        print_json(shown.as_json(report))
    else:
        print(shown.heading(report), shown.table(report.totals), shown.promise(report.totals), sep="\n", flush=True)
    for note in report.notes:
        err.print(note, style="yellow", markup=False, soft_wrap=True)
    if report.adds_up:
        err.print(shown.verdict(report), style="bold green")
        return
    complain(shown.verdict(report), map(str, report.differences))
    raise typer.Exit(1)


async def _audit(office: "Office") -> "Report":
    from x402_gig.backoffice.audit import Audit
    from x402_gig.backoffice.opening import open_chain

    async with open_chain(office) as node:
        with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
            reading = bar.add_task("Reading blocks", total=None)
            expect, progress = (lambda n: bar.update(reading, total=n)), (lambda n: bar.advance(reading, n))
            return await Audit(office, node, expect, progress).run()


def _with_office(work: "Callable[[Office], Awaitable[T]]") -> T:
    """Run `work` on the ledger of the settings."""
    from x402_gig import settings
    from x402_gig.backoffice.opening import open_office

    async def main() -> T:
        async with open_office(settings.load()) as office:
            return await work(office)

    done = run_to_end(main(), logging.WARNING, cannot_start=2, failed=3)
    if done is None:
        complain("Interrupted.")
        raise typer.Exit(INTERRUPTED)
    return done
