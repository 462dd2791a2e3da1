"""What a transaction offers for its gas (EIP-1559), and how a stuck one is outbid."""

from msgspec import Struct

from x402_gig.chainsync.head import Head
from x402_gig.evm.node import Node

MIN_PRIORITY_FEE = 1_000_000


class Fees(Struct, frozen=True):
    """Wei per gas."""

    max_fee: int
    priority_fee: int


async def market(node: Node, head: Head) -> Fees:
    """Enough for the next blocks even when the base fee doubles. Raises Unavailable."""
    priority = max(await node.priority_fee(), MIN_PRIORITY_FEE)
    return Fees(2 * (await head.newest()).base_fee + priority, priority)


def outbid(previous: Fees, now: Fees) -> Fees:
    """Nodes take a replacement only when both fees are an eighth higher, at the most demanding of them."""
    return Fees(max(now.max_fee, _raised(previous.max_fee)), max(now.priority_fee, _raised(previous.priority_fee)))


def _raised(fee: int) -> int:
    return fee + fee // 8 + 1
