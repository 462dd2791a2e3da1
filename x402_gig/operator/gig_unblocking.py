"""A gig's wallet whose nonce was used by a transaction without a receipt: the token's logs say what it has paid.

That something is not paid is believed only where the logs make up what the wallet holds.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from msgspec import Struct

from x402_gig.chainsync.history import in_ranges
from x402_gig.errors import Refused
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block, Node
from x402_gig.gigs.records import GigRecord
from x402_gig.ledger import blocked_wallets, keyed_gigs
from x402_gig.ledger.blocked_wallets import Sent
from x402_gig.ledger.engine import Connection
from x402_gig.ledger.movements import Movement
from x402_gig.ledger.slots import End
from x402_gig.operator.opening import Office


class Standstill(Struct, frozen=True):
    """What is to be decided, as the chain shows it in a `block` that nothing replaces any more.

    `nonces` are used there, and the ledger does not know by what. `strange` left the wallet in transactions that the
    ledger does not know; `paid` is the part of it that pays what is due.
    """

    gig: GigRecord
    block: Block
    sent: Sent
    nonces: Sequence[int]
    strange: Sequence[TokenTransfer]
    paid: Mapping[Movement, TokenTransfer]

    @property
    def due_again(self) -> list[Movement]:
        return [move for move in self.sent.due if move not in self.paid]

    def lines(self) -> Iterator[str]:
        told = self.gig.token.told
        for nonce in self.nonces:
            yield f"Nonce {nonce} of the wallet {self.gig.wallet} was used by a transaction that has no receipt here."
        for t in self.strange:
            yield f"{told(t.value)} went to {t.payee} in {t.transaction}, block {t.block_number}."
        for move, transfer in self.paid.items():
            yield f"So the {move.kind} of {told(move.value)} to {move.payee} is paid, in {transfer.transaction}."
        for move in self.due_again:
            yield f"The {move.kind} of {told(move.value)} to {move.payee} is not paid, and is sent again."


async def look(office: Office, node: Node, gig_id: int) -> Standstill:
    """Raises Refused when nothing of the gig stands still, and Unavailable."""
    gig = await office.ledger.read(lambda c: keyed_gigs.find(c, gig_id))
    if gig is None:
        raise Refused(f"There is no gig {gig_id} that was created with an API key: x402-gig gigs list")
    block = await _deep_block(office, node)
    sent, since = await office.ledger.read(
        lambda c: (blocked_wallets.read(c, gig_id, gig.wallet), keyed_gigs.since_block(c, gig_id))
    )
    nonces = [n for n in range(await node.nonce(gig.wallet, block)) if n not in sent.closed]
    for slot, hashes in sent.open:
        if slot.nonce in nonces and [h for h in hashes if await node.receipt(h) is not None]:
            raise Refused(f"Gig {gig_id} goes on by itself: the transaction of its wallet has a receipt")
    left = await in_ranges(partial(node.token_payments, gig.token.address, [gig.wallet]), since, block.number)
    strange = [transfer for transfer in left if transfer.transaction not in sent.paid_in]
    paid = _paid(sent.due, strange)
    if not nonces and not paid:
        raise Refused(f"Nothing of gig {gig_id} stands still in block {block.number}, where all is final")
    found = Standstill(gig, block, sent, nonces, strange, paid)
    if found.due_again:
        await _check_logs(node, gig, block, since, left)
    return found


async def _check_logs(node: Node, gig: GigRecord, block: Block, since: int, left: Sequence[TokenTransfer]) -> None:
    """A node that leaves logs out would have a payment made twice: Refused unless they make up the balance.

    Raises Unavailable.
    """
    came = await in_ranges(partial(node.token_deposits, gig.token.address, [gig.wallet]), since, block.number)
    held = await node.token_balance(gig.token.address, gig.wallet, block)
    into, out = (sum(transfer.value for transfer in moved) for moved in (came, left))
    if held == into - out:
        return
    told = gig.token.told
    holds = "the token does not tell its balance" if held is None else f"it holds {told(held)}"
    raise Refused(
        f"The logs of the token do not explain what the wallet {gig.wallet} holds in block {block.number}: by the logs "
        f"{told(into)} came and {told(out)} left, but {holds}. "
        "The chain node may leave logs out, and then nobody knows what is paid: try again, or with another node"
    )


async def _deep_block(office: Office, node: Node) -> Block:
    head = await node.head()
    return await node.existing(max(0, head.number - office.settings.reorg_depth))


def _paid(due: Sequence[Movement], strange: Sequence[TokenTransfer]) -> dict[Movement, TokenTransfer]:
    """Each transfer pays one movement to the same payee; a token may keep a part of it."""
    left, paid = list(strange), dict[Movement, TokenTransfer]()
    for move in due:
        fitting = [t for t in left if t.payee == move.payee and t.value <= move.value]
        if fitting:
            paid[move] = max(fitting, key=lambda t: t.value)
            left.remove(paid[move])
    return paid


def go_on(connection: Connection, found: Standstill) -> int:
    """Write it down; the gig's number. Raises Refused when something has changed meanwhile."""
    gig = found.gig
    if blocked_wallets.read(connection, gig.gig_id, gig.wallet) != found.sent:
        raise Refused("The gig has changed meanwhile: try again")
    end = End(found.block.number, found.block.hash)
    blocked_wallets.go_on(connection, gig.wallet, found.nonces, found.paid, end)
    return gig.gig_id
