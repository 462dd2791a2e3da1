"""Tokens without authorizations leave a gig's wallet by transactions of its own, for which a relayer sends it gas.

The wallet's transactions are kept, sent again and outbid in slots like a relayer's. Each wallet is served by itself:
what cannot be sent is held back and tried again later, and what does not get into a block holds up nothing else.
"""

import asyncio
import logging
import time
from asyncio import TaskGroup
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from x402_gig.errors import ChainRefused, GigError, LeaseLost, Unavailable
from x402_gig.evm import erc20
from x402_gig.evm.batcher import Call
from x402_gig.evm.node import Node
from x402_gig.evm.wallets import Wallet, Wallets
from x402_gig.ledger import chain_state, movements, slots
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.movements import Movement
from x402_gig.logs import Trouble
from x402_gig.relaying.leases import FUNDING, Leases
from x402_gig.relaying.relayer import EMPTY_GAS, Batch, Relayer
from x402_gig.settlement.work import Work
from x402_gig.treasury.funding import BACKOFF_S, MAX_BACKOFF_S, Hold
from x402_gig.treasury.gig_wallet import PUBLISHING_FEE, GigWallet, Short

log = logging.getLogger(__name__)

INTERVAL_S = 1.0
LOOKED_AT = 20
# A payout that takes longer is named.
SLOW_S = 60
# A token's transfer may do anything: what takes more is the operator's to look at, not to pay for.
MAX_TRANSFER_GAS = 300_000
# The estimate is of one block and the transaction is in another.
GAS_MARGIN_PERCENT = 130
# Twice the fee, so that it can be outbid.
FEE_MARGIN = 2


@dataclass
class TopUp:
    """A wallet that waits until it holds so much gas money."""

    move: Movement
    wallet: Wallet
    wei: int
    done: "asyncio.Future[None]"


@dataclass
class WalletWork:
    """What is done about one gig's wallet, since when, and whether it is being done at this moment."""

    agent: GigWallet
    since: float = field(default_factory=time.monotonic)
    is_running: bool = False

    @property
    def problem(self) -> str:
        """Why it waits for the operator, or takes so long; empty while it does neither."""
        seconds = int(time.monotonic() - self.since)
        if self.agent.stuck or seconds < SLOW_S:
            return self.agent.stuck
        why = self.agent.waits_for or "the log says what it waits for"
        return f"gig {self.agent.gig_id}: its payout has been under way for {seconds} s: {why}"


class CannotSend(GigError):
    """The token does not let it go; the detail says why."""


class NotKnown(CannotSend):
    """The wallet has sent something that is not in the ledger."""


