"""Moves USDC on: rewards to the gigs' wallets, commissions to the operator, refunds to payers, in the background.

A funding transaction names a block it relies on and the batcher refuses it on any other chain, so a deposit that a
reorganisation drops cannot be paid on out of its neighbours'. What the token refuses to move is held back and tried
again later; the rest goes on.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from msgspec import Struct

from x402_gig.errors import Unavailable
from x402_gig.evm import batcher, eip3009
from x402_gig.evm.batcher import Call
from x402_gig.evm.node import Block, Node, Receipt
from x402_gig.evm.wallets import Wallets
from x402_gig.gigs.pricing import to_tokens
from x402_gig.ledger import chain_state, debts, deposits, keyed_gigs, movements, shared_settings, slots
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.movements import COMMISSION, FEE, REFUND, REWARD, SURPLUS, Movement, Pulse
from x402_gig.payments.payment import Authorization
from x402_gig.relaying.leases import FUNDING, Leases
from x402_gig.relaying.relayer import Batch, Relayer
from x402_gig.settlement.work import Work
from x402_gig.treasury.executed import find_executed

log = logging.getLogger(__name__)

LIFETIME_S = 600
# Between two batches, so that a stream of single purchases shares them.
PACE_S = 0.25
PATIENCE_S = 10
# Looking so many blocks up takes as long as reading them; the batcher can tell of 256.
MAX_UNREAD = 60
# Below what is read: a receipt may be written down after its height was read, perhaps on another chain.
LATE = 30
READ_WITHIN_S = 3
BACKOFF_S = 30
MAX_BACKOFF_S = 3600
# Of a batch besides its calls, and of each call besides its own limit.
BATCH_GAS = 100_000
CALLDATA_GAS = 8_500
LATER = (REFUND, FEE, SURPLUS)
# In one call.
WALLETS_ASKED = 100


@dataclass
class Hold:
    """A movement that the token refused, and when it is tried again."""

    movement: Movement
    reason: str
    pause_s: int
    until: float

    def __str__(self) -> str:
        move = self.movement
        value = f"{to_tokens(move.value)} USDC" if move.asset is None else f"{move.value} base units of {move.asset}"
        return f"{move.kind} {move.subject} ({value} to {move.payee}): {self.reason}"


@dataclass
class Funding:
    """`at_once` batches, all in one process. `problem` says what does not move; empty when all is well."""

    ledger: Ledger
    node: Node
    wallets: Wallets
    leases: Leases
    work: Work
    clock: Callable[[], float] = time.time
    at_once: int = 1
    _obstacle: str = field(default="", init=False)
    _held: dict[int, Hold] = field(default_factory=dict, init=False)
    _under_way: int = field(default=0, init=False)
    _not_before: float = field(default=0.0, init=False)
    _pause_s: int = field(default=1, init=False)
    _pulse: Pulse | None = field(default=None, init=False)

    @property
    def problem(self) -> str:
        if self.leases.fence(FUNDING) is None:
            return ""
        return self._obstacle or "; ".join(str(hold) for hold in list(self._held.values())[:3])

    async def look(self) -> None:
        """Has another process written down what is to be moved on, or this one without being told?"""
        if self.leases.fence(FUNDING) is None:
            self._pulse = None
            return
        pulse = await self.ledger.read(movements.pulse)
        if pulse != self._pulse:
            self._pulse = pulse
            self.work.note_funding()

    def is_wanted(self, others_wait: bool) -> bool:
        """Others go first, but for ten seconds only."""
        now = time.monotonic()
        if any(hold.until <= now for hold in self._held.values()):
            self.work.note_funding()
        is_free = self._under_way < self.at_once and now >= self._not_before
        if not is_free or self.work.funding_since is None or self.leases.fence(FUNDING) is None:
            return False
        return not others_wait or now - self.work.funding_since > PATIENCE_S

    @property
    def has_others(self) -> bool:
        """Another batch is under way: what does not fill one of its own can wait for the next."""
        return self._under_way > 1

    async def run(self, relayer: Relayer) -> None:
        """Send one batch; what is refused is held back for a while."""
        self._under_way += 1
        # Work that comes up from here on makes it due again; what does not fit this batch has waited since then.
        waiting_since, self.work.funding_since = self.work.funding_since, None
        try:
            obstacle = await self._send_batch(relayer, waiting_since)
        except BaseException:  # also when cancelled: what was not sent is still due
            self.work.note_funding()
            raise
        finally:
            self._under_way -= 1
        if obstacle:
            self._wait_a_while()
            log.error("funding: %s", obstacle)
        else:
            self._pause_s = 1
        self._obstacle = obstacle

    def _wait_a_while(self) -> None:
        """At first for a second only: a reorganisation or a node that is behind may be all there is to it."""
        self.work.note_funding()
        self._not_before = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, BACKOFF_S)

    async def _send_batch(self, relayer: Relayer, waiting_since: float | None) -> str:
        """What keeps everything from moving, or nothing."""
        halt, newest, is_idle = await self.ledger.read(
            lambda c: (chain_state.funding_halt(c), deposits.newest_block(c), movements.is_idle(c))
        )
        if halt:
            return halt
        await self._forget_done()
        if is_idle:
            return ""
        ground = await self._ground(relayer, newest)
        if ground is None:
            relayer.watcher.wake()
            return "what the ledger has of the newest blocks is not on the chain, or they cannot be read"
        plan = Plan(self, ground, int(self.clock()) + LIFETIME_S)
        slot = await relayer.write_down(slots.FUNDING, plan)
        await self._hold_back_short(plan.short)
        if slot is None:
            if plan.is_early or plan.is_put_off:
                self.work.note_funding()
                self._not_before = time.monotonic() + PACE_S
            return plan.obstacle
        if plan.is_full:
            self.work.funding_since = waiting_since
        receipt = await relayer.finish(slot)
        self.work.note_funding()
        if not plan.is_full:
            self._not_before = time.monotonic() + PACE_S
        await self._look_after(relayer, plan, receipt)
        return ""

    async def _ground(self, relayer: Relayer, newest: int) -> "Ground | None":
        """What the next batch can be built on; None when the newest block is not of the chain that the ledger knows.

        A reorganisation is noticed when blocks are read, and a head of the other chain may be known before that.
        """
        head, watcher = relayer.head, relayer.watcher
        anchor = await head.newest()
        if anchor.number < newest:
            anchor = await head.look()
        if anchor.number - watcher.read_to.number > MAX_UNREAD:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_WITHIN_S):
                    await watcher.passed(newest)
        read_to = watcher.read_to
        first = read_to.number - LATE
        known = await self.ledger.read(lambda c: deposits.known_places(c, first, anchor.number))
        places = {(read_to.number, read_to.hash), *known}
        balance = await self.node.balance_above(self.wallets.intake.address, anchor, places)
        if balance is None:
            return None
        return Ground(anchor, first, known, balance, await self._held_by_gigs(anchor))

    async def _held_by_gigs(self, anchor: Block) -> Mapping[int, int | None]:
        """What the wallets that are to send something hold at this block, by gig, in base units."""
        gigs = await self.ledger.read(lambda c: movements.sources(c, WALLETS_ASKED, self.held()))
        accounts = [self.wallets.gig_address(gig_id) for gig_id in gigs]
        balances = await self.node.token_balances(self.node.token.address, accounts, anchor) if accounts else []
        return dict(zip(gigs, balances, strict=True))

    async def _look_after(self, relayer: Relayer, plan: "Plan", receipt: Receipt | None) -> None:
        """What was signed and has not moved."""
        unread = await self.ledger.read(lambda c: movements.still_due(c, plan.moves))
        if receipt is None or not unread:
            return
        # The ledger has yet to read them (more confirmations are wanted, or a stranger has executed them first), and
        # they are not to be signed again before.
        await relayer.watcher.passed(receipt.block_number)
        if receipt.success or not await self._was_reorganised(plan.anchor):
            await self._hold_back(unread, plan.valid_before)

    async def _forget_done(self) -> None:
        """What is held back is public: somebody else may have executed it meanwhile."""
        if not self._held:
            return
        held = [hold.movement for hold in self._held.values()]
        due = {move.movement_id for move in await self.ledger.read(lambda c: movements.still_due(c, held))}
        self._held = {movement_id: hold for movement_id, hold in self._held.items() if movement_id in due}

    async def _hold_back(self, sent: Sequence[Movement], valid_before: int) -> None:
        """Those that are not on chain wait, each longer than the last time; the others go on."""
        failed = await self._not_executed(sent)
        reasons = await self._reasons(failed, valid_before) if failed else []
        self._hold(zip(failed, reasons, strict=True))

    async def _hold_back_short(self, short: Mapping[Movement, str]) -> None:
        """The same of those that were not signed; what is missing may be what somebody else has executed.

        At first for a second only: the wallet may have got its money in a block that is newer than the anchor.
        """
        self._hold([(move, short[move]) for move in await self._not_executed(list(short))], first_s=1)

    async def _not_executed(self, moves: Sequence[Movement]) -> list[Movement]:
        due = await self.ledger.read(lambda c: movements.still_due(c, moves))
        await find_executed(self.node, self.ledger, [m for m in due if m.source_gig is not None])
        return await self.ledger.read(lambda c: movements.still_due(c, moves))

    def _hold(self, failed: Iterable[tuple[Movement, str]], first_s: int = BACKOFF_S) -> None:
        for move, reason in failed:
            before = self._held.get(move.movement_id)
            pause_s = min(2 * before.pause_s, MAX_BACKOFF_S) if before else first_s
            hold = Hold(move, reason, pause_s, time.monotonic() + pause_s)
            self._held[move.movement_id] = hold
            log.error("funding: %s; next try in %d s", hold, pause_s)

    async def _reasons(self, failed: Sequence[Movement], valid_before: int) -> list[str]:
        """What the token says to each; these signatures are public already."""
        token = self.node.token.address
        calls = [Call(token, batcher.PLAIN_CALL_GAS, self.signed_call(move, valid_before)) for move in failed]
        try:
            _, results = await self.node.simulate(calls)
        except Unavailable as exc:
            return [exc.detail for _ in failed]
        return ["it would pass now" if result.success else result.revert_reason for result in results]

    def held(self) -> list[int]:
        now = time.monotonic()
        return [movement_id for movement_id, hold in self._held.items() if hold.until > now]

    async def _was_reorganised(self, anchor: Block) -> bool:
        now = await self.node.block(anchor.number)
        return now is None or now.hash != anchor.hash

    def signed_call(self, move: Movement, valid_before: int) -> bytes:
        payer = self.wallets.intake if move.source_gig is None else self.wallets.gig_wallet(move.source_gig)
        authorization = Authorization(payer.address, move.payee, move.value, 0, valid_before, move.nonce)
        signature = self.node.token.sign(authorization, payer.key)
        return eip3009.transfer_call(authorization, signature, ecdsa=True)


class Ground(Struct, frozen=True):
    """A block with all below it that the ledger knows: `known` heights and hashes from `first` on.

    `balance` is what the intake holds there, `of_gigs` what the wallets of gigs hold, in base units.
    """

    anchor: Block
    first: int
    known: Set[tuple[int, str]]
    balance: int
    of_gigs: Mapping[int, int | None]

    def has_all(self, connection: Connection) -> bool:
        """Does the ledger know nothing else up to there, and nothing of ours above it?"""
        height = self.anchor.number
        known = deposits.known_places(connection, self.first, height)
        return known <= self.known and deposits.newest_block(connection) <= height


class Plan:
    """What a funding transaction carries, decided in the ledger transaction that keeps it."""

    def __init__(self, funding_: Funding, ground: Ground, valid_before: int) -> None:
        self._funding = funding_
        self._ground = ground
        self.anchor = anchor = ground.anchor
        self.valid_before = valid_before
        self._limit = min(batcher.MAX_BATCH, _room(anchor))
        self._fence = funding_.leases.fence(FUNDING)
        self.moves: list[Movement] = []
        # What their wallets could not spare, and why.
        self.short: dict[Movement, str] = {}
        self.is_early = False
        self.is_put_off = False
        self.obstacle = ""

    @property
    def is_full(self) -> bool:
        return len(self.moves) >= self._limit

    def __call__(self, connection: Connection) -> Batch | None:
        self._funding.leases.check(connection, FUNDING, self._fence)
        if not self._ground.has_all(connection):
            self.is_early = True  # written down since then, or by a node behind the one that told us of the deposit
            return None
        self.obstacle = self._shortfall(connection)
        if self.obstacle:
            return None
        payee, nonce_of = shared_settings.commission_address(connection), self._funding.wallets.commission_nonce
        movements.write_commission(connection, payee, nonce_of)
        self.moves = self._due(connection)
        self.is_put_off = bool(self.moves) and not self.is_full and self._funding.has_others
        return self._batch() if self.moves and not self.is_put_off else None

    def _shortfall(self, connection: Connection) -> str:
        expected, balance = deposits.expected_balance(connection, self.anchor.number), self._ground.balance
        if balance < expected:
            return f"the intake holds {balance} base units and should hold {expected}"
        return ""

    def _due(self, connection: Connection) -> list[Movement]:
        """Rewards with the commission, or refunds, or what leaves the gigs' wallets: each has batches of its own."""
        held = self._funding.held()
        moves = movements.due(connection, COMMISSION, 1, held)
        moves = movements.due(connection, REWARD, self._limit - len(moves), held) + moves
        later = (movements.due(connection, kind, self._limit, held) for kind in LATER)
        return moves or next(filter(None, ([m for m in due if self._is_covered(connection, m)] for due in later)), [])

    def _is_covered(self, connection: Connection, move: Movement) -> bool:
        """Does the wallet that it leaves hold all that it owes?"""
        gig_id = move.source_gig
        if gig_id is None:
            return True
        if (
            gig_id not in self._ground.of_gigs
            or keyed_gigs.newest_payout_block(connection, gig_id) > self.anchor.number
        ):
            self.is_early = True  # written down since the wallets were asked, or mined in a later block
            return False
        if shortage := debts.shortage(connection, gig_id, self._ground.of_gigs[gig_id]):
            self.short[move] = shortage
        return not shortage

    def _batch(self) -> Batch:
        calls = [self._funding.signed_call(move, self.valid_before) for move in self.moves]
        token, gas_each = self._funding.node.token.address, batcher.PLAIN_CALL_GAS
        data = batcher.execute_on_data(self.anchor.number, self.anchor.hash, token, gas_each, calls)
        gas = batcher.batch_gas(data, gas_each, len(calls))
        return Batch(data, gas, movements=self.moves, valid_before=self.valid_before)


def _room(block: Block) -> int:
    """How many movements fit a transaction that fits a block."""
    gas = min(batcher.MAX_TRANSACTION_GAS, block.gas_limit) - BATCH_GAS
    return max(1, gas // (batcher.call_gas(batcher.PLAIN_CALL_GAS) + CALLDATA_GAS))
