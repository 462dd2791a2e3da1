"""Gigs that are created with an API key: created unfunded, funded by anyone, started once.

The creator sends reward and commission to the gig's own wallet, in any ERC-20. A start looks at a confirmed block: what
the wallet holds there decides, and the transfers that brought it are found in the logs. The commission then leaves the
wallet like all money here: written down first, and only once (see `funding`, `payouts`).
"""

import asyncio
import contextlib
import heapq
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from x402_gig.chainsync.watcher import Watcher
from x402_gig.errors import BeingProcessed, ChainRefused, GigError, NotFound, NotFunded, NotStartable, Unavailable
from x402_gig.evm import erc20
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block, Node
from x402_gig.evm.wallets import MAX_GIG_ID, Wallets
from x402_gig.gigs import lifecycle
from x402_gig.gigs.pricing import to_tokens
from x402_gig.gigs.records import GigRecord
from x402_gig.gigs.shop import GigShop
from x402_gig.gigs.terms import Terms, token_of
from x402_gig.ledger import debts, keyed_gigs, movements, shared_settings
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.keyed_gigs import Draft, Fee, Started
from x402_gig.market.turns import LEASE_S, Turns
from x402_gig.settlement.work import Work
from x402_gig.treasury.executed import find_executed

log = logging.getLogger(__name__)

# Of blocks asked for logs at once; halved when the node finds it too much.
RANGE = 5_000
# Somebody else may have the turn after `LEASE_S`.
START_TIMEOUT_S = LEASE_S - 5
# How long to look for the transfers of a gig that was funded long ago.
SEARCH_S = 10
# Kept of a gig, the largest: anybody may send dust as often as he likes, and each is a row, and its block is asked for.
MAX_DEPOSITS = 100
RECHECKED = 20


