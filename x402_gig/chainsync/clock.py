"""The time that authorizations are measured by is the chain's; this machine's clock may be wrong."""

import time
from dataclasses import dataclass
from datetime import UTC, datetime

from x402_gig.evm.node import Block

TOLERANCE_S = 60


@dataclass
class ChainClock:
    """Unix seconds: this machine's, corrected when it is more than a minute off the blocks.

    A chain may have no blocks for hours (a devnet), so only a block that has just come up tells the time.
    """

    offset_s: float = 0
    _newest: int | None = None

    def __call__(self) -> float:
        return time.time() + self.offset_s

    def now(self) -> datetime:
        return datetime.fromtimestamp(self(), UTC)

    def saw(self, head: Block) -> None:
        """Compare with the newest block."""
        ahead_s = head.timestamp - time.time()
        is_new = self._newest is not None and head.number > self._newest
        # No block is from the future: one that seems to be says the same as a new one.
        if is_new or ahead_s > TOLERANCE_S:
            self.offset_s = ahead_s if abs(ahead_s) > TOLERANCE_S else 0
        self._newest = head.number

    @property
    def problem(self) -> str:
        """For the operator; empty when the clocks agree."""
        if not self.offset_s:
            return ""
        direction = "behind" if self.offset_s > 0 else "ahead of"
        return f"this machine's clock is {abs(self.offset_s):.0f} s {direction} the chain's: the chain's is used"
