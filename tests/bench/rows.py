"""The rows of the table: what is measured, and how."""

import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from tests import servers
from tests.bench import chain_limit, load, shops
from tests.bench.counting import Relay, counted
from tests.bench.load import Tally, post
from tests.bench.payments import Purse, paid_requests, questions
from tests.bench.shops import Opener, Shop
from tests.harness import CREATE, Chain, devnet

BUYERS = 64
CROWD = 300
BLOCK_TIME_S = 2
RELAYERS = 4
ODD_CHARS = 300
# PostgreSQL's defaults, but for what several servers need.
LASTING = ("max_connections=100",)


@dataclass(frozen=True)
class Sizes:
    """How much of each is measured."""

    rounds: int = 3
    unpaid_s: float = 4
    lone: int = 100
    busy: int = 1600
    crowd_s: float = 40
    starts: int = 5
    batches: int = 10
    idle_s: float = 10
    processes: int = 3
    calls: tuple[int, int] = (20, 640)


QUICK = Sizes(
    rounds=1, unpaid_s=0.5, lone=5, busy=64, crowd_s=4, starts=1, batches=1, idle_s=1, processes=1, calls=(2, 64)
)


@dataclass
class Cell:
    """One figure, and what went wrong while it was measured; `odd` is one of the answers that were not wanted."""

    value: float
    errors: int = 0
    unserved: int = 0
    more: dict[str, float] = field(default_factory=dict)
    odd: str = ""


@dataclass
class Row:
    """`cells` by who was measured: ours, peer, tuned, limit."""

    name: str
    wanted: float
    more_is_better: bool
    cells: dict[str, Cell] = field(default_factory=dict)


@dataclass
class Bench:
    """`contestants` by name; `progress` is told what is being measured."""

    contestants: dict[str, Opener]
    sizes: Sizes = Sizes()
    progress: Callable[[str], None] = lambda _: None

    @contextmanager
    def opened(self, chain: Chain, opener: Opener) -> Iterator[Shop]:
        with folder_of_its_own() as folder, opener(chain, folder) as shop:
            shop.wait()
            yield shop

    def each(self, what: str) -> Iterator[tuple[str, Opener]]:
        for name, opener in self.contestants.items():
            self.progress(f"{what}: {name}")
            yield name, opener


@contextmanager
def folder_of_its_own() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="x402-gig-bench-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


# Asking the price


def unpaid(bench: Bench) -> list[Row]:
    """All are up, and asked in turn: what else the machine does falls on each of them."""
    row = Row("unpaid 402, one process, 1/s", 13_000, True)
    rates: dict[str, list[Tally]] = {}
    one_each = {name: opener for name, opener in bench.contestants.items() if name != "tuned"}
    with devnet() as chain, folder_of_its_own() as folder:
        limits = {"limit": "bare_starlette", "bare ASGI": "bare_asgi"}
        openers = one_each | {name: _bare(app) for name, app in limits.items()}
        for _, (name, opener) in itertools.product(range(bench.sizes.rounds), openers.items()):
            bench.progress(f"402s: {name}")
            where = folder / name
            where.mkdir(exist_ok=True)
            with opener(chain, where) as shop:
                shop.wait()
                rates.setdefault(name, []).append(_ask(shop, bench.sizes.unpaid_s))
    row.cells = {name: _middle(tallies) for name, tallies in rates.items()}
    return [row]


def _bare(app: str) -> Opener:
    return lambda _, folder: shops.bare(app, folder)


def _ask(shop: Shop, seconds: float) -> Tally:
    asked = itertools.cycle([post(shop.addresses[0], CREATE, body) for body in questions()])
    load.run(shop.addresses, asked, buyers=BUYERS, wanted=402, seconds=seconds / 4)
    before = shop.cpu_s
    tally = load.run(shop.addresses, asked, buyers=BUYERS, wanted=402, seconds=seconds)
    tally.cpu_s = shop.cpu_s - before
    return tally


