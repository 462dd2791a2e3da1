"""What was executed of our public authorizations out of the gigs' wallets: the watcher reads the intake's only."""

import contextlib
from collections.abc import Sequence
from functools import partial

from x402_gig.errors import ChainRefused
from x402_gig.evm.node import Node
from x402_gig.ledger import keyed_gigs, movements
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.movements import Movement


async def find_executed(node: Node, ledger: Ledger, moves: Sequence[Movement]) -> None:
    """Note those of these movements that are on chain, whoever has executed them. Raises Unavailable."""
    for move in moves:
        wallet, since = await ledger.read(partial(keyed_gigs.wallet_since, gig_id=move.source_gig or 0))
        # A node that tells of fewer blocks at once says nothing: then it is looked for again later.
        with contextlib.suppress(ChainRefused):
            found = await node.executed(wallet, move.nonce, since)
            await ledger.write(partial(movements.complete_from_gigs, transfers=found))
