"""The rows of the table: what is measured, and how."""

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.bench import chain_limit, shops
from tests.bench.counting import Relay, counted
from tests.bench.load import Tally
from tests.bench.market import BUYERS, Market, folder_of_its_own, opened
from tests.bench.payments import Purse
from tests.bench.shops import Opener
from tests.support import servers
from tests.support.harness import Chain, devnet

CROWD = 300
BLOCK_TIME_S = 2
RELAYERS = 4
ODD_CHARS = 300
# PostgreSQL's defaults, but for what several servers need.
LASTING = ("max_connections=100",)

Tallies = defaultdict[str, list[Tally]]


@dataclass(frozen=True)
class Sizes:
    """How much of each is measured."""

    rounds: int = 12
    unpaid_s: float = 1
    lone_rounds: int = 5
    lone: int = 40
    busy_rounds: int = 3
    busy: int = 640
    crowd_s: float = 40
    starts: int = 5
    batches: int = 10
    idle_s: float = 10
    processes: int = 3
    calls_alone: int = 20
    calls_together: int = 640


QUICK = Sizes(
    rounds=1,
    unpaid_s=0.5,
    lone_rounds=1,
    lone=5,
    busy_rounds=1,
    busy=64,
    crowd_s=4,
    starts=1,
    batches=1,
    idle_s=1,
    processes=1,
    calls_alone=2,
    calls_together=64,
)


@dataclass
class Cell:
    """One figure, and what went wrong while it was measured; `odd` is one of the answers that were not wanted."""

    value: float
    errors: int = 0
    unserved: int = 0
    more: dict[str, float] = field(default_factory=dict)
    odd: str = ""


def _cell(value: float, tallies: Sequence[Tally], **more: float) -> Cell:
    odd = [answer for tally in tallies for answer in tally.odd]
    return Cell(
        value,
        sum(tally.errors for tally in tallies),
        sum(tally.unserved for tally in tallies),
        {name: median(getattr(tally, name) for tally in tallies) for name in ("p50_ms", "p95_ms", "cpu_ms")} | more,
        odd[0].decode("latin-1")[-ODD_CHARS:] if odd else "",
    )


@dataclass
class Row:
    """`cells` by who was measured: ours, beside, peer, tuned, limit.

    `set_beside` is one of them with its figure on the machine where the wanted one was set, if that depends on speed.
    """

    name: str
    wanted: float
    more_is_better: bool
    set_beside: tuple[str, float] | None = None
    cells: dict[str, Cell] = field(default_factory=dict)

    @property
    def wanted_here(self) -> float | None:
        """What the wanted figure comes to at this machine's speed."""
        who, there = self.set_beside or ("", 0)
        return self.wanted * self.cells[who].value / there if who in self.cells else None


@dataclass
class Bench:
    """`checkouts` of this server by name, and its `peers`; `progress` is told what is being measured."""

    checkouts: dict[str, Path]
    peers: dict[str, Opener] = field(default_factory=dict)
    sizes: Sizes = Sizes()
    progress: Callable[[str], None] = lambda _: None

    def ours(self, **settings: Any) -> dict[str, Opener]:
        return {name: shops.ours(checkout, **settings) for name, checkout in self.checkouts.items()}

    def each(self, what: str, rounds: int = 1, **others: Opener) -> Iterator[tuple[str, Opener]]:
        """One after the other and round after round: what else the machine does falls on each of them."""
        contestants = self.ours() | self.peers | others
        for _, (name, opener) in itertools.product(range(rounds), contestants.items()):
            self.progress(f"{what}: {name}")
            yield name, opener


# Asking the price


def unpaid(bench: Bench) -> list[Row]:
    row = Row("unpaid 402, one process, 1/s", 13_000, True, ("limit", 15_900))
    bare = {"limit": _bare("bare_starlette"), "bare ASGI": _bare("bare_asgi")}
    asked: Tallies = defaultdict(list)
    with devnet() as chain:
        for name, opener in bench.each("402s", bench.sizes.rounds, **bare):
            if name != "tuned":
                with opened(chain, opener) as market:
                    asked[name].append(market.ask(bench.sizes.unpaid_s))
    row.cells = {name: _cell(median(tally.rate for tally in tallies), tallies) for name, tallies in asked.items()}
    return [row]


def _bare(app: str) -> Opener:
    return lambda _, folder: shops.bare(app, folder)


# Paying


def lone(bench: Bench) -> list[Row]:
    row = Row("one payment at a time, p50, ms", 8, False, ("peer", 23))
    paid: Tallies = defaultdict(list)
    for name, opener in bench.each("one payment at a time", bench.sizes.lone_rounds):
        with devnet() as chain, opened(chain, opener) as market:
            market.pay(1, 5)
            paid[name].append(market.pay(1, bench.sizes.lone))
    row.cells = {name: _cell(median(tally.p50_ms for tally in tallies), tallies) for name, tallies in paid.items()}
    with devnet() as chain:
        row.cells["limit"] = Cell(chain_limit.lone_ms(chain, Purse(chain), bench.sizes.lone))
    return [row]


def busy(bench: Bench) -> list[Row]:
    """Speed, gas and memory of the same load."""
    speed = Row(f"{BUYERS} buyers at once, payments/s", 400, True)
    gas = Row(f"gas for a gig, {BUYERS} at once", 115_000, False)
    memory = Row("memory after that, all processes, MB", 110, False)
    paid: Tallies = defaultdict(list)
    for name, opener in bench.each(f"{BUYERS} buyers", bench.sizes.busy_rounds):
        with devnet() as chain, opened(chain, opener) as market:
            market.pay(BUYERS, BUYERS)
            before = _head(chain)
            paid[name].append(tally := market.pay(BUYERS, bench.sizes.busy))
            gas.cells[name] = Cell(_gas_since(chain, before) / max(tally.good + tally.unserved, 1))
            memory.cells[name] = Cell(market.shop.memory_mb)
    speed.cells = {name: _cell(median(tally.rate for tally in tallies), tallies) for name, tallies in paid.items()}
    with devnet() as chain, opened(chain, _bare("bare_starlette")) as market:
        limit = chain_limit.payments_a_second(chain, Purse(chain), BUYERS, bench.sizes.batches)
        speed.cells["limit"] = Cell(limit)
        memory.cells["limit"] = Cell(market.shop.memory_mb)
    return [speed, gas, memory]


