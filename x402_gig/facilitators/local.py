"""The local facilitator: buyers' authorizations, simulated together, executed in batches by our own relayers."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from x402_gig.chainsync.head import Head
from x402_gig.errors import (
    ChainRefused,
    ChainUnavailable,
    CommitUnknown,
    GigError,
    LeaseLost,
    PaymentConflict,
    Unavailable,
)
from x402_gig.evm import batcher
from x402_gig.evm.node import Node
from x402_gig.facilitators.simulation import (
    Again,
    Lane,
    NeedsContractLane,
    NotNow,
    Passes,
    Used,
    Verdict,
    lane_of,
    simulate,
    transfer_call,
)
from x402_gig.ledger import payments, reservations
from x402_gig.ledger.engine import AGAIN_S, Connection, Ledger
from x402_gig.ledger.payments import Reservation
from x402_gig.logs import PaymentLog
from x402_gig.payments.checkout import STILL_SETTLING, Known
from x402_gig.payments.order import Order
from x402_gig.payments.outcome import Outcome, Rejected, Settled, Unknown
from x402_gig.payments.payment import Payment, PaymentKey
from x402_gig.relaying.leases import Leases
from x402_gig.relaying.relayer import Batch, Relayer
from x402_gig.settlement.late_orders import Claims
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.work import Work

log = logging.getLogger(__name__)


# Requests share an item only when payment, signature and terms are all the same: a copy with a forged signature
# must not get the genuine one's answer, nor the other way round.
Identity = tuple[PaymentKey, bytes, str]

MAX_TURNS = 5
# From here on a block takes long, and a batch is large.
LONG_S = 0.5
MANY = 10
# A transaction that took longer was stuck.
BLOCK_S = 2
# Shares of the time that a block takes.
NO_MORE_COME = 0.15
GATHERING = 0.4
BATCH_GAS = 64_000  # of a batch besides its calls


@dataclass(eq=False)
class Item:
    """A payment on its way.

    `waiters` are the requests that want to know; `is_left`: to another process; `is_in_doubt`: it may be in the ledger.
    """

    key: PaymentKey
    payment: Payment
    order: Order
    lane: Lane
    future: "asyncio.Future[Outcome]"
    waiters: int = 0
    payment_id: int | None = None
    turns: int = 0
    queued_at: float = 0.0
    is_left: bool = False
    is_in_doubt: bool = False

    @property
    def identity(self) -> Identity:
        return self.key, self.payment.signature, self.order.fingerprint

    def reservation(self) -> Reservation:
        return Reservation(self.key, self.payment, self.order, abandoned=self.waiters == 0)

    def finish(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: GigError) -> None:
        """Nothing was sent, or that is not known: a payment that is written down may have been sent before."""
        if self.payment_id is not None and isinstance(error, Unavailable):
            self.finish(Unknown(STILL_SETTLING))
        elif not self.future.done():
            self.future.set_exception(error)


class LocalFacilitator:
    """`payments.checkout.Facilitator`, and the dispatcher's queue of deposits."""

    def __init__(
        self, node: Node, ledger: Ledger, settling: Settling, claims: Claims, work: Work, head: Head, leases: Leases
    ) -> None:
        self._node = node
        self._leases = leases
        self._head = head
        self._ledger = ledger
        self._settling = settling
        self._claims = claims
        self._to_do = work
        self._items: dict[Identity, Item] = {}
        self._queues: dict[Lane, deque[Item]] = {lane: deque() for lane in Lane}
        self._tasks: set[asyncio.Task[None]] = set()
        self._largest = batcher.MAX_BATCH
        self._batch_size = 0

    async def prepare(self) -> None:
        """Nothing: a start looks at the chain and the relayers anyway."""

    async def close(self) -> None:
        """Nothing is open."""

    async def settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        self._settling.check_selling()
        return await self._wait(self._item(key, payment, order))

    async def resume(self, payment_id: int) -> Outcome:
        wanted = await self._ledger.read(lambda c: payments.find_open(c, payment_id))
        if wanted is None:  # final, or a relayer is at it
            return await self._settling.wait(payment_id)
        if await self._ledger.read(lambda c: payments.is_exhausted(c, payment_id)):
            return Unknown(STILL_SETTLING)
        item = self._item(wanted.key, wanted.payment, wanted.order)
        item.payment_id = payment_id
        return await self._wait(item)

    async def abandon(self, payment_id: int) -> None:
        await self._settling.abandon(payment_id)

    def can_send(self) -> bool:
        return self._leases.can_send

    async def resend(self, payment_id: int, wanted: Reservation) -> None:
        item = self._item(wanted.key, wanted.payment, wanted.order)
        item.payment_id = payment_id
        if item.is_left:  # by us, and now there is a relayer here
            item.is_left = False
            self._enqueue(item)

    def _item(self, key: PaymentKey, payment: Payment, order: Order) -> Item:
        future = asyncio.get_running_loop().create_future()
        new = Item(key, payment, order, lane_of(self._node, payment), future)
        if (under_way := self._items.get(new.identity)) is not None:
            return under_way
        self._items[new.identity] = new
        future.add_done_callback(lambda done: self._retire(new, done))
        self._enqueue(new)
        return new

    def _retire(self, item: Item, done: "asyncio.Future[Outcome]") -> None:
        del self._items[item.identity]
        # Looked at here, so that a failure with nobody left to see it is not reported as forgotten.
        outcome = Unknown(STILL_SETTLING) if done.exception() else done.result()
        self._settling.left.discard(item.key)
        payment_id = outcome.payment_id if isinstance(outcome, Settled) else item.payment_id
        if payment_id is None:
            return
        if isinstance(outcome, Unknown):
            self._settling.tell(payment_id, outcome)
        if item.waiters == 0 and item.payment_id is None:
            # Settled without being sent; a payment that was sent got its mark when its last waiter left.
            self._spawn(self._settling.abandon(payment_id))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _enqueue(self, item: Item) -> None:
        item.queued_at = time.monotonic()
        self._queues[item.lane].append(item)
        self._to_do.has_come()

    async def _wait(self, item: Item) -> Outcome:
        item.waiters += 1
        self._settling.left.discard(item.key)
        try:
            outcome = await asyncio.shield(item.future)
        except asyncio.CancelledError:
            item.waiters -= 1
            if item.waiters == 0:
                await self._leave_alone(item)
            raise
        except GigError:
            item.waiters -= 1
            raise
        item.waiters -= 1
        if isinstance(outcome, Unknown):
            # On disk before the buyer hears of it: the next signature may follow at once.
            await self._settling.abandon(item.payment_id or item.key)
        return outcome

    async def _leave_alone(self, item: Item) -> None:
        if item.payment_id is not None or item.is_in_doubt:
            await asyncio.shield(self._settling.abandon(item.payment_id or item.key))

    def waits(self) -> bool:
        return any(self._queues.values())

    def gathers(self) -> bool:
        """Where a block takes long and many pay, they share transactions: a relayer has room for one in a block."""
        queues = [queue for queue in self._queues.values() if queue]
        waiting, block_s = max(map(len, queues)), min(self._head.inclusion_s, BLOCK_S)
        if block_s < LONG_S or max(waiting, self._batch_size) < MANY or waiting >= self._largest:
            return False
        now = time.monotonic()
        oldest, newest = min(q[0].queued_at for q in queues), max(q[-1].queued_at for q in queues)
        until = min(newest + block_s * NO_MORE_COME, oldest + block_s * GATHERING)
        if now >= until:
            return False
        asyncio.get_running_loop().call_later(until - now, self._to_do.has_come)
        return True

    async def run(self, relayer: Relayer) -> None:
        await self._work(partial(self._send, relayer))

    async def leave(self) -> None:
        await self._work(self._write_down_for_others)

    def refuse(self) -> None:
        for queue in self._queues.values():
            while queue:
                queue.popleft().fail(Unavailable("This server cannot sell right now: its relayers are out of gas"))

    async def _work(self, send: Callable[[Sequence[Item], Lane], Awaitable[None]]) -> None:
        """Simulate what waits and `send` what would settle."""
        # The newest block that is known, which may be ahead of the cursor: a block may have become smaller.
        max_gas = min(batcher.MAX_TRANSACTION_GAS, (await self._head.newest()).gas_limit)
        lane = min((lane for lane in Lane if self._queues[lane]), key=lambda lane: self._queues[lane][0].queued_at)
        items = self._take(lane, max_gas - BATCH_GAS)
        again: list[Item] = []
        try:
            passing = await self._sift(items, lane, again)
            if passing:
                await send(passing, lane)
        except LeaseLost:
            # Whoever has the relayer now finishes what is written down, and the rest can wait for another.
            for item in items:
                if not item.future.done():
                    self._enqueue(item)
            raise
        except Exception as exc:
            # Whatever went wrong, a request waits: what is written down is open, the rest was not sent.
            for item in items:
                if item.is_in_doubt:
                    continue  # see `_find_out` and `_follow`
                if item.payment_id is None and isinstance(exc, Unavailable):
                    item.fail(exc)
                else:
                    item.finish(Unknown(STILL_SETTLING))
            raise
        for item in again:
            self._enqueue(item)

    def _take(self, lane: Lane, max_gas: int) -> list[Item]:
        """What fits one transaction, oldest first; of the same payment at most one."""
        queue = self._queues[lane]
        taken: dict[PaymentKey, Item] = {}
        copies: list[Item] = []
        gas = data = 0
        while queue and len(taken) < self._largest:
            item = queue.popleft()
            if item.waiters == 0 and item.payment_id is None:
                item.fail(Unavailable("Nobody waits for this payment, so it was not sent"))
            if item.future.done():
                continue
            if item.key in taken:
                copies.append(item)
                continue
            call = transfer_call(item.payment, lane)
            gas += batcher.place_gas(call) + batcher.call_gas(lane.call_gas)
            data += len(call) + 96
            if taken and (gas > max_gas or data > batcher.MAX_CALLDATA_BYTES):
                queue.appendleft(item)
                break
            taken[item.key] = item
        queue.extendleft(reversed(copies))
        return list(taken.values())

    async def _sift(self, items: Sequence[Item], lane: Lane, again: list[Item]) -> list[Item]:
        """The items that would settle now; the others get their answer, or another turn after this batch."""
        verdicts = await self._simulate(items, lane)
        for item, verdict in zip(items, verdicts, strict=True):
            self._answer(item, verdict, again)
        return [item for item, verdict in zip(items, verdicts, strict=True) if isinstance(verdict, Passes)]

    async def _simulate(self, items: Sequence[Item], lane: Lane) -> list[Verdict]:
        try:
            return await simulate(self._node, [item.payment for item in items], lane)
        except ChainRefused as refused:
            if len(items) == 1:
                log.warning("a payment cannot be simulated: %s", refused.detail)
                return [Again()]
        middle = len(items) // 2
        halves = items[:middle], items[middle:]
        return [verdict for half in halves for verdict in await self._simulate(half, lane)]

    def _answer(self, item: Item, verdict: Verdict, again: list[Item]) -> None:
        if isinstance(verdict, NeedsContractLane):
            item.lane = Lane.CONTRACT
            self._enqueue(item)
        elif isinstance(verdict, Again):
            item.turns += 1
            if item.turns < MAX_TURNS:
                again.append(item)
            else:
                item.fail(ChainUnavailable("The payment cannot be simulated right now"))
        elif isinstance(verdict, Used):
            self._spawn(self._claim(item, verdict))
        elif isinstance(verdict, NotNow):
            item.fail(Unavailable(verdict.detail)) if item.payment_id is None else item.finish(Unknown(verdict.detail))
        elif isinstance(verdict, Rejected):
            # One that was sent before is not rejected by a simulation: its authorization may still live.
            item.finish(verdict if item.payment_id is None else Unknown(STILL_SETTLING))

    async def _claim(self, item: Item, used: Used) -> None:
        try:
            with self._writing([item]):
                outcome = await self._claims.claim(item.reservation(), used.block_number)
        except GigError as exc:
            item.fail(exc)
        else:
            item.finish(outcome)
            if item.payment_id is not None:
                self._settling.tell(item.payment_id, outcome)

    async def _send(self, relayer: Relayer, items: Sequence[Item], lane: Lane) -> None:
        sent: dict[PaymentKey, int] = {}
        await self._settling.mark_left()
        with self._writing(items):
            slot = await relayer.write_down("deposit", lambda c: self._plan(c, items, lane, sent))
        for item in items:
            self._expect(item, sent.get(item.key))
        if slot is None:
            return
        self._batch_size = len(sent)
        receipt = await relayer.finish(slot)
        ours = [item for item in items if item.key in sent]
        if receipt is not None and receipt.success:
            self._largest = batcher.MAX_BATCH
            moved = {(t.payer, t.nonce) for t in receipt.transfers}
            for item in ours:
                if (item.key.payer, item.key.nonce) not in moved:
                    # It passed the simulation and failed on chain: its authorization lives on.
                    PaymentLog(log, sent[item.key]).warning("failed in %s and stays open", receipt.transaction)
                    item.finish(Unknown(STILL_SETTLING))
        else:
            self._largest = max(1, len(ours) // 2)
            log.error("a batch of %d did not go through: trying again with %d at most", len(ours), self._largest)
            for item in ours:
                self._enqueue(item)

    async def _write_down_for_others(self, items: Sequence[Item], _: Lane) -> None:
        """Whoever has a relayer finds them in the ledger: see `Reconciler.resend`."""
        await self._settling.mark_left()
        with self._writing(items):
            wanted = [item.reservation() for item in items]
            left = await self._ledger.write_surely(lambda c: reservations.leave(c, wanted))
        for item in items:
            item.is_left = item.key in left
            self._expect(item, left.get(item.key))

    def _expect(self, item: Item, payment_id: int | None) -> None:
        if payment_id is not None:
            item.payment_id, item.is_in_doubt = payment_id, False
            self._settling.expect(payment_id, item.future)
            if item.key in self._settling.left:
                self._settling.left.discard(item.key)
                self._spawn(self._settling.abandon(payment_id))
        else:
            self._spawn(self._follow(item))

    async def _follow(self, item: Item) -> None:
        """Another process, or an earlier request, has this payment: its outcome is ours, if the terms are."""
        try:
            self._join(item, await self._ledger.read(lambda c: payments.find(c, item.key)))
            await self._settling.tell_known()
        except Unavailable:
            item.finish(Unknown(STILL_SETTLING))

    def _join(self, item: Item, known: Known | None) -> None:
        """Wait for the outcome of the payment that the ledger has for this item."""
        if known is None:
            item.fail(Unavailable("The payment could not be written down"))
            return
        try:
            known.check_terms(item.order)
        except PaymentConflict as exc:
            item.fail(exc)
        else:
            self._expect(item, known.payment_id)

    @contextmanager
    def _writing(self, items: Sequence[Item]) -> Iterator[None]:
        """The items may be in the ledger from here on: in doubt until `_expect` or an error that tells."""
        for item in items:
            item.is_in_doubt = True
        try:
            yield
        except Exception as exc:
            if isinstance(exc, CommitUnknown) or not isinstance(exc, GigError):
                self._spawn(self._find_out(items))
            else:
                for item in items:
                    item.is_in_doubt = False
            raise

    async def _find_out(self, items: Sequence[Item]) -> None:
        """The answer to a commit was lost: ask the ledger what became of it before any buyer is told."""
        found: list[tuple[Known | None, bool]] = []
        while not found:
            try:
                # Written, not read: then it waits for the end of the transaction whose answer was lost.
                found = await self._ledger.write(lambda c: [_look(c, item.key) for item in items])
            except Unavailable:
                await asyncio.sleep(AGAIN_S)
        for item, (known, is_carried) in zip(items, found, strict=True):
            self._join(item, known)
            if not is_carried and not item.future.done():
                self._enqueue(item)  # it was in the ledger before, and this transaction was to send it again

    def _plan(
        self, connection: Connection, items: Sequence[Item], lane: Lane, sent: dict[PaymentKey, int]
    ) -> Batch | None:
        sent.update(reservations.reserve(connection, [item.reservation() for item in items]))
        ours = [item for item in items if item.key in sent]
        if not ours:
            return None
        calls = [transfer_call(item.payment, lane) for item in ours]
        data = batcher.execute_data(self._node.token.address, lane.call_gas, calls)
        return Batch(data, batcher.batch_gas(data, lane.call_gas, len(calls)), payment_ids=list(sent.values()))


def _look(connection: Connection, key: PaymentKey) -> tuple[Known | None, bool]:
    """What the ledger has of a payment, and whether nothing is left to be sent."""
    known = payments.find(connection, key)
    return known, known is None or payments.find_open(connection, known.payment_id) is None
