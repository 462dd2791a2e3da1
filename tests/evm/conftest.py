import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import pytest

from tests.support.harness import USDC, Chain, bytecode, devnet
from x402_gig.evm import batcher
from x402_gig.evm.eip3009 import Token
from x402_gig.evm.node import Node
from x402_gig.evm.rpc import Rpc

TOKEN = Token(USDC.lower(), "USD Coin", "2", 8453)
DEPLOYER = "0x" + "de" * 20
T = TypeVar("T")


@dataclass(frozen=True)
class Asked:
    """A chain, and the server's view of it for one question at a time."""

    chain: Chain

    def __call__(self, question: Callable[[Node], Awaitable[T]]) -> T:
        return asyncio.run(self._ask(question))

    async def _ask(self, question: Callable[[Node], Awaitable[T]]) -> T:
        node = Node(Rpc(self.chain.rpc_url), TOKEN)
        try:
            return await question(node)
        finally:
            await node.rpc.close()

    def deploy(self, name: str, *words: str) -> str:
        """One of the wallets of contracts/test, with addresses as constructor arguments; its address."""
        arguments = "".join(word[2:].lower().rjust(64, "0") for word in words)
        return str(self.chain.send(DEPLOYER, None, bytecode(name) + arguments)["contractAddress"])


@pytest.fixture(scope="session")
def chain() -> Iterator[Chain]:
    """An Anvil with the batcher on it."""
    with devnet() as chain:
        chain.send(DEPLOYER, batcher.CREATE2_DEPLOYER, "0x" + (batcher.SALT + batcher.creation_code()).hex())
        yield chain


@pytest.fixture(scope="session")
def ask(chain: Chain) -> Asked:
    return Asked(chain)
