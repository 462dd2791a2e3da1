"""What a command needs of the running server's: its ledger and its wallets, and none of its turns."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from msgspec import Struct

from x402_gig.errors import CannotStart
from x402_gig.evm.node import Node
from x402_gig.evm.rpc import Rpc
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger import chain_state, shared_settings
from x402_gig.ledger.engine import Ledger
from x402_gig.server import preflight
from x402_gig.settings import FIXED, Settings


class Office(Struct, frozen=True):
    """`settings` are as the ledger has them; what a command can change, the `environment` may say otherwise."""

    environment: Settings
    settings: Settings
    wallets: Wallets
    ledger: Ledger


@asynccontextmanager
async def open_office(settings: Settings) -> AsyncIterator[Office]:
    """The ledger of these settings, whether or not a server is at work on it. Raises CannotStart."""
    ledger = Ledger(settings.database_url.get_secret_value(), is_guest=True)
    try:
        agreed = settings.agreed(await ledger.read(shared_settings.settings), FIXED)
        office = Office(settings, agreed, Wallets(agreed.mnemonic, agreed.wallet_account), ledger)
        await _check_owner(office)
        yield office
    finally:
        ledger.close()


async def _check_owner(office: Office) -> None:
    """Nonces are made of the seed: with another one, a refund would not be the one that this ledger knows."""
    bound = await office.ledger.read(chain_state.bound_to)
    if bound is None:
        raise CannotStart(["The ledger is empty: no server has started with it yet"])
    if bound.intake != office.wallets.intake.address:
        raise CannotStart(
            [f"The ledger belongs to the intake {bound.intake}: another seed or X402_GIG_WALLET_ACCOUNT made it"]
        )


@asynccontextmanager
async def open_chain(office: Office) -> AsyncIterator[Node]:
    """The chain that the ledger belongs to. Raises CannotStart or Unavailable."""
    node = Node(Rpc(office.settings.rpc_url.get_secret_value()), office.settings.preset.token)
    try:
        await preflight.check_chain(node)
        await preflight.check_ledger(node, office.ledger, office.wallets)
        yield node
    finally:
        await node.rpc.close()
