"""How fast this server is, beside its peer and the limits, on this machine in one run."""

import argparse
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from tests.bench import curves, shops, steps, table
from tests.bench.rows import QUICK, ROWS, Bench, Row, Sizes
from tests.bench.shops import Opener
from tests.support.harness import ROOT

WIDTH = 120
EXAMPLE = """example:
  scripts/bench                                # everything, the peer too: about fifteen minutes
  scripts/bench --quick --only lone,start      # does it still work? The figures say little
  scripts/bench --markdown > table.md          # the table of docs/performance.md
  scripts/bench --beside ../before --without-peer    # what a change did: two versions in turns, and their ratio
  scripts/bench --curves docs/growth.svg       # its picture: ten minutes
"""


def main() -> None:
    options = _options()
    checkouts = {"ours": ROOT} | ({"beside": options.beside} if options.beside else {})
    peers: dict[str, Opener] = {"peer": shops.peer, "tuned": shops.tuned_peer} if options.peer else {}
    signal.signal(signal.SIGTERM, _stop)
    if options.curves:
        _draw(options)
        return
    if options.steps:
        print(steps.markdown(steps.measure()))
        return
    with _progress() as progress:
        bench = Bench(checkouts, peers, QUICK if options.quick else Sizes(), progress)
        rows = _measure(bench, options.only)
    _print(rows, options)
    sys.exit(0 if table.is_good(rows) else 1)


def _draw(options: argparse.Namespace) -> None:
    with _progress() as progress:
        found = curves.measure(curves.QUICK if options.quick else curves.Scale(), progress)
    curves.draw(found, options.curves)
    print(json.dumps(asdict(found), indent=2) if options.json else f"drawn: {options.curves}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", type=_names, default=list(ROWS), help=f"of {','.join(ROWS)}: those, with commas")
    parser.add_argument("--quick", action="store_true", help="a few seconds for each")
    parser.add_argument(
        "--beside", type=_checkout, metavar="CHECKOUT", help="another version of this server, in turns with this one"
    )
    parser.add_argument("--without-peer", dest="peer", action="store_false", help="this server and the limits alone")
    parser.add_argument("--curves", type=Path, metavar="FILE.svg", help="draw how the cost grows, instead of the table")
    parser.add_argument("--steps", action="store_true", help="what each step of a request costs, instead of the table")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="everything that was measured, for programs")
    form.add_argument("--markdown", action="store_true", help="the table of docs/performance.md")
    return parser.parse_args()


def _checkout(text: str) -> Path:
    if not (Path(text) / ".venv/bin/python").exists():
        raise argparse.ArgumentTypeError(f"{text} has no .venv: run scripts/setup there")
    return Path(text)


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in ROWS]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: there is {', '.join(ROWS)}")
    return names


def _stop(_: int, __: FrameType | None) -> None:
    # As Ctrl-C: everything that was started is stopped on the way out.
    raise KeyboardInterrupt


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """On the terminal only: standard output is for the result."""
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("")
        yield lambda what: bar.update(task, description=what)


def _measure(bench: Bench, names: Sequence[str]) -> list[Row]:
    return [row for name in names for row in ROWS[name](bench)]


def _print(rows: Sequence[Row], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(table.as_json(rows), indent=2))
    elif options.markdown:
        print(table.markdown(rows))
    else:
        table.show(rows, Console(width=WIDTH))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
