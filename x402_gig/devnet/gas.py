"""Gas for nothing, on Anvil."""

from collections.abc import Sequence

from x402_gig.chain.rpc import Rpc

PLENTY_WEI = 10_000 * 10**18


async def give_gas(rpc: Rpc, addresses: Sequence[str]) -> None:
    """Set the accounts' native balances. Raises ChainRefused when the node is not Anvil."""
    for address in addresses:
        await rpc.call("anvil_setBalance", address, hex(PLENTY_WEI))
