"""Follows the rule sets in the ledger: a change of the prices reaches every server of it within seconds."""

import asyncio
import logging
import time
from dataclasses import dataclass

from x402_gig.errors import Unavailable
from x402_gig.gigs.pricing import to_tokens
from x402_gig.gigs.rules import Rules
from x402_gig.ledger import shared_settings
from x402_gig.ledger.engine import Ledger
from x402_gig.logs import Trouble

log = logging.getLogger(__name__)

FOLLOW_S = 1.0


@dataclass
class Following:
    """Keeps `rules` as the ledger has them. A price that was quoted is taken for `offer_s` seconds."""

    ledger: Ledger
    rules: Rules
    offer_s: int

    async def run(self) -> None:
        """Until cancelled. It waits for nothing but the ledger, as who asks for a price must not wait for the chain."""
        trouble = Trouble(log, "rules")
        while True:
            await asyncio.sleep(FOLLOW_S)
            try:
                await self.look()
                trouble.is_now("")
            except Unavailable as exc:
                trouble.is_now(exc.detail)

    async def look(self) -> None:
        """Raises Unavailable."""
        began = time.monotonic()
        current, others = await self.ledger.read(lambda c: shared_settings.in_force(c, self.offer_s))
        since = [(rules, began + seconds) for rules, seconds in others]
        if self.rules.follow(current, since, began + shared_settings.FRESH_S):
            log.info(
                "rule set %d: commission %d bps, rewards from %s to %s USDC",
                current.set_id,
                current.commission_bps,
                to_tokens(current.minimum_reward),
                to_tokens(current.maximum_reward),
            )
