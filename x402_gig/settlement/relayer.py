"""A relayer sends our transactions, one at a time; each is in the ledger before it is on the wire."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from x402_gig.chain import batcher
from x402_gig.chain.node import Node, Receipt, sign_transaction
from x402_gig.chain.wallets import Wallet
from x402_gig.errors import ChainRefused, ChainUnavailable, Unavailable
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.watcher import Watcher
from x402_gig.store import funding, slots
from x402_gig.store.engine import Connection, Ledger
from x402_gig.store.funding import Movement
from x402_gig.store.slots import Attempt, Slot

log = logging.getLogger(__name__)

RETRY_S = (0.05, 0.1, 0.25, 0.5, 1, 2, 4)
MIN_PRIORITY_FEE = 1_000_000
LOW_GAS_BATCHES = 2
HAS_GAS_TTL_S = 10


@dataclass(frozen=True)
class Batch:
    """One call of the batcher, and what it carries."""

    data: bytes
    gas: int
    payment_ids: Sequence[int] = ()
    movements: Sequence[Movement] = ()
    valid_before: int = 0


@dataclass(frozen=True)
class Fees:
    """EIP-1559 fees in wei per gas."""

    max_fee: int
    priority_fee: int


@dataclass
class Relayer:
    """Owns the nonces of one wallet: a slot each, used one after the other."""

    wallet: Wallet
    node: Node
    ledger: Ledger
    settling: Settling
    watcher: Watcher
    confirmations: int
    _chain_nonce: int = field(default=0, init=False)
    _has_gas_until: float = field(default=0.0, init=False)

    async def start(self) -> None:
        """Finish what an earlier process left under way, oldest first."""
        for slot in await self.ledger.read(lambda c: slots.open_slots(c, self.wallet.address)):
            log.info("relayer %s: finishing slot %d (%s)", self.wallet.address, slot.nonce, slot.purpose)
            await self.finish(slot)
        self._chain_nonce = await self.node.nonce(self.wallet.address)

    async def has_gas(self) -> bool:
        """Enough for two full batches at the present fee? A yes is ten seconds old at most."""
        if time.monotonic() > self._has_gas_until:
            if await self.node.native_balance(self.wallet.address) < await self._gas_needed():
                return False
            self._has_gas_until = time.monotonic() + HAS_GAS_TTL_S
        return True

    async def _gas_needed(self) -> int:
        return LOW_GAS_BATCHES * batcher.MAX_TRANSACTION_GAS * (await self._fees()).max_fee

    async def gas_report(self) -> str:
        """For the operator: who holds how much of the native currency, and how much is enough."""
        held, needed = await self.node.native_balance(self.wallet.address), await self._gas_needed()
        return f"relayer {self.wallet.address} holds {_ether(held)} ETH and needs {_ether(needed)}"

    async def write_down(self, purpose: str, plan: Callable[[Connection], Batch | None]) -> Slot | None:
        """Sign a batch and keep it, in the transaction in which `plan` reserves what it carries.

        None when `plan` finds nothing to send. Raises Unavailable; nothing was sent.
        """
        fees = await self._fees()
        return await self.ledger.write(lambda c: self._write_down(c, purpose, plan, fees))

    async def _fees(self) -> Fees:
        priority = max(await self.node.priority_fee(), MIN_PRIORITY_FEE)
        return Fees(2 * (await self.watcher.newest()).base_fee + priority, priority)

    def _write_down(
        self, connection: Connection, purpose: str, plan: Callable[[Connection], Batch | None], fees: Fees
    ) -> Slot | None:
        batch = plan(connection)
        if batch is None:
            return None
        slot = slots.open_slot(connection, self.wallet.address, purpose, self._chain_nonce)
        slots.add_attempt(connection, slot, self._sign(slot, batch, fees))
        if batch.payment_ids:
            slots.enter_payments(connection, slot, batch.payment_ids)
        if batch.movements:
            funding.enter_slot(connection, slot.slot_id, batch.movements, batch.valid_before)
        return slot

    def _sign(self, slot: Slot, batch: Batch, fees: Fees) -> Attempt:
        fields = {
            "chainId": self.node.token.chain_id,
            "nonce": slot.nonce,
            "to": batcher.checksum_address(),
            "data": batch.data,
            "gas": batch.gas,
            "maxFeePerGas": fees.max_fee,
            "maxPriorityFeePerGas": fees.priority_fee,
        }
        return Attempt(sign_transaction(self.wallet.key, fields), fees.max_fee, fees.priority_fee)

    async def finish(self, slot: Slot) -> Receipt | None:
        """Send until mined and record what the receipt proves; None when a foreign transaction took the nonce."""
        receipt = await self._until_mined(slot)
        if receipt is None:
            await self.ledger.write(lambda c: slots.close(c, slot, "lost"))
            self._chain_nonce = await self.node.nonce(self.wallet.address)
            return None
        state = "mined" if receipt.success else "reverted"
        log.info(
            "slot %d/%d %s in block %d, %d gas: %s",
            slot.slot_id, slot.nonce, state, receipt.block_number, receipt.gas_used, receipt.transaction,
        )  # fmt: skip

        def close(connection: Connection) -> None:
            block, gas = receipt.block_number, receipt.gas_used
            slots.close(connection, slot, state, transaction=receipt.transaction, block=block, gas=gas)

        # With more confirmations the watcher records the transfers when they are deep enough.
        await self._insist(lambda: self.settling.record(receipt.transfers if self.confirmations == 1 else [], close))
        return receipt

    async def _insist(self, work: Callable[[], object]) -> None:
        """The money has moved: writing that down is repeated until it succeeds."""
        while True:
            try:
                await work()  # type: ignore[misc]
            except Unavailable as exc:
                log.warning("ledger: %s; trying again", exc.detail)
                await asyncio.sleep(1)
            else:
                return

    async def _until_mined(self, slot: Slot) -> Receipt | None:
        """The receipt of whichever attempt was mined; None when another transaction took the nonce."""
        attempts = await self.ledger.read(lambda c: slots.attempts_of(c, slot))
        for tries in range(2**31):
            try:
                receipt = await self._send_or_find(attempts)
                if receipt is not None and await self._is_sealed(receipt):
                    return receipt
                if receipt is None and await self._is_taken(slot, attempts):
                    return None
            except (ChainUnavailable, ChainRefused) as exc:
                log.warning("slot %d/%d: %s", slot.slot_id, slot.nonce, exc.detail)
            await asyncio.sleep(RETRY_S[min(tries, len(RETRY_S) - 1)])
        raise AssertionError("unreachable")

    async def _send_or_find(self, attempts: Sequence[Attempt]) -> Receipt | None:
        """Broadcast the newest attempt; whatever the node says to that, a receipt is what counts."""
        try:
            receipt = await self.node.send(attempts[0].transaction)
        except ChainRefused as refused:
            # "already known", "nonce too low", "replacement underpriced": none says what became of it.
            log.debug("send: %s", refused.detail)
            receipt = None
        if receipt is not None:
            return receipt
        for attempt in attempts:
            if found := await self.node.receipt(attempt.transaction.hash):
                return found
        return None

    async def _is_sealed(self, receipt: Receipt) -> bool:
        """A pre-confirmation names a block that the chain does not have (yet)."""
        block = await self.node.block(receipt.block_number)
        return block is not None and block.hash == receipt.block_hash

    async def _is_taken(self, slot: Slot, attempts: Sequence[Attempt]) -> bool:
        if await self.node.nonce(self.wallet.address) <= slot.nonce:
            return False
        # Used; asked once more after that: the receipt may have come between the two questions.
        for attempt in attempts:
            if await self.node.receipt(attempt.transaction.hash):
                return False
        return True


def _ether(wei: int) -> str:
    return f"{Decimal(wei) / 10**18:.6f}"
