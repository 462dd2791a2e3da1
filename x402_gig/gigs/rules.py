"""What gigs cost and how large they may be: rule sets that follow one another, and those that count at the moment."""

import math
import time
from collections.abc import Sequence

from msgspec import Struct

from x402_gig.errors import Unavailable
from x402_gig.gigs.pricing import Price


class RuleSet(Struct, frozen=True):
    """In force from `valid_from` (Unix seconds, by the ledger's clock) until the next one is.

    The commission is in hundredths of a percent of the reward, rewards are in base units of USDC.
    """

    set_id: int
    valid_from: int
    commission_bps: int
    minimum_reward: int
    maximum_reward: int

    @property
    def minimum_price_units(self) -> int:
        """The least that anything costs, commission included."""
        return Price.of(self.minimum_reward, self.commission_bps).total_units


class Rules:
    """The rule sets that count. `market.following` keeps them up to date, so that no request reads the ledger."""

    def __init__(self, current: RuleSet) -> None:
        self._current = current
        self._good_until = math.inf
        self._others: Sequence[tuple[RuleSet, float]] = ()

    @property
    def current(self) -> RuleSet:
        """The one in force, by which prices are quoted. Raises Unavailable when another may be by now."""
        if time.monotonic() > self._good_until:
            raise Unavailable("The prices cannot be read from the ledger right now")
        return self._current

    @property
    def others(self) -> Sequence[RuleSet]:
        """Not in force, but a price by one of these may have been quoted, here or by another server."""
        if not self._others:
            return ()
        now = time.monotonic()
        return [rules for rules, since in self._others if since <= now]

    def follow(self, current: RuleSet, others: Sequence[tuple[RuleSet, float]], good_until: float) -> bool:
        """Take what the ledger says, up to `good_until`; is another one in force than before?

        Each of the `others` may be quoted by since the time beside it. Times are those of `time.monotonic()`.
        """
        is_new = current != self._current
        self._current, self._others, self._good_until = current, others, good_until
        return is_new
