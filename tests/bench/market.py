"""A shop with its buyers: what they ask, what they pay, and what became of their money."""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.bench import load
from tests.bench.load import Tally, post
from tests.bench.payments import Purse, paid_requests, questions
from tests.bench.shops import Opener, Shop
from tests.support.harness import CREATE, Chain, Json

BUYERS = 64
# So much of the time that is measured is asked before, unmeasured.
WARM_UP = 0.25


@dataclass
class Market:
    """20 payers with USDC on `chain`, and a shop that answers. `calls` is how many it has made of its node."""

    chain: Chain
    shop: Shop
    calls: Callable[[], int] = lambda: 0

    @cached_property
    def purse(self) -> Purse:
        return Purse(self.chain)

    @cached_property
    def requirements(self) -> Json:
        return self.shop.quote()

    def ask(self, seconds: float) -> Tally:
        """The price of this and that, by 64 buyers at once."""
        asked = itertools.cycle([post(self.shop.addresses[0], CREATE, body) for body in questions()])
        load.run(self.shop.addresses, asked, buyers=BUYERS, wanted=402, seconds=WARM_UP * seconds)
        cpu_s = self.shop.cpu_s
        tally = load.run(self.shop.addresses, asked, buyers=BUYERS, wanted=402, seconds=seconds)
        tally.cpu_s = self.shop.cpu_s - cpu_s
        return tally

    def pay(self, buyers: int, payments: int, seconds: float | None = None) -> Tally:
        """So many payments, signed before the clock starts; it returns when the shop is done with all of them."""
        headers = self.purse.sign(self.requirements, payments)
        requests = paid_requests(self.shop.addresses[0], CREATE, headers)
        spent, cpu_s, calls = self.purse.spent_units(), self.shop.cpu_s, self.calls()
        tally = load.run(self.shop.addresses, requests, buyers=buyers, wanted=200, seconds=seconds)
        tally.calls = self.calls() - calls
        self.shop.drain(self.chain, self.requirements["payTo"])
        tally.cpu_s = self.shop.cpu_s - cpu_s
        charged, rest = divmod(self.purse.spent_units() - spent, int(self.requirements["amount"]))
        assert rest == 0, "a payer paid something else than the price"
        tally.unserved = charged - tally.good
        return tally


@contextmanager
def opened(chain: Chain, opener: Opener, through: Chain | None = None) -> Iterator[Market]:
    """A new shop, with its buyers; it may see the chain `through` something that they do not."""
    with folder_of_its_own() as folder, reopened(chain, opener, folder, through) as market:
        yield market


@contextmanager
def reopened(chain: Chain, opener: Opener, folder: Path, through: Chain | None = None) -> Iterator[Market]:
    """The shop that has its files in `folder`."""
    with opener(through or chain, folder) as shop:
        shop.wait()
        yield Market(chain, shop)


@contextmanager
def folder_of_its_own() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="x402-gig-bench-") as name:
        yield Path(name)
