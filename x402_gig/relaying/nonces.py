"""Who used a nonce: the blocks tell, since receipts may come later than the nonces that they use."""

from collections.abc import Collection

from x402_gig.evm.node import Block, Node


async def taken_from(
    node: Node, account: str, nonce: int, ours: Collection[str], head: Block, depth: int
) -> Block | None:
    """The block in which a transaction that is none of `ours` (hashes) has used the nonce, on the chain of `head`.

    None while that is not proven. `depth` blocks below the head the search ends: so late no receipt comes, and a nonce
    that was used before that was used by somebody else. Raises ChainUnavailable.
    """
    if await node.nonce(account, head) <= nonce:
        return None
    block, last = head, max(0, head.number - depth)
    while block.number > last:
        parent = await node.parent(block)
        if await node.nonce(account, parent) <= nonce:
            return None if not set(ours).isdisjoint(await node.transactions(block)) else block
        block = parent
    return block
