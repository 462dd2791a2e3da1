"""Can this server sell, and how is it doing? What `readyz` and `/metrics` tell."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from x402_gig.chainsync.head import Head
from x402_gig.chainsync.watcher import Watcher
from x402_gig.errors import GigError, LedgerUnavailable, Unavailable
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.status import status
from x402_gig.metrics import Metrics
from x402_gig.relaying.gas import GasMoney
from x402_gig.settlement.settling import Settling
from x402_gig.web.api.app import Readiness

STALE_S = 30
READINESS_TTL_S = 1
MEASURE_TTL_S = 5
# Prometheus waits for ten seconds, and it must hear of a node that hangs.
LOOK_S = 5


class Health:
    """`token_problem` tells why the token would move nothing at present, and `warnings` of trouble that stops no sale.

    Empty texts are none.
    """

    def __init__(
        self,
        head: Head,
        watcher: Watcher,
        ledger: Ledger,
        settling: Settling,
        gas: GasMoney,
        metrics: Metrics,
        token_problem: Callable[[], Awaitable[str]],
        warnings: Callable[[], Awaitable[dict[str, str]]],
    ) -> None:
        self._head = head
        self._watcher = watcher
        self._ledger = ledger
        self._settling = settling
        self._gas = gas
        self._metrics = metrics
        self._token_problem = token_problem
        self._warnings = warnings
        self._readiness = Readiness({}, {})
        self._readiness_until = 0.0
        self._measured_until = 0.0
        self._looking = asyncio.Lock()

    async def readiness(self) -> Readiness:
        """At most `READINESS_TTL_S` old: strangers may ask as often as they like."""
        async with self._looking:
            if time.monotonic() > self._readiness_until:
                self._readiness = Readiness(_only_said(await self._problems()), _only_said(await self._warnings()))
                self._readiness_until = time.monotonic() + READINESS_TTL_S
        return self._readiness

    async def measure(self) -> bytes:
        """The metrics, as Prometheus reads them; gas money and open rows at most `MEASURE_TTL_S` old."""
        ready = await self.readiness()
        self._metrics.has_problems([*ready.problems, *ready.warnings])
        if time.monotonic() > self._measured_until:
            self._measured_until = time.monotonic() + MEASURE_TTL_S
            with contextlib.suppress(Unavailable):
                found = await self._ledger.read(status)
                self._metrics.is_open(found.counts, found.oldest_s)
            if "chain" not in ready.problems:
                await self._measure_gas()
        return self._metrics.exposition()

    async def _measure_gas(self) -> None:
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                for relayer in self._gas.relayers:
                    self._metrics.has_gas(relayer.wallet.address, await relayer.gas_money())

    async def _problems(self) -> dict[str, str]:
        problems = await self._look_at_chain()
        try:
            await self._ledger.read(lambda c: None)
        except GigError as exc:
            problems["database"] = exc.detail
        if problem := self._watcher.problem:
            problems[_culprit(problem)] = problem.detail
        elif time.monotonic() - self._watcher.up_to_date_at > STALE_S:
            problems["chain"] = f"no new block could be read for {STALE_S} s"
        return problems | {"halted": self._settling.halt}

    async def _look_at_chain(self) -> dict[str, str]:
        try:
            async with asyncio.timeout(LOOK_S):
                await self._head.look()
                await self._gas.look()
                return {"gas": self._gas.problem, "token": await self._token_problem()}
        except TimeoutError:
            return {"chain": f"the chain node did not answer within {LOOK_S} s"}
        except GigError as exc:
            return {_culprit(exc): exc.detail}


def _only_said(texts: dict[str, str]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if text}


def _culprit(problem: GigError) -> str:
    """The name under which `readyz` tells of it."""
    return "database" if isinstance(problem, LedgerUnavailable) else "chain"
