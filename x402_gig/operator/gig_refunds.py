"""Money in the wallet of a gig that was created with a key and does not need it: back it goes, once."""

from collections.abc import Sequence
from typing import Any

from msgspec import Struct, to_builtins

from x402_gig.errors import Refused
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Node
from x402_gig.gigs.pricing import UINT256_MAX
from x402_gig.gigs.records import GigRecord
from x402_gig.ledger import chain_state, debts, keyed_gigs, movements
from x402_gig.ledger.engine import Connection
from x402_gig.market.keyed_gigs import find_deposits
from x402_gig.operator.opening import Office


class Spare(Struct, frozen=True):
    """What a gig's wallet holds at a confirmed block beyond what is promised, and what came to it (`deposits`)."""

    gig: GigRecord
    block_number: int
    balance: int
    units: int
    deposits: Sequence[TokenTransfer]

    @property
    def text(self) -> str:
        return self.gig.token.told(self.units)

    @property
    def origins(self) -> list[str]:
        """The largest deposits, oldest first: what is to go back is mostly the last of them."""
        came = [f"{self.gig.token.told(t.value)} came from {t.payer} in {t.transaction}" for t in self.deposits]
        return came or ["The token's logs do not say who sent it: ask the gig's creator."]


async def spare(office: Office, node: Node, gig_id: int) -> Spare:
    """Raises Refused when there is nothing to give back, and Unavailable."""
    gig = await office.ledger.read(lambda c: keyed_gigs.find(c, gig_id))
    if gig is None:
        raise Refused(f"There is no gig {gig_id} that was created with an API key: x402-gig gigs list")
    head = await node.head()
    block = await node.block(max(0, head.number - office.settings.confirmations + 1)) or head
    balance = await node.token_balance(gig.token.address, gig.wallet, block)
    if balance is None:
        raise Refused(f"The token {gig.token.address} does not tell its balances")
    kept, left_in, since = await office.ledger.read(
        lambda c: (debts.owed(c, gig_id), keyed_gigs.newest_payout_block(c, gig_id), keyed_gigs.since_block(c, gig_id))
    )
    if left_in > block.number:
        raise Refused("The chain node is behind the ledger: try again")
    if balance <= kept:
        held = gig.token.told(balance)
        raise Refused(f"Gig {gig_id} has nothing to give back: its wallet {gig.wallet} holds {held}")
    # All of them: what is to go back may have come at any time.
    deposits = await find_deposits(node, gig, since, block.number, balance=UINT256_MAX)
    return Spare(gig, block.number, balance, balance - kept, deposits)


def pay(connection: Connection, office: Office, found: Spare, to: str) -> int:
    """Write it down, and end a gig that was never started; its number.

    Raises Refused when something has changed meanwhile.
    """
    if halt := chain_state.funding_halt(connection):
        raise Refused(f"The server is halted and signs nothing: {halt}. See docs/operations.md")
    gig = keyed_gigs.find(connection, found.gig.gig_id)
    if gig is None or gig.state != found.gig.state or _has_moved(connection, gig, found):
        raise Refused("The gig has changed meanwhile: try again")
    keyed_gigs.give_back(connection, gig, found.units)
    number = movements.next_subject(connection, movements.SURPLUS)
    is_usdc = gig.token.address == office.settings.preset.token.address
    asset, nonce = None if is_usdc else gig.token.address, office.wallets.surplus_nonce(number)
    due = movements.due_row(movements.SURPLUS, number, to, found.units, nonce, source_gig=gig.gig_id, asset=asset)
    return movements.add(connection, due)


def _has_moved(connection: Connection, gig: GigRecord, found: Spare) -> bool:
    """Is there more to leave than was found, or has something left since?"""
    has_left = keyed_gigs.newest_payout_block(connection, gig.gig_id) > found.block_number
    return has_left or found.balance - debts.owed(connection, gig.gig_id) != found.units


def as_json(gig: GigRecord, key_prefix: str) -> dict[str, Any]:
    """Amounts in base units, times in Unix seconds."""
    return {**to_builtins(gig), "key": key_prefix}


def line(gig: GigRecord, key_prefix: str) -> str:
    told = gig.token.told
    surplus = f"  surplus {told(gig.surplus_units)}" if gig.surplus_units else ""
    return f"{gig.gig_id:>4}  {gig.state:<9}  {told(gig.reward_units)}  {gig.wallet}  {key_prefix}{surplus}"
