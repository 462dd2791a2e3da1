"""The wallet of a gig as a sender: like a relayer, but what it sends is worth more than its gas."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from x402_gig.errors import GigError, Unavailable
from x402_gig.evm.node import Block
from x402_gig.ledger import debts, keyed_gigs, movements, slots
from x402_gig.ledger.engine import Connection
from x402_gig.ledger.movements import Movement
from x402_gig.ledger.slots import Attempt, Slot
from x402_gig.relaying.relayer import Relayer

# What a rollup asks for publishing a transaction (wei).
PUBLISHING_FEE = 10**13


class SlotClosed(GigError):
    """The operator has said how the wallet goes on."""


class Short(Unavailable):
    """The wallet does not hold all that it owes."""


@dataclass(kw_only=True)
class GigWallet(Relayer):
    """Only this server has its key, so a nonce that is used without a receipt never makes its payment due again.

    `provide_gas` waits until the wallet holds so much (wei). `waits_for` says what it waits for besides a block, and
    `stuck` why it waits for the operator; both are empty where it does not.
    """

    gig_id: int
    provide_gas: Callable[["GigWallet", Movement, int], Awaitable[None]]
    waits_for: str = field(default="", init=False)
    stuck: str = field(default="", init=False)
    _held: int | None = field(default=None, init=False)

    async def weigh(self, token: str) -> None:
        """Look what the wallet holds, for `check_bid`. Raises Unavailable when the node is behind the ledger."""
        block = await self.head.look()
        if block.number < await self.ledger.read(lambda c: keyed_gigs.newest_payout_block(c, self.gig_id)):
            raise Unavailable("the chain node is behind the ledger")
        self._held = await self.node.token_balance(token, self.wallet.address, block)

    def check_bid(self, connection: Connection) -> None:
        """Raises Short when what the wallet held is less than what it owes."""
        if shortage := debts.shortage(connection, self.gig_id, self._held):
            raise Short(shortage)

    async def may_send(self, slot: Slot) -> bool:
        """Not while a reorganisation has taken the gig's funding away: it might pay out of the reward.

        Raises SlotClosed.
        """
        is_open, is_backed = await self.ledger.read(lambda c: (slots.is_open(c, slot), slots.is_backed(c, slot)))
        if not is_open:
            raise SlotClosed(f"slot {slot.slot_id}/{slot.nonce} was closed by the operator")
        self.waits_for = "" if is_backed else "its funding is off the chain"
        return is_backed

    async def prepare_bid(self, slot: Slot, wei: int) -> None:
        """Gas money for a higher fee, which costs more than was sent for the last one."""
        move = await self.ledger.read(lambda c: movements.carried(c, slot.slot_id))
        self.waits_for = "its transaction is to be outbid, and it has no gas for that yet"
        await self.provide_gas(self, move, wei + PUBLISHING_FEE)
        await self.weigh(move.asset or "")

    async def lost_in(self, slot: Slot, attempts: Sequence[Attempt], head: Block) -> Block | None:
        """Never: whatever has used the nonce may have paid. The operator says how it goes on."""
        deep = await self.node.existing(max(0, head.number - self.reorg_depth))
        if await self.node.nonce(self.wallet.address, deep) > slot.nonce:
            self.stuck = unreceipted(self.gig_id, self.wallet.address, slot.nonce)
        return None


def unreceipted(gig_id: int, wallet: str, nonce: int) -> str:
    return (
        f"nonce {nonce} of the wallet {wallet} of gig {gig_id} is used, and none of the transactions that this ledger "
        f"has for it has a receipt: x402-gig gigs unblock {gig_id}"
    )
