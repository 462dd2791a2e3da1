"""What Prometheus asks for at `/metrics`. One registry for each server, so that two in one process do not mix."""

from collections.abc import Iterable, Mapping
from decimal import Decimal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64)
SIZES = (1, 2, 5, 10, 20, 50, 100, 180)
GAS = (30_000, 40_000, 50_000, 60_000, 80_000, 100_000, 150_000, 250_000, 500_000)


class Metrics:
    """Counters and histograms are kept by those who do the work; gauges are set when somebody asks."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._payments = Counter("x402_gig_payments", "Answers to payments", ["outcome", "reason"], registry=registry)
        self._answer_s = Histogram(
            "x402_gig_settlement_seconds", "From the paid request to its gig", buckets=SECONDS, registry=registry
        )
        self._batch_size = Histogram(
            "x402_gig_batch_size", "Transfers in a transaction", ["purpose"], buckets=SIZES, registry=registry
        )
        self._gas = Histogram(
            "x402_gig_gas_per_transfer", "Gas used for each transfer", ["purpose"], buckets=GAS, registry=registry
        )
        self._slots = Counter("x402_gig_slots", "Ends of transactions", ["purpose", "state"], registry=registry)
        self._actions = Counter("x402_gig_reconciler_actions", "What it did", ["action"], registry=registry)
        self._relayer = Gauge("x402_gig_relayer_balance_ether", "Gas money", ["relayer"], registry=registry)
        self._journal = Gauge("x402_gig_journal", "Rows that are not final, by state", ["state"], registry=registry)
        self._oldest = Gauge("x402_gig_oldest_open_seconds", "Age of the oldest payment not final", registry=registry)
        self._problems = Gauge("x402_gig_problem", "1 while readyz names it", ["name"], registry=registry)

    def answered(self, outcome: str, reason: str = "") -> None:
        """A buyer was told an outcome: settled, rejected, unknown, or the reason of an error."""
        self._payments.labels(outcome, reason).inc()

    def settled(self, seconds: float) -> None:
        """A new payment was settled while its buyer waited."""
        self._answer_s.observe(seconds)

    def slot_closed(self, purpose: str, state: str, transfers: int, gas_used: int) -> None:
        """A transaction of ours is on chain, with so many transfers that went through."""
        self._slots.labels(purpose, state).inc()
        if transfers:
            self._batch_size.labels(purpose).observe(transfers)
            self._gas.labels(purpose).observe(gas_used / transfers)

    def acted(self, action: str) -> None:
        """The reconciler did something about a row."""
        self._actions.labels(action).inc()

    def has_gas(self, relayer: str, ether: Decimal) -> None:
        self._relayer.labels(relayer).set(float(ether))  # Prometheus knows no other numbers

    def is_open(self, counts: Mapping[str, int], oldest_s: int) -> None:
        """How many rows of each kind are not final, and the age of the oldest such payment."""
        for state, count in counts.items():
            self._journal.labels(state).set(count)
        self._oldest.set(oldest_s)

    def has_problems(self, names: Iterable[str]) -> None:
        self._problems.clear()
        for name in names:
            self._problems.labels(name).set(1)

    def exposition(self) -> bytes:
        """The text that Prometheus reads."""
        return generate_latest(self._registry)
