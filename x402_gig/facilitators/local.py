"""The local facilitator: buyers' authorizations, simulated together, executed in batches by our own relayers."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection

from x402_gig.chain import batcher
from x402_gig.chain.node import Node
from x402_gig.errors import ChainRefused, ChainUnavailable, GigError, PaymentConflict, Unavailable
from x402_gig.payments.checkout import STILL_SETTLING
from x402_gig.payments.order import Order
from x402_gig.payments.outcome import Outcome, Rejected, Unknown
from x402_gig.payments.payment import Payment, PaymentKey
from x402_gig.settlement.claims import Claims
from x402_gig.settlement.relayer import Batch, Relayer
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.simulation import (
    Again,
    Lane,
    NeedsContractLane,
    Passes,
    Used,
    Verdict,
    lane_of,
    simulate,
    transfer_call,
)
from x402_gig.store import payments
from x402_gig.store.engine import Ledger
from x402_gig.store.payments import Reservation

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Item:
    """A payment on its way. `waiters` are the requests that want to know."""

    key: PaymentKey
    payment: Payment
    order: Order
    lane: Lane
    future: "asyncio.Future[Outcome]"
    waiters: int = 0
    payment_id: int | None = None
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)

    def reservation(self) -> Reservation:
        return Reservation(self.key, self.payment, self.order, abandoned=self.waiters == 0)

    def finish(self, outcome: Outcome) -> None:
        if not self.future.done():
            self.future.set_result(outcome)

    def fail(self, error: GigError) -> None:
        """Nothing was sent."""
        if not self.future.done():
            self.future.set_exception(error)


class LocalFacilitator:
    """`payments.checkout.Facilitator`, and the dispatcher's queue of deposits."""

    def __init__(self, node: Node, ledger: Ledger, settling: Settling, claims: Claims) -> None:
        self._node = node
        self._ledger = ledger
        self._settling = settling
        self._claims = claims
        self._items: dict[PaymentKey, Item] = {}
        self._queues: dict[Lane, list[Item]] = {lane: [] for lane in Lane}
        self._largest = batcher.MAX_BATCH
        self.wake: Callable[[], None] = lambda: None

    async def settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        item = self._items.get(key)
        if item is None:
            item = self._submit(key, payment, order)
        elif item.order.fingerprint != order.fingerprint:
            raise PaymentConflict("This payment is being settled for other terms")
        return await self._wait(item)

    async def resume(self, payment_id: int) -> Outcome:
        wanted = await self._ledger.read(lambda c: payments.find_open(c, payment_id))
        if wanted is not None and wanted.key not in self._items:
            self._submit(wanted.key, wanted.payment, wanted.order).payment_id = payment_id
        return await self._settling.wait(payment_id)

    def _submit(self, key: PaymentKey, payment: Payment, order: Order) -> Item:
        future = asyncio.get_running_loop().create_future()
        item = self._items[key] = Item(key, payment, order, lane_of(self._node, payment), future)
        future.add_done_callback(lambda done: self._retire(item, done))
        self._enqueue(item)
        return item

    def _retire(self, item: Item, done: "asyncio.Future[Outcome]") -> None:
        del self._items[item.key]
        # Looked at here, so that a failure with nobody left to see it is not reported as forgotten.
        failed = done.exception()
        if item.payment_id is not None and (failed or isinstance(done.result(), Unknown)):
            self._settling.tell(item.payment_id, Unknown(STILL_SETTLING))

    def _enqueue(self, item: Item) -> None:
        self._queues[item.lane].append(item)
        self.wake()

    async def _wait(self, item: Item) -> Outcome:
        item.waiters += 1
        try:
            outcome = await asyncio.shield(item.future)
        except asyncio.CancelledError:
            if item.waiters == 1 and item.payment_id is not None:
                await asyncio.shield(self._settling.abandon(item.payment_id))
            raise
        finally:
            item.waiters -= 1
        if isinstance(outcome, Unknown) and item.payment_id is not None:
            await self._settling.abandon(item.payment_id)
        return outcome

    def waits(self) -> bool:
        return any(self._queues.values())

    async def run(self, relayer: Relayer) -> None:
        lane = next(lane for lane in Lane if self._queues[lane])
        items = self._take(lane)
        try:
            passing = await self._sift(items, lane)
            if passing:
                await self._send(relayer, passing, lane)
        except Exception as exc:
            # Whatever went wrong, a request waits: what is written down is open, the rest was not sent.
            for item in items:
                if item.payment_id is None and isinstance(exc, Unavailable):
                    item.fail(exc)
                else:
                    item.finish(Unknown(STILL_SETTLING))
            raise

    def _take(self, lane: Lane) -> list[Item]:
        queue = self._queues[lane]
        taken: list[Item] = []
        gas = data = 0
        while queue and len(taken) < self._largest:
            call = transfer_call(queue[0].payment, lane)
            gas += lane.call_gas * 64 // 63 + 3_000 + 10 * (4 * len(call))
            data += len(call) + 96
            if taken and (gas > batcher.MAX_TRANSACTION_GAS - 100_000 or data > batcher.MAX_CALLDATA_BYTES):
                break
            taken.append(queue.pop(0))
        return taken

    async def _sift(self, items: Sequence[Item], lane: Lane) -> list[Item]:
        """The items that would settle now; the others get their answer, or another turn."""
        verdicts = await self._simulate(items, lane)
        for item, verdict in zip(items, verdicts, strict=True):
            self._answer(item, verdict)
        return [item for item, verdict in zip(items, verdicts, strict=True) if isinstance(verdict, Passes)]

    async def _simulate(self, items: Sequence[Item], lane: Lane) -> list[Verdict]:
        try:
            return await simulate(self._node, [item.payment for item in items], lane)
        except ChainRefused as refused:
            if len(items) == 1:
                raise ChainUnavailable(f"The payment cannot be simulated right now: {refused.detail}") from refused
        middle = len(items) // 2
        halves = items[:middle], items[middle:]
        return [verdict for half in halves for verdict in await self._simulate(half, lane)]

    def _answer(self, item: Item, verdict: Verdict) -> None:
        if isinstance(verdict, NeedsContractLane):
            item.lane = Lane.CONTRACT
            self._enqueue(item)
        elif isinstance(verdict, Again):
            self._enqueue(item)
        elif isinstance(verdict, Used):
            item.tasks.add(asyncio.create_task(self._claim(item, verdict)))
        elif isinstance(verdict, Rejected):
            # One that was sent before is not rejected by a simulation: its authorization may still live.
            item.finish(verdict if item.payment_id is None else Unknown(STILL_SETTLING))

    async def _claim(self, item: Item, used: Used) -> None:
        try:
            outcome = await self._claims.claim(item.reservation(), used.block_number)
        except GigError as exc:
            item.fail(exc)
        else:
            item.finish(outcome)
            if item.payment_id is not None:
                self._settling.tell(item.payment_id, outcome)

    async def _send(self, relayer: Relayer, items: Sequence[Item], lane: Lane) -> None:
        sent: dict[PaymentKey, int] = {}
        slot = await relayer.write_down("deposit", lambda c: self._plan(c, items, lane, sent))
        for item in items:
            self._expect(item, sent.get(item.key))
        if slot is None:
            return
        receipt = await relayer.finish(slot)
        ours = [item for item in items if item.key in sent]
        if receipt is not None and receipt.success:
            self._largest = batcher.MAX_BATCH
            moved = {(t.payer, t.nonce) for t in receipt.transfers}
            for item in ours:
                if (item.key.payer, item.key.nonce) not in moved:
                    # It passed the simulation and failed on chain: its authorization lives on.
                    item.finish(Unknown(STILL_SETTLING))
        else:
            self._largest = max(1, len(ours) // 2)
            log.error("a batch of %d did not go through: trying again with %d at most", len(ours), self._largest)
            for item in ours:
                self._enqueue(item)

    def _expect(self, item: Item, payment_id: int | None) -> None:
        if payment_id is not None:
            item.payment_id = payment_id
            self._settling.expect(payment_id, item.future)
        else:
            item.tasks.add(asyncio.create_task(self._follow(item)))

    async def _follow(self, item: Item) -> None:
        """Another process, or an earlier request, has this payment: its outcome is ours, if the terms are."""
        known = await self._ledger.read(lambda c: payments.find(c, item.key))
        if known is None:
            item.fail(Unavailable("The payment could not be written down"))
        elif known.fingerprint != item.order.fingerprint:
            item.fail(PaymentConflict(f"This payment already belongs to other terms (payment {known.payment_id})"))
        else:
            item.finish(known.outcome or Unknown(STILL_SETTLING))

    def _plan(
        self, connection: Connection, items: Sequence[Item], lane: Lane, sent: dict[PaymentKey, int]
    ) -> Batch | None:
        sent.update(payments.reserve(connection, [item.reservation() for item in items]))
        ours = [item for item in items if item.key in sent]
        if not ours:
            return None
        calls = [transfer_call(item.payment, lane) for item in ours]
        data = batcher.execute_data(self._node.token.address, lane.call_gas, calls)
        return Batch(data, batcher.batch_gas(data, lane.call_gas, len(calls)), payment_ids=list(sent.values()))
