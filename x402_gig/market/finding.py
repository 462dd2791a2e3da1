"""Gigs as anybody, or the holder of one API key, may see them."""

from datetime import datetime

from msgspec import Struct

from x402_gig.evm.wallets import MAX_GIG_ID
from x402_gig.gigs.listing import GigQuery, Page
from x402_gig.gigs.records import GigRecord
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.gigs import find_gig, list_gigs


class Finder(Struct, frozen=True):
    """Gigs that are not started are found only with the key that created them."""

    ledger: Ledger

    async def find(self, gig_id: int, key_id: int | None = None) -> GigRecord | None:
        """Raises Unavailable."""
        if not 0 < gig_id <= MAX_GIG_ID:
            return None
        return await self.ledger.read(lambda c: find_gig(c, gig_id, key_id))

    async def list(self, wanted: GigQuery, now: datetime, key_id: int | None = None) -> Page:
        """Raises Unavailable."""
        return await self.ledger.read(lambda c: list_gigs(c, wanted, int(now.timestamp()), key_id))
