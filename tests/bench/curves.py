"""How the cost grows with the ledger and with the buyers, as a picture."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench import chain_limit, load, shops
from tests.bench.load import Tally, get
from tests.bench.market import BUYERS, folder_of_its_own, opened, reopened
from tests.bench.programs import program
from tests.bench.shops import Shop
from tests.support.harness import Chain, devnet, serve_settings

# Full pages, also of the smallest ledger.
LISTS = {
    "ten gigs listed": "/api/gigs?limit=10",
    "ten active on a platform": "/api/gigs?limit=10&status=active&platforms=farcaster",
}
TRIES = 30
AT_LEAST = 20
AT_MOST = 2000
# Some find the chain at work on the rewards of those before them, so there must be many; but not more than are there.
ALONE = 100


@dataclass(frozen=True)
class Scale:
    ledgers: Sequence[int] = (10, 100, 1_000, 10_000)
    buyers: Sequence[int] = (1, 3, 10, 30, 100, 300, 1_000)


QUICK = Scale((10, 30), (1, 10))
# Points of a line: what it grows with, and the figure.
Line = list[tuple[int, float]]


@dataclass
class Curves:
    """Lines by name."""

    by_ledger_ms: dict[str, Line] = field(default_factory=dict)
    by_buyers_ms: dict[str, Line] = field(default_factory=dict)
    by_buyers_rate: dict[str, Line] = field(default_factory=dict)


def measure(scale: Scale, progress: Callable[[str], None]) -> Curves:
    curves = Curves()
    with devnet() as chain, folder_of_its_own() as folder:
        for before, size in itertools.pairwise((0, *scale.ledgers)):
            progress(f"a ledger of {size:,} gigs")
            _note(curves.by_ledger_ms, size, _by_ledger(chain, folder, size - before))
    with devnet() as chain, opened(chain, shops.ours()) as market:
        for buyers in scale.buyers:
            progress(f"{buyers:,} buyers")
            tally = market.pay(buyers, max(AT_LEAST, min(4 * buyers, AT_MOST)))
            _note(curves.by_buyers_ms, buyers, {"p50": tally.p50_ms, "p95": tally.p95_ms})
            _note(curves.by_buyers_rate, buyers, {"payments/s": tally.rate})
    return curves


def _note(lines: dict[str, Line], at: int, figures: dict[str, float]) -> None:
    for name, value in figures.items():
        lines.setdefault(name, []).append((at, value))


def _by_ledger(chain: Chain, folder: Path, more: int) -> dict[str, float]:
    """So many more gigs are bought, by buyers like all others; then this ledger is measured, in ms."""
    with reopened(chain, shops.ours(), folder) as market:
        bought = market.pay(BUYERS, more)
        assert bought.errors == 0, bought.odd
        lists = {name: _list(market.shop, path).p50_ms for name, path in LISTS.items()}
        lone = market.pay(1, max(AT_LEAST, min(more // 10, ALONE)))
        # Anvil's blocks take longer the more accounts there are.
        bare = chain_limit.lone_ms(chain, market.purse, AT_LEAST)
    mine = {"one payment": lone.p50_ms, "of it the chain": bare}
    return {**mine, **lists, "a reconciler's round": _pass_ms(chain, folder)}


def _list(shop: Shop, path: str) -> Tally:
    request = get(shop.addresses[0], path)
    return load.run(shop.addresses, [request] * TRIES, buyers=1, wanted=200)


def _pass_ms(chain: Chain, folder: Path) -> float:
    env = serve_settings(chain, folder, seed=(folder / "seed").read_text())
    with program("-m", "tests.bench.passes", folder=folder, name="passes", env=env) as running:
        running.process.wait(60)
        return float(running.log.read_text().splitlines()[-1])


def draw(curves: Curves, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "bench", "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot
    from matplotlib.ticker import LogFormatter, StrMethodFormatter

    figure, (ledger, waiting, rate) = pyplot.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    panels = (
        (ledger, curves.by_ledger_ms, "As the ledger grows", "gigs in the ledger", "ms"),
        (waiting, curves.by_buyers_ms, "As buyers come at once: time to the gig", "buyers at once", "ms"),
        (rate, curves.by_buyers_rate, "As buyers come at once: speed", "buyers at once", "payments/s"),
    )
    for axes, lines, title, below, unit in panels:
        for name, line in lines.items():
            axes.plot(*zip(*line, strict=True), marker="o", markersize=3, label=name)
        axes.set(title=title, xlabel=below, ylabel=unit, xscale="log", yscale="log")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
            axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
