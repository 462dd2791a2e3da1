"""A relayer sends our transactions, one at a time; each is in the ledger before it is on the wire."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from x402_gig.chainsync.head import Head
from x402_gig.chainsync.watcher import Watcher
from x402_gig.errors import ChainRefused, Unavailable
from x402_gig.evm import batcher
from x402_gig.evm.node import Block, Node, Receipt, sign_transaction, unsigned_fields
from x402_gig.evm.wallets import Wallet
from x402_gig.ledger import chain_state, movements, slots
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.movements import Movement
from x402_gig.ledger.slots import Attempt, End, Slot
from x402_gig.logs import PaymentLog
from x402_gig.metrics import Metrics
from x402_gig.relaying.fees import Fees, market, outbid
from x402_gig.relaying.leases import Leases
from x402_gig.relaying.nonces import taken_from
from x402_gig.settlement.settling import Settling

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4)
LOW_GAS_BATCHES = 2
HAS_GAS_TTL_S = 10
# So many blocks without our transaction: the fee is too low.
STUCK_BLOCKS = 5
# Beyond this the fee is not what keeps a transaction out.
MAX_MARKUP = 10
EMPTY_GAS = 21_000
WEI = 10**18


class Batch(Struct, frozen=True):
    """One transaction, by default a call of the batcher, and what it carries."""

    data: bytes
    gas: int
    payment_ids: Sequence[int] = ()
    movements: Sequence[Movement] = ()
    valid_before: int = 0
    value: int = 0
    to: str = msgspec.field(default_factory=batcher.address)


Plan = Callable[[Connection], Batch | None]


@dataclass
class Relayer:
    """Owns the nonces of one wallet: a slot each, used one after the other.

    `lease` is the one that this process must hold to sign anything; without it LeaseLost is raised and nothing written.
    """

    wallet: Wallet
    lease: str
    node: Node
    ledger: Ledger
    settling: Settling
    head: Head
    watcher: Watcher
    leases: Leases
    confirmations: int
    reorg_depth: int
    metrics: Metrics
    _fence: int | None = field(default=None, init=False)
    _chain_nonce: int = field(default=0, init=False)
    _has_gas_until: float = field(default=0.0, init=False)

    async def start(self) -> None:
        """Begin under the lease that there is now: finish what is under way, and ask the chain for its nonce."""
        self._fence = self.leases.fence(self.lease)
        await self.finish_left_overs()
        self._chain_nonce = await self.node.nonce(self.wallet.address)

    async def finish_left_overs(self) -> bool:
        """What is under way, oldest first: an earlier holder left it, or a reorganisation undid it. Was there any?"""
        left_over = await self.ledger.read(lambda c: slots.open_slots(c, self.wallet.address))
        for slot in left_over:
            await self._finish_left_over(slot)
        return bool(left_over)

    async def _finish_left_over(self, slot: Slot) -> None:
        log.info("relayer %s: finishing slot %d (%s)", self.wallet.address, slot.nonce, slot.purpose)
        await self.finish(slot)
        await self.settling.tell_unsettled(await self.ledger.read(lambda c: slots.payments_of(c, slot)))

    async def has_gas(self) -> bool:
        """Enough for two full batches at the present fee? A yes is ten seconds old at most."""
        if time.monotonic() > self._has_gas_until:
            if await self.gas_wei() < await self.gas_reserve():
                return False
            self._has_gas_until = time.monotonic() + HAS_GAS_TTL_S
        return True

    def doubt_gas(self) -> None:
        """The node refuses to send: ask for the balance again."""
        self._has_gas_until = 0.0

    async def _note_gas(self) -> None:
        """While it cannot pay for what it has, nothing more waits for this relayer. (A gig's wallet is none.)"""
        if self.wallet.address in self.leases.relayers:
            note = self.leases.out_of_gas.discard if await self.has_gas() else self.leases.out_of_gas.add
            note(self.wallet.address)

    async def gas_reserve(self) -> int:
        """Two full batches at the present fee, in wei: with less it sends nothing."""
        return LOW_GAS_BATCHES * batcher.MAX_TRANSACTION_GAS * (await self.market()).max_fee

    async def market(self) -> Fees:
        return await market(self.node, self.head)

    async def gas_report(self) -> str:
        """For the operator: who holds how much of the native currency, and how much is enough."""
        needed = Decimal(await self.gas_reserve()) / WEI
        return f"relayer {self.wallet.address} holds {await self.gas_money():.6f} ETH and needs {needed:.6f}"

    async def gas_money(self) -> Decimal:
        """In ether."""
        return Decimal(await self.gas_wei()) / WEI

    async def gas_wei(self) -> int:
        return await self.node.native_balance(self.wallet.address)

    async def write_down(self, purpose: str, plan: Plan) -> Slot | None:
        """Sign a batch and keep it, in the transaction in which `plan` reserves what it carries.

        None when `plan` finds nothing to send. Raises Unavailable or LeaseLost; nothing was sent.
        """
        fees = await self.market()
        written = await self.ledger.write(lambda c: self._write_down(c, purpose, plan, fees))
        if written is None:
            return None
        slot, batch = written
        for payment_id in batch.payment_ids:
            PaymentLog(log, payment_id).info("written down, to be sent in slot %d/%d", slot.slot_id, slot.nonce)
        return slot

    def _write_down(self, connection: Connection, purpose: str, plan: Plan, fees: Fees) -> tuple[Slot, Batch] | None:
        self._check_lease(connection)
        check_not_halted(connection)
        batch = plan(connection)
        if batch is None:
            return None
        slot = slots.open_slot(connection, self.wallet.address, purpose, self._chain_nonce)
        call = {"to": batch.to, "value": batch.value, "data": batch.data, "gas": batch.gas}
        attempt = self.sign(slot, call, fees)
        slots.add_attempt(connection, slot, attempt)
        if batch.payment_ids:
            slots.enter_payments(connection, slot, batch.payment_ids)
        if batch.movements:
            movements.enter_slot(connection, slot.slot_id, batch.movements, batch.valid_before)
        return replace(slot, first=attempt), batch

    def sign(self, slot: Slot, call: dict[str, Any], fees: Fees, *, is_empty: bool = False) -> Attempt:
        fields = {
            "chainId": self.node.token.chain_id,
            "nonce": slot.nonce,
            "to": call["to"],
            "value": call["value"],
            "data": call["data"],
            "gas": call["gas"],
            "maxFeePerGas": fees.max_fee,
            "maxPriorityFeePerGas": fees.priority_fee,
        }
        signed = sign_transaction(self.wallet.key, fields)
        return Attempt(signed, fees.max_fee, fees.priority_fee, call["gas"], is_empty)

    async def finish(self, slot: Slot) -> Receipt | None:
        """Send until mined and record what the receipt proves.

        None when what the slot carried was not sent: a foreign transaction or an empty one of ours took the nonce.
        """
        began = time.monotonic()
        mined = await self._until_mined(slot)
        if slot.purpose != slots.FUNDING:  # nobody looks at once whether its block is there
            self.head.inclusion_s = time.monotonic() - began
        if isinstance(mined, Block):
            log.warning("slot %d/%d: another transaction took the nonce", slot.slot_id, slot.nonce)
            await self.write_as_holder(lambda c: slots.close(c, slot, "lost", End(mined.number, mined.hash)))
            await self._insist(lambda: self.watcher.confirm(mined.number, mined.hash))
            self._chain_nonce = await self.node.nonce(self.wallet.address)
            return None
        attempt, receipt = mined
        state = "filled" if attempt.is_empty else "mined" if receipt.success else "reverted"
        log.info(
            "slot %d/%d %s in block %d, %d gas: %s",
            slot.slot_id, slot.nonce, state, receipt.block_number, receipt.gas_used, receipt.transaction,
        )  # fmt: skip
        self.metrics.slot_closed(slot.purpose, state, len(receipt.transfers), receipt.gas_used)
        end = End(receipt.block_number, receipt.block_hash, receipt.transaction, receipt.gas_used)
        # With more confirmations the watcher records the transfers when they are deep enough.
        transfers = receipt.transfers if self.confirmations == 1 else []
        await self._insist(lambda: self.settling.record(transfers, also=lambda c: _close(c, slot, state, end)))
        await self._insist(lambda: self.watcher.confirm(receipt.block_number, receipt.block_hash))
        return None if attempt.is_empty else receipt

    def _check_lease(self, connection: Connection) -> None:
        self.leases.check(connection, self.lease, self._fence)

    async def write_as_holder(self, work: Callable[[Connection], T]) -> T:
        """What only he may write who knows every transaction that was signed for the slot. Raises LeaseLost."""

        def checked(connection: Connection) -> T:
            self._check_lease(connection)
            return work(connection)

        return await self.ledger.write(checked)

    async def _insist(self, work: Callable[[], Awaitable[object]]) -> None:
        """The money has moved: writing that down is repeated until it succeeds."""
        while True:
            try:
                await work()
            except Unavailable as exc:
                log.warning("%s; trying again", exc.detail)
                await asyncio.sleep(1)
            else:
                return

    async def _until_mined(self, slot: Slot) -> tuple[Attempt, Receipt] | Block:
        """Which attempt was mined, with its receipt; or a block in which another transaction has used the nonce."""
        attempts = [slot.first] if slot.first else await self.ledger.read(lambda c: slots.attempts_of(c, slot))
        sending = Sending(self, slot, attempts)
        for tries in itertools.count():
            self.leases.check_known(self.lease, self._fence)
            pause_s = RETRY_S[min(tries, len(RETRY_S) - 1)]
            try:
                if end := await sending.step(is_first=tries == 0):
                    return end
                await self._note_gas()
                await self.head.next(pause_s)
            except Unavailable as exc:
                log.warning("slot %d/%d: %s", slot.slot_id, slot.nonce, exc.detail)
                await asyncio.sleep(pause_s)
        raise AssertionError("unreachable")

    # Where a gig's wallet is more careful: see `GigWallet`

    async def may_send(self, slot: Slot) -> bool:
        """May what was signed for this slot be sent again, and outbid?"""
        return True

    async def prepare_bid(self, slot: Slot, wei: int) -> None:
        """Before another transaction is signed for the slot, which may cost so much. Raises Unavailable."""

    def check_bid(self, connection: Connection) -> None:
        """The same, in the transaction in which it is signed."""

    async def lost_in(self, slot: Slot, attempts: Sequence[Attempt], head: Block) -> Block | None:
        """The block that took the slot's nonce, which is used, for another transaction; None while none is known to."""
        hashes = [attempt.transaction.hash for attempt in attempts]
        return await taken_from(self.node, self.wallet.address, slot.nonce, hashes, head, self.reorg_depth)


def check_not_halted(connection: Connection) -> None:
    """Asked in each transaction that signs: the halt may be younger than its caller's look. Raises Unavailable."""
    if chain_state.funding_halt(connection):
        raise Unavailable("The ledger is halted: nothing is signed any more")


def _close(connection: Connection, slot: Slot, state: str, end: End) -> None:
    slots.close(connection, slot, state, end)
    if slot.purpose == slots.PAYOUT and state == "mined":
        movements.complete_slot(connection, slot.slot_id, end)


@dataclass
class Sending:
    """A slot on its way into a block: sent again, outbid, or filled by an empty transaction."""

    relayer: Relayer
    slot: Slot
    attempts: list[Attempt]  # newest first
    _since: int | None = None

    async def step(self, *, is_first: bool) -> tuple[Attempt, Receipt] | Block | None:
        """Send it and look what became of it; None when that is not known yet. Raises Unavailable."""
        if not is_first:
            await self._finish_older()
        may_send = await self.relayer.may_send(self.slot)
        if mined := await self._send_or_find(may_send=may_send, wait=is_first):
            return mined
        head = await self.relayer.head.look()
        if await self.relayer.node.nonce(self.relayer.wallet.address) > self.slot.nonce:
            return await self.relayer.lost_in(self.slot, self.attempts, head)
        self._since = self._since or head.number
        if may_send:
            await self._outbid(head)
        return None

    async def _finish_older(self) -> None:
        """A reorganisation may have emptied a slot before this one, and then this one waits for it."""
        open_slots = await self.relayer.ledger.read(lambda c: slots.open_slots(c, self.slot.relayer))
        if open_slots and open_slots[0].nonce < self.slot.nonce:
            await self.relayer.finish(open_slots[0])

    async def _send_or_find(self, *, may_send: bool, wait: bool) -> tuple[Attempt, Receipt] | None:
        """Broadcast the newest attempt; whatever the node says to that, a receipt is what counts."""
        node = self.relayer.node
        try:
            receipt = await node.send(self.attempts[0].transaction, wait=wait) if may_send else None
        except ChainRefused as refused:
            # "already known", "nonce too low", "replacement underpriced": none says what became of it.
            log.debug("send: %s", refused.detail)
            self.relayer.doubt_gas()
            receipt = None
        if receipt is not None and await self._is_sealed(receipt):
            return self.attempts[0], receipt
        for attempt in self.attempts:
            receipt = await node.receipt(attempt.transaction.hash)
            if receipt is not None and await self._is_sealed(receipt):
                return attempt, receipt
        return None

    async def _is_sealed(self, receipt: Receipt) -> bool:
        """A pre-confirmation names a block that the chain does not have (yet).

        Nobody waits for a reward's, but for its relayer where that is the only one.
        """
        is_urgent = self.slot.purpose != slots.FUNDING or not self.relayer.leases.has_several
        return await self.relayer.head.has(receipt.block_number, receipt.block_hash, is_urgent=is_urgent)

    async def _outbid(self, head: Block) -> None:
        """Sign a transaction to take the newest attempt's place, when that cannot get into a block as it is."""
        newest, now = self.attempts[0], await self.relayer.market()
        fees = Fees(newest.max_fee, newest.priority_fee)
        is_too_big = newest.gas > min(head.gas_limit, batcher.MAX_TRANSACTION_GAS)
        is_stuck = head.number - (self._since or head.number) >= STUCK_BLOCKS
        may_bid = is_stuck and fees.max_fee < MAX_MARKUP * now.max_fee
        if not (is_too_big or may_bid or head.base_fee > fees.max_fee):
            return
        is_empty = newest.is_empty or is_too_big or not await self._is_wanted()
        log.warning("slot %d/%d: replaced (%s)", self.slot.slot_id, self.slot.nonce, "empty" if is_empty else "outbid")
        call = self._empty_call() if is_empty else unsigned_fields(newest.transaction.raw)
        better = outbid(fees, now)
        await self.relayer.prepare_bid(self.slot, call["gas"] * better.max_fee)
        self.attempts.insert(0, await self.relayer.write_as_holder(lambda c: self._bid(c, call, better, is_empty)))
        self._since = head.number

    def _bid(self, connection: Connection, call: dict[str, Any], fees: Fees, is_empty: bool) -> Attempt:
        check_not_halted(connection)
        if not is_empty:
            self.relayer.check_bid(connection)
        attempt = self.relayer.sign(self.slot, call, fees, is_empty=is_empty)
        slots.add_attempt(connection, self.slot, attempt)
        return attempt

    async def _is_wanted(self) -> bool:
        return await self.relayer.ledger.read(lambda c: slots.is_wanted(c, self.slot))

    def _empty_call(self) -> dict[str, Any]:
        return {"to": self.slot.relayer, "value": 0, "data": b"", "gas": EMPTY_GAS}