def _middle(tallies: Sequence[Tally]) -> Cell:
    rate = median(tally.rate for tally in tallies)
    more = {name: median(spread[name] for spread in map(_spread, tallies)) for name in _spread(tallies[0])}
    return _cell(rate, tallies, more)


# Paying


def pay(chain: Chain, shop: Shop, buyers: int, payments: int, seconds: float | None = None) -> tuple[Tally, int]:
    """What the load came to, and how many payments moved money and were not answered with their gig."""
    purse, requirements = Purse(chain), shop.quote()
    headers = purse.sign(requirements, payments)
    requests = paid_requests(shop.addresses[0], CREATE, headers)
    before = shop.cpu_s
    tally = load.run(shop.addresses, requests, buyers=buyers, wanted=200, seconds=seconds)
    shop.drain(chain, requirements["payTo"])
    tally.cpu_s = shop.cpu_s - before
    charged, rest = divmod(purse.spent_units(), int(requirements["amount"]))
    assert rest == 0, "a payer paid something else than the price"
    return tally, charged - tally.good


def _cell(value: float, tallies: Sequence[Tally], more: dict[str, float], unserved: int = 0) -> Cell:
    odd = [answer for tally in tallies for answer in tally.odd]
    shown = odd[0].decode("latin-1")[-ODD_CHARS:] if odd else ""
    return Cell(value, sum(tally.errors for tally in tallies), unserved, more, shown)


def _spread(tally: Tally) -> dict[str, float]:
    return {"p50_ms": tally.p50_ms, "p95_ms": tally.p95_ms, "cpu_ms": tally.cpu_ms}


def lone(bench: Bench) -> list[Row]:
    row = Row("one payment at a time, p50, ms", 8, False)
    for name, opener in bench.each("one payment at a time"):
        with devnet() as chain, bench.opened(chain, opener) as shop:
            pay(chain, shop, 1, 3)
            tally, unserved = pay(chain, shop, 1, bench.sizes.lone)
            row.cells[name] = _cell(tally.p50_ms, [tally], _spread(tally), unserved)
    with devnet() as chain:
        row.cells["limit"] = Cell(chain_limit.lone_ms(chain, Purse(chain), bench.sizes.lone))
    return [row]


def busy(bench: Bench) -> list[Row]:
    """Gas, memory and speed of the same load."""
    speed = Row(f"{BUYERS} buyers at once, payments/s", 400, True)
    gas = Row(f"gas for a gig, {BUYERS} at once", 115_000, False)
    memory = Row("memory after that, all processes, MB", 110, False)
    for name, opener in bench.each(f"{BUYERS} buyers"):
        with devnet() as chain, bench.opened(chain, opener) as shop:
            pay(chain, shop, BUYERS, BUYERS)
            before = _head(chain)
            tally, unserved = pay(chain, shop, BUYERS, bench.sizes.busy)
            speed.cells[name] = _cell(tally.rate, [tally], _spread(tally), unserved)
            gas.cells[name] = Cell(_gas_since(chain, before) / max(tally.good + unserved, 1))
            memory.cells[name] = Cell(shop.memory_mb)
    with devnet() as chain, folder_of_its_own() as folder, shops.bare("bare_starlette", folder) as shop:
        speed.cells["limit"] = Cell(chain_limit.payments_a_second(chain, Purse(chain), BUYERS, bench.sizes.batches))
        shop.wait()
        memory.cells["limit"] = Cell(shop.memory_mb)
    return [speed, gas, memory]


def _head(chain: Chain) -> int:
    return int(chain.rpc("eth_blockNumber"), 16)


def _gas_since(chain: Chain, block: int) -> int:
    numbers = range(block + 1, _head(chain) + 1)
    return sum(int(chain.rpc("eth_getBlockByNumber", hex(number), False)["gasUsed"], 16) for number in numbers)


