"""How long the reconciler's round takes on a ledger that nobody else is using: `python -m tests.bench.passes`.

Takes the settings of `x402-gig serve` and prints milliseconds.
"""

import asyncio
import time
from statistics import median

from x402_gig.ledger import shared_settings
from x402_gig.ledger.engine import Ledger
from x402_gig.server.lifecycle import close, prepare
from x402_gig.server.wiring import build
from x402_gig.settings import load
from x402_gig.settlement.reconciler import Reconciler

ROUNDS = 20


async def measure() -> float:
    settings = load()
    ledger = Ledger(settings.database_url.get_secret_value())
    server = build(settings.agreed(await ledger.read(shared_settings.settings)), ledger)
    try:
        await prepare(server)
        return 1000 * median([await _round(server.reconciler) for _ in range(ROUNDS)])
    finally:
        await close(server)
        ledger.close()


async def _round(reconciler: Reconciler) -> float:
    """Everything that `Reconciler.run` does between two pauses."""
    started = time.perf_counter()
    await reconciler.settling.tell_known()
    for task in (reconciler.reconcile, reconciler.resend, reconciler.void, reconciler.refund, reconciler.recheck):
        await task()
    return time.perf_counter() - started


if __name__ == "__main__":
    print(asyncio.run(measure()))