def _head(chain: Chain) -> int:
    return int(chain.rpc("eth_blockNumber"), 16)


def _gas_since(chain: Chain, block: int) -> int:
    numbers = range(block + 1, _head(chain) + 1)
    return sum(int(chain.rpc("eth_getBlockByNumber", hex(number), False)["gasUsed"], 16) for number in numbers)


def crowd(bench: Bench) -> list[Row]:
    row = Row(f"{CROWD} at once, a block every {BLOCK_TIME_S} s, payments/s", 140, True)
    most = (int(bench.sizes.crowd_s / BLOCK_TIME_S) + 2) * CROWD
    for name, opener in bench.each(f"{CROWD} buyers", 1, **bench.ours(relayers=RELAYERS)):
        with devnet("--block-time", str(BLOCK_TIME_S)) as chain, opened(chain, opener) as market:
            paid = market.pay(CROWD, most, bench.sizes.crowd_s)
            row.cells[name] = _cell(paid.rate, [paid])
    row.cells["limit"] = Cell(CROWD / BLOCK_TIME_S)
    return [row]


# Calls to the node


def calls(bench: Bench) -> list[Row]:
    served = Row("JSON-RPC calls until a lone buyer has the gig", 3, False)
    alone = Row("JSON-RPC calls in all for a payment, alone", 3, False)
    together = Row(f"JSON-RPC calls for a payment, {BUYERS} at once", 0.3, False)
    for name, opener in bench.each("calls"):
        with devnet() as chain, counted(chain) as relay, opened(chain, opener, relay.chain) as market:
            market.calls = relay.calls.total
            market.pay(1, 3)
            idle = _idle_calls(relay, bench.sizes.idle_s)
            # Each alone: the next one pays when the shop is done with the one before.
            alone.cells[name] = _calls(market, relay, idle, 1, [1] * bench.sizes.calls_alone)
            served.cells[name] = replace(alone.cells[name], value=alone.cells[name].more["until_served"])
            together.cells[name] = _calls(market, relay, idle, BUYERS, [bench.sizes.calls_together])
    return [served, alone, together]


def _idle_calls(relay: Relay, seconds: float) -> float:
    """A second, when nobody buys anything."""
    relay.calls.clear()
    time.sleep(seconds)
    return relay.calls.total() / seconds


def _calls(market: Market, relay: Relay, idle: float, buyers: int, shares: Sequence[int]) -> Cell:
    """Until the last reward is in its wallet, without those that would have been made anyhow."""
    relay.calls.clear()
    started = time.monotonic()
    tallies = [market.pay(buyers, share) for share in shares]
    asked = relay.calls.total() - idle * (time.monotonic() - started)
    each = {name: number / sum(shares) for name, number in relay.calls.most_common()}
    until_served = median(tally.calls / share for tally, share in zip(tallies, shares, strict=True))
    return _cell(asked / sum(shares), tallies, until_served=until_served, idle_per_s=idle, **each)


# Starting


def start(bench: Bench) -> list[Row]:
    """The first start of each has a new ledger."""
    row = Row("from start to the first 402, s", 0.6, False, ("peer", 1.1))
    took: dict[str, list[float]] = defaultdict(list)
    with devnet() as chain, ExitStack() as stack:
        folders: dict[str, Path] = defaultdict(lambda: stack.enter_context(folder_of_its_own()))
        for name, opener in bench.each("start", 1 + bench.sizes.starts, limit=_bare("bare_starlette")):
            took[name].append(_started(chain, opener, folders[name]))
    for name, (fresh, *again) in took.items():
        row.cells[name] = Cell(median(again), more={"with_a_new_ledger": fresh})
    return [row]


def _started(chain: Chain, opener: Opener, folder: Path) -> float:
    with opener(chain, folder) as shop:
        return shop.wait()


# Many processes


def processes(bench: Bench) -> list[Row]:
    """On a PostgreSQL that waits for its disk, as SQLite does; buyers go to each process in turn."""
    rows = []
    with servers.postgres(LASTING) as database:
        for count in range(1, bench.sizes.processes + 1):
            what = f"{count} process{'es' if count > 1 else ''} on PostgreSQL"
            price, payments = Row(f"{what}: 402s/s", 0, True), Row(f"{what}: payments/s", 0, True)
            for name, checkout in bench.checkouts.items():
                bench.progress(f"{what}: {name}")
                opener = shops.ours(checkout, count, database_url=database.database(), relayers=RELAYERS)
                with devnet() as chain, opened(chain, opener) as market:
                    asked = market.ask(bench.sizes.unpaid_s)
                    market.pay(BUYERS, BUYERS)
                    paid = market.pay(BUYERS, bench.sizes.busy)
                price.cells[name] = _cell(asked.rate, [asked])
                payments.cells[name] = _cell(paid.rate, [paid])
            rows += [price, payments]
    return rows


ROWS: dict[str, Callable[[Bench], list[Row]]] = {
    "unpaid": unpaid,
    "lone": lone,
    "busy": busy,
    "crowd": crowd,
    "calls": calls,
    "start": start,
    "processes": processes,
}