def crowd(bench: Bench) -> list[Row]:
    row = Row(f"{CROWD} at once, a block every {BLOCK_TIME_S} s, payments/s", 140, True)
    for name, opener in bench.each(f"{CROWD} buyers"):
        many = shops.ours(relayers=RELAYERS) if name == "ours" else opener
        with devnet("--block-time", str(BLOCK_TIME_S)) as chain, bench.opened(chain, many) as shop:
            rounds = int(bench.sizes.crowd_s / BLOCK_TIME_S) + 2
            tally, unserved = pay(chain, shop, CROWD, rounds * CROWD, bench.sizes.crowd_s)
            row.cells[name] = _cell(tally.rate, [tally], _spread(tally), unserved)
    row.cells["limit"] = Cell(CROWD / BLOCK_TIME_S)
    return [row]


# Calls to the node


def calls(bench: Bench) -> list[Row]:
    alone = Row("JSON-RPC calls for a payment, alone", 3, False)
    together = Row(f"JSON-RPC calls for a payment, {BUYERS} at once", 0.3, False)
    for name, opener in bench.each("calls"):
        with devnet() as chain, counted(chain) as relay, bench.opened(relay.chain, opener) as shop:
            pay(chain, shop, 1, 3)
            idle = _idle_calls(relay, bench.sizes.idle_s)
            few, many = bench.sizes.calls
            alone.cells[name] = _calls(chain, shop, relay, idle, 1, few)
            together.cells[name] = _calls(chain, shop, relay, idle, BUYERS, many)
    return [alone, together]


def _idle_calls(relay: Relay, seconds: float) -> float:
    """A second, when nobody buys anything."""
    before = relay.calls.total()
    time.sleep(seconds)
    return (relay.calls.total() - before) / seconds


def _calls(chain: Chain, shop: Shop, relay: Relay, idle: float, buyers: int, payments: int) -> Cell:
    """Until the last reward is in its wallet, but for those that would have been made anyhow."""
    relay.calls.clear()
    started = time.monotonic()
    # Each alone: the next one pays when the one before is done with.
    shares = [1] * payments if buyers == 1 else [payments]
    paid = [pay(chain, shop, buyers, share) for share in shares]
    asked = relay.calls.total() - idle * (time.monotonic() - started)
    each = {name: number / payments for name, number in relay.calls.most_common()}
    tallies, unserved = [tally for tally, _ in paid], sum(number for _, number in paid)
    return _cell(asked / payments, tallies, {"idle_per_s": idle, **each}, unserved)


# Starting


def start(bench: Bench) -> list[Row]:
    row = Row("from start to the first 402, s", 0.6, False)
    with devnet() as chain:
        for name, opener in [*bench.each("start"), ("limit", _bare("bare_starlette"))]:
            with folder_of_its_own() as folder:
                fresh = _started(opener, chain, folder)
                again = median(_started(opener, chain, folder) for _ in range(bench.sizes.starts))
                row.cells[name] = Cell(again, more={"with_a_new_ledger": fresh})
    return [row]


def _started(opener: Opener, chain: Chain, folder: Path) -> float:
    with opener(chain, folder) as shop:
        return shop.wait()


# Many processes


def processes(bench: Bench) -> list[Row]:
    """On a PostgreSQL that waits for its disk, as SQLite does; buyers go to each process in turn."""
    rows = []
    with servers.postgres(LASTING) as database:
        for count in range(1, bench.sizes.processes + 1):
            what = f"{count} process{'es' if count > 1 else ''} on PostgreSQL"
            bench.progress(what)
            opener = shops.ours(count, database_url=database.database(), relayers=RELAYERS)
            with devnet() as chain, bench.opened(chain, opener) as shop:
                asked = _ask(shop, bench.sizes.unpaid_s)
                pay(chain, shop, BUYERS, BUYERS)
                paid, unserved = pay(chain, shop, BUYERS, bench.sizes.busy)
                prices = {"ours": _cell(asked.rate, [asked], _spread(asked))}
                gigs = {"ours": _cell(paid.rate, [paid], _spread(paid), unserved)}
            rows += [Row(f"{what}: 402s/s", 0, True, prices), Row(f"{what}: payments/s", 0, True, gigs)]
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
