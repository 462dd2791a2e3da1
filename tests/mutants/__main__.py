"""Breaks lines on which money depends, one by one, and tells which test notices.

mutmut and cosmic-ray break every operator everywhere and ask all tests; here the lines, the way in which each is broken
and the tests that should notice are chosen, and contracts are among them.
"""

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table

from tests.mutants.listed import LISTS, ROOT, Mutant, WrongMutant, read
from tests.mutants.trial import Interrupted, Trials, Verdict, copied

EXAMPLE = """example:
  scripts/mutants -k reward --jobs 2    # those with "reward" in their names, two at a time

Ends with 1 when a mutant survives, and with 2 when one could not be tried.
"""
FAILING = "the tests do not pass unbroken"


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _stop)
    trials = Trials(options.limit_s, threading.Event())
    verdicts = []
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            for verdict in _verdicts(trials, options.mutants, pool):
                print(_line(verdict), file=sys.stderr)
                verdicts.append(verdict)
        except KeyboardInterrupt:
            trials.stop.set()
            pool.shutdown(cancel_futures=True)
            return 130
    _show(verdicts, options)
    return 1 if any(v.survived for v in verdicts) else 2 if any(v.problem for v in verdicts) else 0


def _verdicts(trials: Trials, mutants: Sequence[Mutant], pool: ThreadPoolExecutor) -> Iterator[Verdict]:
    """As they come. Only what passes unbroken can tell anything."""
    problems = {mutant.name: problem for mutant in mutants if (problem := _problem(mutant))}
    yield from (Verdict(name, problem=problem) for name, problem in problems.items())
    sound = [mutant for mutant in mutants if mutant.name not in problems]
    tests = list(dict.fromkeys(test for mutant in sound for test in mutant.tests))
    print(f"{len(tests)} tests on the unbroken tree …", file=sys.stderr)
    failing = pool.submit(_failing, trials, tests).result() if tests else set()
    trying = []
    for mutant in sound:
        if broken := failing.intersection(test.partition("[")[0] for test in mutant.tests):
            yield Verdict(mutant.name, problem=f"{FAILING}: {', '.join(sorted(broken))}")
        else:
            trying.append(pool.submit(trials.attempt, mutant))
    for future in as_completed(trying):
        yield future.result()


def _problem(mutant: Mutant) -> str:
    try:
        mutant.check(ROOT)
    except WrongMutant as exc:
        return str(exc)
    return ""


def _failing(trials: Trials, tests: Sequence[str]) -> set[str]:
    unlimited = Trials(trials.limit_s * len(tests), trials.stop)
    with copied() as folder:
        failed = [name.partition("[")[0] for name in unlimited.failures(folder, tests)]
    # Forge names no file.
    return {
        test for test in (t.partition("[")[0] for t in tests) if test in failed or test.partition("::")[2] in failed
    }


def _line(verdict: Verdict) -> str:
    return f"{verdict.name}: {verdict.problem or verdict.by or 'SURVIVED'} ({verdict.seconds:.0f} s)"


def _show(verdicts: Sequence[Verdict], options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps([{**asdict(v), "survived": v.survived} for v in verdicts], indent=2))
        return
    table = Table("mutant", "noticed by", "seconds")
    order = {mutant.name: place for place, mutant in enumerate(options.mutants)}
    for verdict in sorted(verdicts, key=lambda v: order[v.name]):
        said = verdict.by.rpartition("::")[2] or verdict.problem or "nobody"
        table.add_row(verdict.name, said, f"{verdict.seconds:.0f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    for mutant in options.mutants:
        if any(v.survived and v.name == mutant.name for v in verdicts):
            print(f"survived: {mutant.name} ({mutant.file}): {mutant.why}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "scripts/mutants", None, __doc__, EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="this mutant; may be given several times")
    parser.add_argument("-k", metavar="PART", default="", help="mutants whose names contain this")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time (1)")
    parser.add_argument("--limit-s", type=float, default=300, metavar="S", help="for the tests of one mutant (300)")
    parser.add_argument("--list", type=Path, nargs="+", default=LISTS, metavar="FILE.toml", help="other mutants")
    parser.add_argument("--names", action="store_true", help="print the names only")
    parser.add_argument("--json", action="store_true", help="the verdicts for programs")
    options = parser.parse_args()
    known = read(options.list)
    if unknown := set(options.only or ()) - {mutant.name for mutant in known}:
        parser.error(f"there is no mutant {', '.join(sorted(unknown))}: see --names")
    options.mutants = [m for m in known if options.k in m.name and (not options.only or m.name in options.only)]
    if not options.mutants:
        parser.error(f"no mutant has {options.k!r} in its name: see --names")
    if options.names:
        print("\n".join(mutant.name for mutant in options.mutants))
        parser.exit()
    return options


def _stop(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    try:
        sys.exit(main())
    except WrongMutant as exc:
        print(f"the unbroken tree cannot be tested: {exc}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, Interrupted):
        sys.exit(130)
