"""From evidence to outcome: every transfer that the chain proves goes through `Settling.record`."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from x402_gig.errors import CommitUnknown, Unavailable
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block
from x402_gig.ledger import abandonment, chain_state, deposits, journal, keyed_gigs, movements, payments, slots
from x402_gig.ledger.deposits import Shop
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.journal import Entry
from x402_gig.logs import PaymentLog
from x402_gig.payments.checkout import STILL_SETTLING
from x402_gig.payments.outcome import Outcome, Rejected, Settled, Unknown
from x402_gig.payments.payment import PaymentKey
from x402_gig.settlement.work import Work

log = logging.getLogger(__name__)

T = TypeVar("T")


class Settling:
    """Writes evidence down, delivers what it pays for, and tells those who wait.

    It does not matter where a transfer was seen (a receipt, a block) or who sent it: recording it twice changes
    nothing. `work` is told when there may be money to move on.
    """

    def __init__(
        self, ledger: Ledger, shop: Shop, work: Work, *, intake: str, asset: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._ledger = ledger
        self._shop = shop
        self._work = work
        self._intake = intake
        self._asset = asset
        self._clock = clock
        # Why nothing new is sold and nothing of ours is signed; see `chain_state.halt_funding`.
        self.halt = ""
        self._waiting: dict[int, list[asyncio.Future[Outcome]]] = defaultdict(list)
        # Payments that nobody waits for, by id, or by key while they may be in the ledger; until they are marked.
        self.left: set[int | PaymentKey] = set()
        self._marking = asyncio.Lock()
        # Those whose marks may be written, and what the journal has of them then, once the transaction has run.
        self._in_doubt: tuple[frozenset[int | PaymentKey], list[Entry | None]] = (frozenset(), [])

    async def record(
        self, transfers: Iterable[TokenTransfer], also: Callable[[Connection], None] = lambda _: None
    ) -> dict[int, Settled]:
        """One commit: deposits, settled payments with their gigs, finished movements, and `also`."""
        # A transfer of nothing needs nobody's consent; only an authorization of the intake's shows that it signed.
        transfers = [t for t in transfers if t.value or (t.nonce and t.payer == self._intake)]
        incoming = [t for t in transfers if t.payee == self._intake != t.payer]
        outgoing = [t for t in transfers if t.payer == self._intake]
        # Commissions and surpluses leave the gigs' own wallets.
        from_gigs = [t for t in transfers if t.nonce and self._intake not in (t.payer, t.payee)]

        def work(connection: Connection) -> tuple[dict[int, Settled], list[TokenTransfer], dict[int, list[str]]]:
            also(connection)
            deposits.will_change(connection, transfers)
            moved = movements.awaited(connection, [t.nonce for t in outgoing])
            deposits.record(connection, self._asset, incoming, int(self._clock()))
            settled = deposits.settle(connection, self._shop, [t.nonce for t in incoming if t.nonce])
            strangers = movements.complete(connection, outgoing)
            movements.complete_from_gigs(connection, from_gigs)
            for stranger in strangers:
                chain_state.halt_funding(connection, _halt_reason(stranger))
            return settled, strangers, moved

        settled, strangers, moved = await self._write(work)
        for stranger in strangers:
            self._halted(_halt_reason(stranger))
        self._announce(settled)
        for payment_id, kinds in moved.items():
            PaymentLog(log, payment_id).info("moved on: its %s", " and ".join(kinds))
        if outgoing:
            self._work.funding_due()  # what a commission waited for may be on chain
        return settled

    async def forget(self, blocks: Sequence[Block]) -> int:
        """What the ledger has of other blocks of these heights is not on chain any more; the `doubts` from then on."""

        def work(connection: Connection) -> tuple[bool, int]:
            replaced = [block for block in blocks if deposits.is_replaced(connection, block.number, block.hash)]
            is_open_again = any([_forget(connection, block) for block in replaced])
            return is_open_again, chain_state.doubt(connection) if replaced else chain_state.doubts(connection)

        is_open_again, doubts = await self._write(work)
        if is_open_again:
            self._work.slots_reopened()
        return doubts

    async def close(self, payment_id: int, nonce: str, rejected: Rejected, doubts: int) -> None:
        """End an open payment that no transaction of ours carries: settled if its deposit is here, else `rejected`.

        The deposit may have been read before the payment was written down, and then nobody has matched them yet. It may
        have been undone, and not be read again yet, when there are other `doubts` than when it was looked for.
        """

        def work(connection: Connection) -> tuple[dict[int, Settled], bool]:
            settled = deposits.settle(connection, self._shop, [nonce])
            is_known = chain_state.doubts(connection) == doubts
            return settled, is_known and payments.reject(connection, payment_id, rejected)

        settled, is_rejected = await self._write(work)
        self._announce(settled)
        if is_rejected:
            PaymentLog(log, payment_id).info("rejected: %s", rejected.detail)
            self.tell(payment_id, rejected)

    async def _write(self, work: Callable[[Connection], T]) -> T:
        """`Ledger.write`. When the answer is lost, all that may follow is due: a repetition finds nothing new."""
        try:
            return await self._ledger.write(work)
        except CommitUnknown:
            self._work.funding_due()
            self._work.slots_reopened()
            raise

    def _announce(self, settled: dict[int, Settled]) -> None:
        for payment_id, outcome in settled.items():
            PaymentLog(log, payment_id).info("settled in %s", outcome.transaction)
            self.tell(payment_id, outcome)
        if settled:
            self._work.funding_due()

    async def learn_halt(self) -> None:
        """Another process may have halted the ledger, or a commit of this one whose answer was lost."""
        if not self.halt and (reason := await self._ledger.read(chain_state.funding_halt)):
            self._halted(reason)

    def _halted(self, reason: str) -> None:
        self.halt = reason
        log.critical("halted: %s", reason)

    def check_selling(self) -> None:
        """Raises Unavailable when a new deposit could not be made or passed on."""
        if self.halt:
            raise Unavailable(chain_state.NOT_SELLING)
        if self._work.is_out_of_gas:
            raise Unavailable("This server cannot sell right now: its relayers are out of gas")

    def expect(self, payment_id: int, future: "asyncio.Future[Outcome]") -> None:
        """Resolve `future` with the payment's outcome when there is one."""
        self._waiting[payment_id].append(future)

    def tell(self, payment_id: int, outcome: Outcome) -> None:
        for future in self._waiting.pop(payment_id, []):
            if not future.done():
                future.set_result(outcome)

    async def tell_known(self) -> None:
        """Tell the outcomes that another process has written down."""
        if waiting := list(self._waiting):
            known = await self._ledger.read(lambda c: payments.outcomes(c, waiting))
            for payment_id, outcome in known.items():
                self.tell(payment_id, outcome)

    async def tell_unsettled(self, payment_ids: Sequence[int]) -> None:
        """Those of these that are open were sent in vain: whoever waits should ask again."""
        known = await self._ledger.read(lambda c: payments.outcomes(c, payment_ids))
        for payment_id in payment_ids:
            self.tell(payment_id, known.get(payment_id, Unknown(STILL_SETTLING)))

    async def wait(self, payment_id: int) -> Outcome:
        """The outcome of a payment in the ledger. Cancelled while it waits, it marks the payment as abandoned."""
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.expect(payment_id, future)
        try:
            # Looked up after the future is in place: an outcome cannot slip in between.
            known = await self._ledger.read(lambda c: payments.outcomes(c, [payment_id]))
            if payment_id in known:
                self.tell(payment_id, known[payment_id])
            outcome = await future
        except asyncio.CancelledError:
            self._expect_no_more(payment_id, future)
            await asyncio.shield(self.abandon(payment_id))
            raise
        if isinstance(outcome, Unknown):
            await self.abandon(payment_id)
        return outcome

    def _expect_no_more(self, payment_id: int, future: "asyncio.Future[Outcome]") -> None:
        waiting = self._waiting[payment_id]
        if future in waiting:
            waiting.remove(future)
        if not waiting:
            del self._waiting[payment_id]

    async def abandon(self, name: int | PaymentKey) -> None:
        """Nobody waits for this payment any more: see `payments.checkout`. A mark that cannot be written is kept.

        By its key where it may be in the ledger or not.
        """
        self.leave(name)
        try:
            await self.mark_left()
        except Unavailable as exc:
            # An error here would hide what became of the payment.
            log.warning("%d payments are not marked as abandoned yet: %s", len(self.left), exc.detail)

    def leave(self, name: int | PaymentKey) -> None:
        """The next `mark_left` marks it, also where an earlier mark is in doubt."""
        self.left.add(name)
        names, written = self._in_doubt
        self._in_doubt = names - {name}, written

    async def mark_left(self) -> None:
        """Write the marks that are missing. Raises Unavailable.

        To be awaited before a payment is written down: it may be for the same terms as one that was left.
        """
        async with self._marking:  # a mark that was taken meanwhile must not be set again
            await self._find_out()
            if left := frozenset(self.left):
                self.left -= left  # whoever leaves again from here on is marked again
                await self._mark(left)

    async def _mark(self, left: frozenset[int | PaymentKey]) -> None:
        written: list[Entry | None] = []
        self._in_doubt = left, written
        try:
            await self._ledger.write(lambda c: written.append(abandonment.mark_left(c, left)))
        except BaseException:  # also when cancelled: `_find_out` tells whether they were written
            self.left |= left
            raise
        self._in_doubt = frozenset(), []

    async def _find_out(self) -> None:
        """What became of the marks in doubt; without a new one, all that were wanted had been there."""
        names, written = self._in_doubt
        if names and await self._were_written(written):
            self.left -= self._in_doubt[0]
        self._in_doubt = frozenset(), []

    async def _were_written(self, entries: Sequence[Entry | None]) -> bool:
        # Written, not read: then it waits for the end of the transaction whose answer was lost.
        return await self._ledger.write(lambda c: any(e is None or journal.has(c, e) for e in entries))


def _forget(connection: Connection, block: Block) -> bool:
    """True when slots are open again."""
    deposits.recount(connection)
    for payment_id in deposits.forget_block(connection, block.number, block.hash):
        PaymentLog(log, payment_id).warning("a reorganisation took its deposit away")
    movements.forget_block(connection, block.number, block.hash)
    keyed_gigs.forget_block(connection, block.number, block.hash)
    return slots.forget_block(connection, block.number, block.hash)


def _halt_reason(transfer: TokenTransfer) -> str:
    return (
        f"transaction {transfer.transaction} moved {transfer.value} base units out of the intake and this ledger did "
        "not sign that: an old backup, or the seed is in use elsewhere"
    )
