"""Notes of what waits for a relayer: made by everybody who finds work, and waited for by the dispatcher."""

import asyncio
import contextlib
import time


class Work:
    """One for all parts of a server. To note something twice, or in vain, changes nothing."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        # Monotonic time since which money may be due to move on; None when all of it has moved.
        self.funding_since: float | None = 0.0
        # How often closed slots were opened again: each time, every relayer looks for those of its own.
        self.reopenings = 0
        # No relayer of the ledger can pay for gas.
        self.is_out_of_gas = False

    def has_come(self) -> None:
        """Something waits for a relayer."""
        self._news.set()

    def note_funding(self) -> None:
        """Money may be due to move on; the relayer that noticed it looks again by itself."""
        if self.funding_since is None:
            self.funding_since = time.monotonic()

    def funding_due(self) -> None:
        """Money may be due to move on."""
        self.note_funding()
        self.has_come()

    def slots_reopened(self) -> None:
        """Slots that were closed are open again: they come first."""
        self.reopenings += 1
        self.has_come()

    def begin_waiting(self) -> None:
        """What is noted from here on ends `wait`."""
        self._news.clear()

    async def wait(self, seconds: float) -> None:
        """Wait for the next note, but no longer than this."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._news.wait()
