"""The relayers that this process may use, and whether it moves money on: see `ledger.leases`."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from msgspec.structs import replace

from x402_gig.errors import LeaseLost, Unavailable
from x402_gig.ledger import abandonment, leases
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.leases import FUNDING, Standing
from x402_gig.logs import Trouble

__all__ = ["FUNDING", "Leases"]

log = logging.getLogger(__name__)

RENEW_S = 1.0
NOTHING = Standing(0, {}, 0, 0)


@dataclass
class Leases:
    """What this process holds, as it was told at the last renewal. What counts is `check`, in the transaction.

    `relayers` are those of the whole ledger. `out_of_gas` is kept by the dispatcher. While it `is_blind`, this process
    leaves everything to the other processes.
    """

    ledger: Ledger
    relayers: Sequence[str]
    is_blind: Callable[[], bool] = lambda: False
    out_of_gas: set[str] = field(default_factory=set)
    _standing: Standing = field(default=NOTHING, init=False)
    _changed: asyncio.Event = field(default_factory=asyncio.Event, init=False)

    @property
    def process_id(self) -> int:
        return self._standing.process_id

    @property
    def processes(self) -> int:
        """How many there are, this one included."""
        return self._standing.processes

    @property
    def has_too_many(self) -> bool:
        """More relayers than its share: others wait for them."""
        return len(self._held_relayers()) > self._standing.share

    @property
    def can_send(self) -> bool:
        """A relayer is here that can pay, as far as is known."""
        return bool(self._held_relayers() - self.out_of_gas)

    @property
    def has_several(self) -> bool:
        """One may wait while another sends."""
        return len(self._held_relayers()) > 1

    def _held_relayers(self) -> set[str]:
        return {name for name in self.relayers if name in self._standing.held}

    @property
    def problem(self) -> str:
        if len(counts := self._standing.relayers) > 1:
            numbers = " and ".join(map(str, counts))
            return (
                f"the servers of this ledger have different X402_GIG_RELAYERS ({numbers}): what the relayers that only "
                "some of them know have under way waits for those"
            )
        if self.processes <= len(self.relayers):
            return ""
        return (
            f"{self.processes} servers share {len(self.relayers)} relayers, so some send nothing themselves: give each "
            f"of them X402_GIG_RELAYERS={self.processes}"
        )

    def fence(self, name: str) -> int | None:
        """The number to write under; None when this process does not hold it."""
        return self._standing.held.get(name)

    def check_known(self, name: str, fence: int | None) -> None:
        """Raises LeaseLost when it is known to be lost; that it is not lost, only `check` can tell."""
        if fence is None or fence != self.fence(name):
            raise LeaseLost(f"the lease of {name} is lost")

    def check(self, connection: Connection, name: str, fence: int | None) -> None:
        """Raises LeaseLost when somebody else may have written in this name."""
        if fence is None or not leases.is_held(connection, name, fence):
            raise LeaseLost(f"the lease of {name} is lost")

    async def changed(self) -> None:
        """Wait until leases have come or gone."""
        await self._changed.wait()

    async def run(self, renewed: Callable[[], Awaitable[None]]) -> None:
        """Renew until cancelled, and call `renewed` each time; alone on its ledger, a process has nothing to renew."""
        trouble = Trouble(log, "leases")
        while not self.ledger.is_alone:
            await asyncio.sleep(RENEW_S)
            try:
                await self._renew_or_leave(renewed)
                trouble.is_now("")
            except Unavailable as exc:
                trouble.is_now(exc.detail)

    async def _renew_or_leave(self, renewed: Callable[[], Awaitable[None]]) -> None:
        if self.is_blind() and self.processes > 1:
            await self._leave()
            return
        await self.renew()
        await renewed()

    async def renew(self) -> None:
        """Raises Unavailable."""
        before, self._standing = self._standing, await self.ledger.write(self._renew)
        now = self._standing
        if now.process_id != before.process_id and before.process_id:
            log.warning("the leases of process %d are lost; it goes on as %d", before.process_id, now.process_id)
        if now.relayers != before.relayers and len(now.relayers) > 1:
            log.warning(self.problem)
        if now.held != before.held:
            held = ", ".join(sorted(now.held)) or "nothing"
            log.info("process %d, one of %d, holds %s", now.process_id, now.processes, held)
            self._announce()

    def _renew(self, connection: Connection) -> Standing:
        is_alone = self.ledger.is_alone
        out_of_gas = () if is_alone else self.out_of_gas
        me = self.process_id or None
        standing = leases.renew(connection, me, self.relayers, out_of_gas, is_alone=is_alone)
        # Whoever waited at a process that is gone waits no more. One that starts may follow one that was killed just
        # now and still counts as alive; to take more for unanswered than there is costs nobody anything.
        if me is None:
            abandonment.mark_unanswered(connection)
        elif standing.orphaned is not None:
            abandonment.mark_unanswered(connection, standing.orphaned, leases.LEASE_S + 1)
        return standing

    async def _leave(self) -> None:
        """For others who see the chain. The next renewal begins anew."""
        if not self._standing.held:
            return
        log.warning("process %d leaves its leases to others: it does not see the chain", self.process_id)
        me, self._standing = self.process_id, replace(self._standing, held={})
        self._announce()
        await self.ledger.write(lambda c: leases.leave(c, me))

    def _announce(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def give_up(self, name: str) -> None:
        """Leave it to the others. Raises Unavailable."""
        # Known here before it is written, so that no two are given up where one is too many.
        left = {held: fence for held, fence in self._standing.held.items() if held != name}
        self._standing = replace(self._standing, held=left)
        me = self.process_id
        await self.ledger.write(lambda c: leases.give_up(c, me, name))

    async def release(self) -> None:
        """All of it, at the end: nobody has to wait for the deadline."""
        me, self._standing = self.process_id, NOTHING
        with contextlib.suppress(Unavailable):  # then it ends by itself
            await self.ledger.write(lambda c: leases.leave(c, me))
