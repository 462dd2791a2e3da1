"""Whose turn it is to start a gig: a lease in Redis where there is one (`redis_turns`), else in the ledger.

A lease only keeps two starts from doing the same work at once. That a gig is started once is the ledger's doing: a
start is written under its number (`keyed_gigs.take_turn`), and only the highest counts.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from msgspec import Struct

from x402_gig.errors import BeingProcessed, Unavailable
from x402_gig.ledger import keyed_gigs
from x402_gig.ledger.engine import Ledger

LEASE_S = 30


class Turns(Protocol):
    def take(self, gig_id: int) -> AbstractAsyncContextManager[int]:
        """Nobody else starts this gig meanwhile; gives the number to write the start under.

        Raises BeingProcessed while somebody else has the turn, and Unavailable.
        """
        ...


class LedgerTurns(Struct, frozen=True):
    ledger: Ledger

    @asynccontextmanager
    async def take(self, gig_id: int) -> AsyncIterator[int]:
        fence = await take_number(self.ledger, gig_id, LEASE_S)
        try:
            yield fence
        finally:
            with contextlib.suppress(Unavailable):  # then it ends by itself
                await self.ledger.write(lambda c: keyed_gigs.end_turn(c, gig_id, fence))


async def take_number(ledger: Ledger, gig_id: int, lease_s: int) -> int:
    """The number to write a start under. Raises BeingProcessed while somebody else has the ledger's own lease."""
    number = await ledger.write(lambda c: keyed_gigs.take_turn(c, gig_id, lease_s))
    if number is None:
        raise BeingProcessed(gig_id)
    return number
