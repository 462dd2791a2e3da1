"""Other tokens than USDC on a chain, and what a creator does with them."""

from dataclasses import dataclass
from typing import Any

from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_utils.crypto import keccak

from tests.support.harness import Chain, Json, bytecode

DEPLOYER = "0x00000000000000000000000000000000000d0001"


def call_data(signature: str, *arguments: Any) -> str:
    types = signature[signature.index("(") + 1 : -1]
    encoded = abi_encode(types.split(",") if types else [], arguments)
    return "0x" + (keccak(text=signature)[:4] + encoded).hex()


@dataclass
class Erc20:
    """A token by its address; `send` is a plain transfer of base units from a fresh account."""

    chain: Chain
    address: str

    def call(self, signature: str, *arguments: Any) -> None:
        receipt = self.chain.send(DEPLOYER, self.address, call_data(signature, *arguments))
        assert receipt["status"] == "0x1", receipt

    def holder(self, units: int) -> str:
        account = str(Account.create().address)
        self.call("mint(address,uint256)", account, units)
        return account

    def send(self, payer: str, payee: str, units: int) -> Json:
        return self.chain.send(payer, self.address, call_data("transfer(address,uint256)", payee, units))

    def balance(self, account: str) -> int:
        data = call_data("balanceOf(address)", account)
        return int(self.chain.rpc("eth_call", {"to": self.address, "data": data}, "latest"), 16)


def deploy(chain: Chain, name: str) -> Erc20:
    """One of the tokens of contracts/test/Tokens.sol."""
    receipt = chain.send(DEPLOYER, None, bytecode(name, "Tokens"))
    return Erc20(chain, receipt["contractAddress"])
