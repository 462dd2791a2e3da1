"""Gas for nothing, on Anvil."""

from collections.abc import Sequence

from x402_gig.errors import CannotStart, ChainRefused
from x402_gig.evm.rpc import Rpc

PLENTY_WEI = 10_000 * 10**18


async def give_gas(rpc: Rpc, addresses: Sequence[str]) -> None:
    """Set the accounts' native balances. Raises CannotStart when the node is not Anvil."""
    for address in addresses:
        try:
            await rpc.call("anvil_setBalance", address, hex(PLENTY_WEI))
        except ChainRefused:
            raise CannotStart(
                ["X402_GIG_NETWORK is devnet, and X402_GIG_RPC_URL leads to a node that is no Anvil"]
            ) from None
