"""Tokens without authorizations leave a gig's wallet by transactions of its own, for which a relayer sends it gas.

The wallet's transactions are kept, sent again and outbid in slots like a relayer's. What cannot be sent is held back by
itself and tried again later.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from x402_gig.chain import erc20
from x402_gig.chain.batcher import Call
from x402_gig.chain.node import Node
from x402_gig.chain.wallets import Wallet, Wallets
from x402_gig.errors import ChainRefused, GigError, LeaseLost, Unavailable
from x402_gig.logs import Trouble
from x402_gig.settlement.funding import BACKOFF_S, MAX_BACKOFF_S, Hold
from x402_gig.settlement.leases import FUNDING, Leases
from x402_gig.settlement.relayer import EMPTY_GAS, Batch, Relayer
from x402_gig.store import binding, funding, slots
from x402_gig.store.engine import Ledger
from x402_gig.store.funding import Movement

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
LOOKED_AT = 20
# A token's transfer may do anything: what takes more is the operator's to look at, not to pay for.
MAX_TRANSFER_GAS = 300_000
# The estimate is of one block and the transaction is in another.
GAS_MARGIN_PERCENT = 130
# Twice the fee, so that it can be outbid; and what a rollup asks for publishing it (wei).
FEE_MARGIN = 2
PUBLISHING_FEE = 10**13


@dataclass
class TopUp:
    """A wallet that waits until it holds so much gas money."""

    move: Movement
    wallet: Wallet
    wei: int
    done: "asyncio.Future[None]"


class CannotSend(GigError):
    """The token, or the wallet, does not let it go; the detail says why."""


@dataclass
class Payouts:
    """`agent_of` makes a sender of a gig's wallet. The one process that moves money on does this."""

    ledger: Ledger
    node: Node
    wallets: Wallets
    leases: Leases
    agent_of: Callable[[Wallet], Relayer]
    _held: dict[int, Hold] = field(default_factory=dict, init=False)
    _waiting: deque[TopUp] = field(default_factory=deque, init=False)

    def __post_init__(self) -> None:
        self.wake: Callable[[], None] = lambda: None

    @property
    def problem(self) -> str:
        """What this process should move and cannot; empty when all is well."""
        if self.leases.fence(FUNDING) is None:
            return ""
        return "; ".join(str(hold) for hold in list(self._held.values())[:3])

    # What the relayers do for it

    def waits(self) -> bool:
        return bool(self._waiting)

    def gathers(self) -> bool:
        return False

    async def run(self, relayer: Relayer) -> None:
        """Send gas to the wallet that has waited longest."""
        top_up = self._waiting.popleft()
        try:
            missing = top_up.wei - await self.node.native_balance(top_up.wallet.address)
            if missing > 0:
                await self._send_gas(relayer, top_up, missing)
        finally:
            # Whoever waits looks at the balance, whatever became of this.
            if not top_up.done.done():
                top_up.done.set_result(None)

    async def leave(self) -> None:
        """Whoever moves money on now asks for it himself."""
        while self._waiting:
            top_up = self._waiting.popleft()
            if not top_up.done.done():
                top_up.done.set_result(None)

    def refuse(self) -> None:
        """What waits is written down, and nobody holds a connection open for it: it waits for the relayers' gas."""

    async def _send_gas(self, relayer: Relayer, top_up: TopUp, wei: int) -> None:
        to = top_up.wallet.address
        gift = Batch(b"", EMPTY_GAS, movements=[top_up.move], value=wei, to=to)
        slot = await relayer.write_down(slots.GAS, lambda c: gift if funding.is_due(c, top_up.move) else None)
        if slot is not None:
            await relayer.finish(slot)

    # What the wallets do themselves

    async def serve(self) -> None:
        """Send what is due until cancelled."""
        trouble = Trouble(log, "payouts")
        while True:
            try:
                if self.leases.fence(FUNDING) is not None:
                    await self._send_due()
                    trouble.is_now("")
            except (Unavailable, LeaseLost) as exc:
                trouble.is_now(exc.detail)
            await asyncio.sleep(INTERVAL_S)

    async def _send_due(self) -> None:
        if await self.ledger.read(binding.funding_halt):
            return
        for gig_id in await self.ledger.read(slots.open_payouts):
            await self.agent_of(self.wallets.gig_wallet(gig_id)).start()
        now = time.monotonic()
        held = [i for i, hold in self._held.items() if hold.until > now]
        due = await self.ledger.read(lambda c: funding.due_in_tokens(c, LOOKED_AT, held))
        # One for each wallet: its nonces are used one after the other.
        oldest = {move.source_gig: move for move in reversed(due)}
        await asyncio.gather(*(self._try(move) for move in oldest.values()))

    async def _try(self, move: Movement) -> None:
        try:
            await self._send(move)
        except CannotSend as exc:
            self._hold_back(move, exc.detail)
        except (Unavailable, LeaseLost) as exc:
            log.warning("payouts: gig %d: %s", move.source_gig, exc.detail)
        except Exception as exc:  # one token's oddity must not stop the server
            log.exception("payouts: gig %d", move.source_gig)
            self._hold_back(move, type(exc).__name__)
        else:
            self._held.pop(move.movement_id, None)

    def _hold_back(self, move: Movement, reason: str) -> None:
        before = self._held.get(move.movement_id)
        pause_s = min(2 * before.pause_s, MAX_BACKOFF_S) if before else BACKOFF_S
        self._held[move.movement_id] = hold = Hold(move, reason, pause_s, time.monotonic() + pause_s)
        log.error("payouts: %s; next try in %d s", hold, pause_s)

    async def _send(self, move: Movement) -> None:
        wallet = self.wallets.gig_wallet(move.source_gig or 0)
        agent = self.agent_of(wallet)
        await agent.start()
        await self._check_nonce(wallet)
        data = erc20.transfer_call(move.payee, move.value)
        gas = await self._gas(move, wallet, data)
        await self._wait_for_gas(move, wallet, gas * (await agent.market()).max_fee * FEE_MARGIN + PUBLISHING_FEE)
        batch = Batch(data, gas, movements=[move], to=move.asset or "")
        # Asked again where it is written down: a reorganisation may have taken its funding away meanwhile.
        slot = await agent.write_down(slots.PAYOUT, lambda c: batch if funding.is_due(c, move) else None)
        receipt = await agent.finish(slot) if slot is not None else None
        if receipt is not None and not receipt.success:
            raise CannotSend(f"transaction {receipt.transaction} failed")

    async def _check_nonce(self, wallet: Wallet) -> None:
        """A transaction that is not in the ledger may have paid this already."""
        used = await self.node.nonce(wallet.address)
        if used > await self.ledger.read(lambda c: slots.sent_by(c, wallet.address)):
            raise CannotSend(f"the wallet {wallet.address} has sent what this ledger does not know: an old backup?")

    async def _gas(self, move: Movement, wallet: Wallet, data: bytes) -> int:
        """What the transfer may use. Raises CannotSend when the token refuses it."""
        token = move.asset or ""
        try:
            estimate = await self.node.estimate_gas(wallet.address, token, data)
            gas = estimate * GAS_MARGIN_PERCENT // 100
            if gas > MAX_TRANSFER_GAS:
                raise CannotSend(f"the token's transfer takes {estimate} gas, more than we pay for")
            answer = await self.node.call_as(wallet.address, Call(token, gas, data))
        except ChainRefused as exc:
            raise CannotSend(exc.detail) from None
        if erc20.is_refusal(answer):
            raise CannotSend("the token answers its transfer with false")
        return gas

    async def _wait_for_gas(self, move: Movement, wallet: Wallet, wei: int) -> None:
        if await self.node.native_balance(wallet.address) >= wei:
            return
        top_up = TopUp(move, wallet, wei, asyncio.get_running_loop().create_future())
        self._waiting.append(top_up)
        self.wake()
        await top_up.done
        if await self.node.native_balance(wallet.address) < wei:
            raise Unavailable(f"the wallet {wallet.address} did not get its gas yet")