@dataclass
class Payouts:
    """`agent_of` makes a sender of a gig's wallet. The one process that moves money on does this."""

    ledger: Ledger
    node: Node
    wallets: Wallets
    leases: Leases
    work: Work
    agent_of: Callable[..., GigWallet]
    _held: dict[int, Hold] = field(default_factory=dict, init=False)
    # By gig.
    _work: dict[int, WalletWork] = field(default_factory=dict, init=False)
    _waiting: deque[TopUp] = field(default_factory=deque, init=False)

    @property
    def problem(self) -> str:
        """What this process should move and cannot; empty when all is well."""
        if self.leases.fence(FUNDING) is None:
            return ""
        slow = [work.problem for work in self._work.values()]
        return "; ".join([*filter(None, slow), *map(str, self._held.values())][:3])

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
        slot = await relayer.write_down(slots.GAS, lambda c: gift if movements.needs_gas(c, top_up.move) else None)
        if slot is not None:
            await relayer.finish(slot)

    # What the wallets do themselves

    async def serve(self) -> None:
        """Send what is due until cancelled."""
        trouble = Trouble(log, "payouts")
        async with TaskGroup() as group:
            while True:
                try:
                    if self.leases.fence(FUNDING) is not None:
                        await self._begin(group)
                        trouble.is_now("")
                except (Unavailable, LeaseLost) as exc:
                    trouble.is_now(exc.detail)
                await asyncio.sleep(INTERVAL_S)

    async def _begin(self, group: TaskGroup) -> None:
        """Serve each wallet that has something to send or to finish, and is not served already."""
        await self._forget_done()
        now = time.monotonic()
        held = [movement_id for movement_id, hold in self._held.items() if hold.until > now]
        running = [gig_id for gig_id, work in self._work.items() if work.is_running]
        wanted = await self.ledger.read(partial(_wanted, held=held, besides=running))
        self._work = {gig_id: work for gig_id, work in self._work.items() if work.is_running or gig_id in wanted}
        for gig_id, move in wanted.items():
            if gig_id not in self._work:
                wallet = self.wallets.gig_wallet(gig_id)
                self._work[gig_id] = WalletWork(self.agent_of(wallet, gig_id=gig_id, provide_gas=self._provide_gas))
            self._work[gig_id].is_running = True
            group.create_task(self._serve(self._work[gig_id], move), name=f"payout of gig {gig_id}")

    async def _forget_done(self) -> None:
        """The operator may have written down that it is paid."""
        if moves := [hold.movement for hold in self._held.values()]:
            due = {move.movement_id for move in await self.ledger.read(lambda c: movements.still_due(c, moves))}
            self._held = {movement_id: hold for movement_id, hold in self._held.items() if movement_id in due}

    async def _serve(self, work: WalletWork, move: Movement | None) -> None:
        gig_id = work.agent.gig_id
        try:
            await work.agent.start()
            if move is not None:
                await self._try(work.agent, move)
            del self._work[gig_id]
        except GigError as exc:
            log.warning("payouts: gig %d: %s", gig_id, exc.detail)
        except Exception:  # one wallet's oddity must not stop the server
            log.exception("payouts: gig %d", gig_id)
        finally:
            work.is_running = False

    async def _try(self, agent: GigWallet, move: Movement) -> None:
        try:
            await self._send(agent, move)
        except (NotKnown, Short) as exc:  # the operator mends it, and does not wait for an hour then
            self._hold_back(move, exc.detail, BACKOFF_S)
        except CannotSend as exc:
            self._hold_back(move, exc.detail)
        except GigError:
            raise
        except Exception as exc:  # one token's oddity, which is tried again as rarely as a refusal
            log.exception("payouts: gig %d", agent.gig_id)
            self._hold_back(move, type(exc).__name__)
        else:
            self._held.pop(move.movement_id, None)

    def _hold_back(self, move: Movement, reason: str, most_s: int = MAX_BACKOFF_S) -> None:
        before = self._held.get(move.movement_id)
        pause_s = min(2 * before.pause_s, most_s) if before else BACKOFF_S
        self._held[move.movement_id] = hold = Hold(move, reason, pause_s, time.monotonic() + pause_s)
        log.error("payouts: %s; next try in %d s", hold, pause_s)

    async def _send(self, agent: GigWallet, move: Movement) -> None:
        await self._check_nonce(agent.wallet, move)
        data = erc20.transfer_call(move.payee, move.value)
        gas = await self._gas(move, agent.wallet, data)
        await self._provide_gas(agent, move, gas * (await agent.market()).max_fee * FEE_MARGIN + PUBLISHING_FEE)
        await agent.weigh(move.asset or "")
        batch = Batch(data, gas, movements=[move], to=move.asset or "")

        def plan(connection: Connection) -> Batch | None:
            """Asked again where it is written down: a reorganisation may have taken its funding away meanwhile."""
            if not movements.is_due(connection, move):
                return None
            agent.check_bid(connection)
            return batch

        slot = await agent.write_down(slots.PAYOUT, plan)
        receipt = await agent.finish(slot) if slot is not None else None
        if receipt is not None and not receipt.success:
            raise CannotSend(f"transaction {receipt.transaction} failed")

    async def _check_nonce(self, wallet: Wallet, move: Movement) -> None:
        """A transaction that is not in the ledger may have paid this already."""
        used = await self.node.nonce(wallet.address)
        if used > await self.ledger.read(lambda c: slots.sent_by(c, wallet.address)):
            raise NotKnown(
                f"the wallet {wallet.address} has sent what this ledger does not know, an old backup perhaps: x402-gig "
                f"gigs unblock {move.source_gig}"
            )

    async def _gas(self, move: Movement, wallet: Wallet, data: bytes) -> int:
        """What the transfer may use. Raises CannotSend when the token refuses it, or wants more."""
        token = move.asset or ""
        try:
            estimate = await self.node.estimate_gas(wallet.address, token, data, MAX_TRANSFER_GAS)
            gas = estimate * GAS_MARGIN_PERCENT // 100
            if gas > MAX_TRANSFER_GAS:
                raise CannotSend(f"the token's transfer takes {estimate} gas, more than we pay for")
            answer = await self.node.call_as(wallet.address, Call(token, gas, data))
        except ChainRefused as exc:
            log.warning("payouts: gig %s: %s", move.source_gig, exc.detail)
            raise CannotSend(f"the token refuses its transfer or wants more than {MAX_TRANSFER_GAS} gas") from None
        if erc20.is_refusal(answer):
            raise CannotSend("the token answers its transfer with false")
        return gas

    async def _provide_gas(self, agent: GigWallet, move: Movement, wei: int) -> None:
        """Have a relayer send the wallet what it lacks. Raises Unavailable when that did not come."""
        if await self.node.native_balance(agent.wallet.address) >= wei:
            return
        top_up = TopUp(move, agent.wallet, wei, asyncio.get_running_loop().create_future())
        self._waiting.append(top_up)
        self.work.has_come()
        await top_up.done
        if await self.node.native_balance(agent.wallet.address) < wei:
            raise Unavailable(f"the wallet {agent.wallet.address} did not get its gas yet")


def _wanted(connection: Connection, *, held: Collection[int], besides: Collection[int]) -> dict[int, Movement | None]:
    """By gig, the next movement that its wallet is to send; None where it is only to finish what it has sent."""
    if chain_state.funding_halt(connection):
        return {}
    found: dict[int, Movement | None] = {i: None for i in slots.open_payouts(connection) if i not in besides}
    for move in reversed(movements.due_in_tokens(connection, LOOKED_AT, held, besides)):
        found[move.source_gig or 0] = move
    return found
