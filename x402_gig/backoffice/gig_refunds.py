"""Money in the wallet of a gig that was created with a key and does not need it: back it goes, once."""

from dataclasses import dataclass

from x402_gig.backoffice.opening import Office
from x402_gig.chain.node import Node
from x402_gig.errors import Refused
from x402_gig.gigs.pricing import to_tokens
from x402_gig.gigs.records import GigRecord
from x402_gig.store import binding, direct, funding
from x402_gig.store.direct import Deposit
from x402_gig.store.engine import Connection


@dataclass(frozen=True)
class Spare:
    """What a gig's wallet holds at a final block beyond what is promised, and who sent it (`deposits`)."""

    gig: GigRecord
    balance: int
    units: int
    deposits: list[Deposit]

    @property
    def text(self) -> str:
        return f"{to_tokens(self.units, self.gig.token.decimals)} {self.gig.token.symbol}"


async def spare(office: Office, node: Node, gig_id: int) -> Spare:
    """Raises Refused when there is nothing to give back, and Unavailable."""
    gig = await office.ledger.read(lambda c: direct.find(c, gig_id))
    if gig is None:
        raise Refused(f"Gig {gig_id} was not created with an API key: x402-gig refunds list is for the others")
    head = await node.head()
    block = await node.block(max(0, head.number - office.settings.confirmations + 1)) or head
    balance = await node.token_balance(gig.token.address, gig.wallet, block)
    if balance is None:
        raise Refused(f"The token {gig.token.address} does not tell its balances")
    kept, deposits, left_in = await office.ledger.read(
        lambda c: (_kept(c, gig), direct.deposits(c, gig_id), direct.newest_payout_block(c, gig_id))
    )
    if left_in > block.number:
        raise Refused("The chain node is behind the ledger: try again")
    if balance <= kept:
        raise Refused(
            f"Gig {gig_id} has nothing to give back: its wallet {gig.wallet} holds "
            f"{to_tokens(balance, gig.token.decimals)} {gig.token.symbol}"
        )
    return Spare(gig, balance, balance - kept, deposits)


def _kept(connection: Connection, gig: GigRecord) -> int:
    """What stays or is about to leave. A gig that is not live needs nothing."""
    reward = gig.reward_units if gig.state == "live" else 0
    return reward + direct.owed(connection, gig.gig_id)


def pay(connection: Connection, office: Office, found: Spare, to: str) -> int:
    """Write it down, and end a gig that was never started; its number.

    Raises Refused when something has changed meanwhile.
    """
    if halt := binding.funding_halt(connection):
        raise Refused(f"The server is halted and signs nothing: {halt}. See docs/operations.md")
    gig = direct.find(connection, found.gig.gig_id)
    if gig is None or gig.state != found.gig.state or found.balance - _kept(connection, gig) != found.units:
        raise Refused("The gig has changed meanwhile: try again")
    if gig.state == "created":
        direct.cancel(connection, gig.gig_id)
    number = funding.next_subject(connection, funding.SURPLUS)
    is_usdc = gig.token.address == office.settings.preset.usdc.lower()
    return funding.add(
        connection,
        funding.SURPLUS,
        number,
        to,
        found.units,
        office.wallets.surplus_nonce(number),
        source_gig=gig.gig_id,
        asset=None if is_usdc else gig.token.address,
    )
