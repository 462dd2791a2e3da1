"""How the commands run and how they speak: results to stdout, everything else to stderr."""

import asyncio
import json
import signal
from collections.abc import Callable, Coroutine, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from x402_gig import logs
from x402_gig.errors import CannotStart, GigError

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")


@cache
def err() -> "Console":
    """Stderr for people. Made when something is said: a server says nothing there."""
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def complain(problem: str, details: Iterable[str] = ()) -> None:
    err().print(problem, style="bold red", markup=False, soft_wrap=True)
    for detail in details:
        err().print(f"  • {detail}", markup=False, soft_wrap=True)


def run_to_end(
    main: Coroutine[Any, Any, T], level: int, *, json_logs: bool = False, cannot_start: int = 1, failed: int = 1
) -> T | None:
    """Run to the end; None after Ctrl-C or SIGTERM. Problems are listed and end the command with these exit codes."""
    logs.configure(level, as_json=json_logs)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            return runner.run(_until_signalled(main))
    except CannotStart as exc:
        complain("Cannot start:", exc.problems)
        raise SystemExit(cannot_start) from None
    except GigError as exc:
        complain(f"Error: {exc.detail}")
        raise SystemExit(failed) from None


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it exists (not on Windows)."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


async def _until_signalled(main: Coroutine[Any, Any, T]) -> T | None:
    task = asyncio.ensure_future(main)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        return None


def print_json(document: Any) -> None:
    """One line, flushed: whoever reads it may be waiting."""
    print(json.dumps(document), flush=True)
