"""The command line. Each command imports what it needs when it runs, so that `--help` is quick."""

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from x402_gig.errors import CannotStart, GigError

app = typer.Typer(
    help="Sell gigs over x402: terms in, a 402 with the price in USDC, a signed payment, and the gig is live.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
err = Console(stderr=True, highlight=False)

AnvilPort = Annotated[int, typer.Option(help="Port of Anvil; a free one when it is taken.")]
BlockTime = Annotated[float | None, typer.Option(help="Seconds between blocks; without it each transaction gets one.")]
ForkUrl = Annotated[str | None, typer.Option(help="Fork this chain (Base or Base Sepolia) with its real contracts.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.command(epilog="Example: x402-gig dev --port 4021 --block-time 2")
def dev(
    port: Annotated[int, typer.Option(help="Port of the server; a free one when it is taken.")] = 4021,
    anvil_port: AnvilPort = 8545,
    block_time: BlockTime = None,
    fork_url: ForkUrl = None,
    database: Annotated[Path | None, typer.Option(help="Keep the ledger in this SQLite file.")] = None,
    as_json: Json = False,
) -> None:
    """Anvil and the server together, in the foreground, without any configuration."""
    from x402_gig.devnet import run
    from x402_gig.devnet.anvil import DevnetOptions

    options = DevnetOptions(port=anvil_port, block_time_s=block_time, fork_url=fork_url)
    _run(run.dev(options, port=port, database=database, as_json=as_json), logging.WARNING)


@app.command(epilog="Example: x402-gig devnet --anvil-port 8545")
def devnet(
    anvil_port: AnvilPort = 8545,
    block_time: BlockTime = None,
    fork_url: ForkUrl = None,
    as_json: Json = False,
) -> None:
    """Only the chain of `dev`, so that a server can be stopped and started beside it."""
    from x402_gig.devnet import run
    from x402_gig.devnet.anvil import DevnetOptions

    options = DevnetOptions(port=anvil_port, block_time_s=block_time, fork_url=fork_url)
    _run(run.chain_only(options, as_json=as_json), logging.WARNING)


@app.command(epilog="Example: X402_GIG_NETWORK=base X402_GIG_RPC_URL=https://… x402-gig serve")
def serve() -> None:
    """The server in production. Settings come from the environment and `.env`; see the README for the list."""
    from x402_gig import serving, settings

    _run(serving.serve(settings.load), logging.INFO)


def _run(main: Coroutine[Any, Any, None], level: int) -> None:
    """Run to the end, or to Ctrl-C or SIGTERM; problems are listed and the exit code is 1."""
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    for chatty in ("httpx", "alembic", "web3"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    try:
        asyncio.run(_until_signalled(main))
    except CannotStart as exc:
        err.print("[bold red]Cannot start:[/]")
        for problem in exc.problems:
            err.print(f"  • {problem}", markup=False)
        raise typer.Exit(1) from None
    except GigError as exc:
        err.print(f"Error: {exc.detail}", style="bold red", markup=False)
        raise typer.Exit(1) from None


async def _until_signalled(main: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await task


def print_json(document: Any) -> None:
    """One line, flushed: whoever reads it may be waiting."""
    print(json.dumps(document), flush=True)


if __name__ == "__main__":
    app()