@dataclass
class KeyedGigs:
    """`work` is told when a commission can leave a gig's wallet; `halt` says why nothing may move at all."""

    shop: GigShop
    ledger: Ledger
    node: Node
    wallets: Wallets
    watcher: Watcher
    turns: Turns
    confirmations: int
    reorg_depth: int
    work: Work
    halt: Callable[[], str]
    # Gigs that are to be suspended, and the ledger could not be written to.
    _doubted: set[int] = field(default_factory=set, init=False)
    # The last suspended gig that was looked at.
    _rechecked: int = field(default=0, init=False)

    async def create(self, key_id: int, body: Mapping[str, Any]) -> dict[str, Any]:
        """The answer: what to send where. Raises ValidationFailed, NotFound (chain) or Unavailable."""
        self._check_open()
        address = token_of(body)
        number, token = await self.node.token_info(address) if address else (0, None)
        offer = self.shop.offer(body, token)
        now = self.shop.clock()
        start, end = lifecycle.schedule(offer.terms.start_time, offer.terms.duration, now)
        draft = Draft(
            key_id=key_id,
            terms=offer.terms.model_dump(mode="json", exclude_none=True),
            token=offer.token,
            reward_units=offer.price.reward_units,
            commission_units=offer.price.commission_units,
            start_at=int(start.timestamp()),
            end_at=int(end.timestamp()),
            since_block=max(0, number - self.reorg_depth),
        )
        gig_id, wallet = await self.ledger.write(lambda c: keyed_gigs.create(c, self.wallets.gig_address, draft))
        log.info("gig %d created with key %d, to be funded with %s", gig_id, key_id, offer.token.symbol)
        return self.shop.created(gig_id, wallet, offer) | {"tx_data": _tx_data(wallet, offer.price.total_units)}

    def to_be_paid(self, gig: GigRecord) -> dict[str, str]:
        """What funds a gig that is not started."""
        total = to_tokens(gig.total_units, gig.token.decimals)
        return {"total_amount": total, "tx_data": _tx_data(gig.wallet, gig.total_units)}

    async def start(self, key_id: int, gig_id: int) -> None:
        """Start a funded gig, once.

        Raises NotFound, NotStartable, NotFunded, BeingProcessed or Unavailable.
        """
        self._check_open()
        await self._startable(key_id, gig_id)
        async with self.turns.take(gig_id) as fence:
            gig = await self._startable(key_id, gig_id)  # the turn before may have started it
            try:
                async with asyncio.timeout(START_TIMEOUT_S):
                    block, started = await self._look(gig)
            except TimeoutError:
                raise Unavailable("The chain took too long: try again") from None
            # The answer to the commit may be lost: then the creator is told when the ledger knows what became of it.
            if not await self.ledger.write_surely(
                lambda c: keyed_gigs.go_live(c, gig, fence, started, self._fee(c, gig))
            ):
                raise BeingProcessed(gig_id)
        log.info("gig %d started, %d base units beyond its total", gig_id, started.surplus_units)
        await self._follow_up(gig_id, started.deposits, block)

    async def recheck(self) -> None:
        """Look again for the funding that a reorganisation took away; each gig by itself, the next ones in each round.

        Raises Unavailable when some could not be looked at; the others were.
        """
        await self._write_doubts()
        gigs = await self.ledger.read(lambda c: keyed_gigs.suspended(c, RECHECKED, self._rechecked))
        self._rechecked = gigs[-1].gig_id if len(gigs) == RECHECKED else 0
        if problems := [text for text in await asyncio.gather(*map(self._recheck, gigs)) if text]:
            raise Unavailable("; ".join(problems))

    async def _recheck(self, gig: GigRecord) -> str:
        """Why it cannot be looked at."""
        try:
            # What the reorganisation undid may be on chain again, or somebody else has executed it.
            undone = await self.ledger.read(partial(movements.due_from, gig_id=gig.gig_id, in_token=False))
            await find_executed(self.node, self.ledger, undone)
            block = await self._confirmed_block()
            balance = await self._balance(gig, block)
            # With whatever is due again because the reorganisation undid it.
            if balance < await self.ledger.read(partial(debts.owed, gig_id=gig.gig_id)):
                return ""
            found = await self._deposits(gig, block, balance)
            # The answer to the commit may be lost: then it is not looked at again.
            await self.ledger.write_surely(partial(keyed_gigs.funded_again, gig_id=gig.gig_id, transfers=found))
            log.warning("gig %d: its funding is on chain again", gig.gig_id)
            await self._follow_up(gig.gig_id, found, block)
        except GigError as exc:
            return f"gig {gig.gig_id}: {exc.detail}"
        return ""

    def _check_open(self) -> None:
        """A halted ledger may be an old one: it gives out wallets that belong to other gigs."""
        if self.halt():
            raise Unavailable("This server makes no gigs at the moment: its operator must look into its ledger")

    async def _startable(self, key_id: int, gig_id: int) -> GigRecord:
        gig = None
        if 0 < gig_id <= MAX_GIG_ID:
            gig = await self.ledger.read(lambda c: keyed_gigs.find(c, gig_id, key_id))
        if gig is None:
            raise NotFound(f"Gig with id {gig_id} not found")
        if gig.state != "created":
            raise NotStartable("Gig is already live" if gig.state == "live" else "Gig is cancelled")
        return gig

    async def _look(self, gig: GigRecord) -> tuple[Block, Started]:
        """What the wallet holds at a confirmed block, and who sent it. Raises NotFunded."""
        block = await self._confirmed_block()
        balance = await self._balance(gig, block)
        if balance < gig.total_units:
            raise NotFunded(f"Gig with id {gig.gig_id} is not funded", self._missing(gig, balance))
        terms = Terms.model_validate(gig.terms)
        start, end = lifecycle.schedule(terms.start_time, terms.duration, self.shop.clock())
        times = {"start_at": int(start.timestamp()), "end_at": int(end.timestamp())}
        deposits = await self._deposits(gig, block, balance)
        return block, Started(deposits, balance - gig.total_units, **times)

    async def _confirmed_block(self) -> Block:
        head = await self.node.head()
        return await self.node.existing(max(0, head.number - self.confirmations + 1))

    async def _balance(self, gig: GigRecord, block: Block) -> int:
        balance = await self.node.token_balance(gig.token.address, gig.wallet, block)
        if balance is None:
            raise Unavailable(f"The token {gig.token.address} does not tell its balances")
        return balance

    def _missing(self, gig: GigRecord, balance: int) -> list[str]:
        return [
            f"Expected amount: {gig.token.told(gig.total_units)}",
            f"Actual amount: {gig.token.told(balance)}",
            f"Token Address: {gig.token.address}",
            f"Chain: {self.shop.chain}",
            f"Chain id: {self.shop.chain_id}",
            f"Gig wallet address: {gig.wallet}",
        ]

    async def _deposits(self, gig: GigRecord, block: Block, balance: int) -> Sequence[TokenTransfer]:
        since = await self.ledger.read(lambda c: keyed_gigs.since_block(c, gig.gig_id))
        return await find_deposits(self.node, gig, since, block.number, balance)

    def _fee(self, connection: Connection, gig: GigRecord) -> Fee:
        is_usdc = gig.token.address == self.node.token.address
        nonce = self.wallets.fee_nonce(gig.gig_id)
        return Fee(shared_settings.commission_address(connection), nonce, None if is_usdc else gig.token.address)

    async def _follow_up(self, gig_id: int, deposits: Sequence[TokenTransfer], seen: Block) -> None:
        """Its commission can leave, unless its funding was replaced before these deposits were written down."""
        self.work.funding_due()
        if not await self._is_confirmed(deposits, seen):
            self._doubted.add(gig_id)
            with contextlib.suppress(Unavailable):  # then `recheck` writes it down
                await self._write_doubts()

    async def _write_doubts(self) -> None:
        """Suspend the gigs whose funding may be gone. Raises Unavailable."""
        while self._doubted:
            gig_id = next(iter(self._doubted))
            await self.ledger.write_surely(partial(keyed_gigs.doubt, gig_id=gig_id))
            self._doubted.discard(gig_id)

    async def _is_confirmed(self, deposits: Sequence[TokenTransfer], seen: Block) -> bool:
        """Is the block `seen`, in which the balance was asked, still on chain?

        The watcher may have read another block of a deposit's height meanwhile: then it has not seen that row, and the
        deposit is undone here.
        """
        try:
            for number, block_hash in {t.block_number: t.block_hash for t in deposits}.items():
                await self.watcher.confirm(number, block_hash)
            return (await self.node.existing(seen.number)).hash == seen.hash
        except Unavailable:
            return False


def _tx_data(wallet: str, units: int) -> str:
    return "0x" + erc20.transfer_call(wallet, units).hex()


async def find_deposits(node: Node, gig: GigRecord, since: int, last: int, balance: int) -> list[TokenTransfer]:
    """The largest transfers to the gig's wallet, oldest first; looked for from block `last` down, for a while.

    The search ends where all transfers since then make up this balance. Raises Unavailable.
    """
    found: list[TokenTransfer] = []
    size, missing = RANGE, balance
    try:
        async with asyncio.timeout(SEARCH_S):
            while last >= since and missing > 0:
                first = max(since, last - size + 1)
                try:
                    came = await node.token_deposits(gig.token.address, [gig.wallet], first, last)
                except ChainRefused:
                    if size == 1:
                        raise
                    size = max(1, size // 2)
                    continue
                missing -= sum(t.value for t in came)
                found = heapq.nlargest(MAX_DEPOSITS, [*found, *came], key=lambda t: t.value)
                last = first - 1
    except TimeoutError:
        log.warning("gig %d: not all of its funding was found in %d s of reading logs", gig.gig_id, SEARCH_S)
    return sorted(found, key=lambda t: (t.block_number, t.log_index))
