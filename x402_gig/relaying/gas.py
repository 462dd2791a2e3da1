"""The relayers' gas money: what a start needs, which relayer is short, and how long it lasts at the present rate."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from x402_gig.errors import CannotStart
from x402_gig.relaying.relayer import WEI, Relayer

# A gig that is bought alone: deposit, reward and its share of a commission, in Circle's USDC.
GIG_GAS = 260_000
GIGS = 1000
LOOK_S = 10
# What was spent in the last hour is spread over ten minutes at least, or one gig would be taken for a stream of them.
WINDOW_S = 3600
LEAST_S = 600
WARN_S = 12 * 3600


async def check_gas(relayers: Sequence[Relayer], deployment: int) -> None:
    """A relayer can pay for the batcher's `deployment`, in gas, and keeps its reserve. Raises CannotStart if none can.

    The figure that is named lasts for a thousand gigs.
    """
    reserve, price = await relayers[0].gas_reserve(), (await relayers[0].market()).max_fee
    held = [await relayer.gas_wei() for relayer in relayers]
    if max(held) >= reserve + deployment * price:
        return
    parts = {
        "that stay in reserve": reserve,
        "to deploy the batcher": deployment * price,
        f"for {GIGS:,} gigs": GIGS * GIG_GAS * price,
    }
    named = ", ".join(f"{_ether(wei)} {what}" for what, wei in parts.items() if wei)
    raise CannotStart(
        [
            f"No relayer has enough gas: {relayer.wallet.address} holds {_ether(wei)} ETH, send it "
            f"{_ether(sum(parts.values()) - wei)} ETH to have {named}"
            for relayer, wei in zip(relayers, held, strict=True)
        ]
    )


def _ether(wei: int) -> str:
    return f"{Decimal(wei) / WEI:.6f}"


@dataclass
class GasMoney:
    """Of all relayers together. `problem`: none can pay; `warning`: some cannot, or the others cannot for long."""

    relayers: Sequence[Relayer]
    clock: Callable[[], float] = time.monotonic
    problem: str = field(default="", init=False)
    warning: str = field(default="", init=False)
    _held: Sequence[int] = field(default=(), init=False)
    # When it was looked at, and what had been spent until then, in wei since the first look.
    _spent: deque[tuple[float, int]] = field(default_factory=deque, init=False)
    _until: float = field(default=0.0, init=False)

    async def look(self) -> None:
        """At most every ten seconds, and at once while there is a problem. Raises Unavailable."""
        if self.clock() < self._until:
            return
        reserve = await self.relayers[0].gas_reserve()
        held = await asyncio.gather(*(relayer.gas_wei() for relayer in self.relayers))
        reports = [
            f"relayer {relayer.wallet.address} holds {_ether(wei)} ETH and needs {_ether(reserve)}"
            for relayer, wei in zip(self.relayers, held, strict=True)
            if wei < reserve
        ]
        self._note(held)
        all_short = len(reports) == len(held)
        self.problem = "; ".join(reports) if all_short else ""
        lasting = self._lasting(sum(max(0, wei - reserve) for wei in held))
        self.warning = "" if all_short else "; ".join([*reports, *lasting])
        self._until = self.clock() if all_short else self.clock() + LOOK_S

    def _note(self, held: Sequence[int]) -> None:
        """What is less than before was spent; what is more was sent to it."""
        before = self._held or held
        spent = sum(max(0, was - now) for was, now in zip(before, held, strict=True))
        total = (self._spent[-1][1] if self._spent else 0) + spent
        self._spent.append((self.clock(), total))
        # What was spent since the last look before the window counts too: looks may be rare.
        while len(self._spent) > 1 and self._spent[1][0] <= self.clock() - WINDOW_S:
            self._spent.popleft()
        self._held = held

    def _lasting(self, to_spend: int) -> list[str]:
        """A sentence when that ends in some hours."""
        (first, before), (last, total) = self._spent[0], self._spent[-1]
        spent, seconds = total - before, max(LEAST_S, last - first)
        if to_spend * seconds >= WARN_S * spent:
            return []
        hours = to_spend * seconds / spent / 3600
        return [f"gas for {hours:.1f} h at the rate of the last hour: {_ether(to_spend)} ETH above the reserve"]
