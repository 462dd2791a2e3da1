"""What was executed of our public authorizations out of the gigs' wallets: the watcher reads the intake's only."""

import contextlib
from collections.abc import Sequence
from functools import partial

from x402_gig.chain.node import Node
from x402_gig.errors import ChainRefused
from x402_gig.store import direct, funding
from x402_gig.store.engine import Ledger
from x402_gig.store.funding import Movement


async def find_executed(node: Node, ledger: Ledger, moves: Sequence[Movement]) -> None:
    """Note those of these movements that are on chain, whoever has executed them. Raises Unavailable."""
    for move in moves:
        wallet, since = await ledger.read(partial(direct.wallet_since, gig_id=move.source_gig or 0))
        # A node that tells of fewer blocks at once says nothing: then it is looked for again later.
        with contextlib.suppress(ChainRefused):
            found = await node.executed(wallet, move.nonce, since)
            await ledger.write(partial(funding.complete_from_gigs, transfers=found))
