"""The history of an account over many blocks: the same as block by block, for fewer calls."""

from eth_account import Account

from tests.evm.conftest import Asked
from tests.evm.payments import payment, requirements
from tests.evm.test_node import STRANGER, broadcast, intake
from tests.support import faults
from tests.support.harness import USDC, Chain, Json
from x402_gig.evm.eip3009 import TRANSFER_TOPIC, TokenTransfer
from x402_gig.evm.node import Node


def transfer(chain: Chain, sender: str, to: str, units: int) -> None:
    chain.send(sender, USDC, "0xa9059cbb" + to[2:].lower().rjust(64, "0") + f"{units:064x}")


def height(chain: Chain) -> int:
    return int(chain.rpc("eth_blockNumber"), 16)


async def one_by_one(node: Node, first: int, last: int, account: str) -> list[TokenTransfer]:
    blocks = [await node.block(number) for number in range(first, last + 1)]
    return [transfer for block in blocks if block for transfer in await node.transfers(block, account)]


def test_a_range_says_what_its_blocks_say(ask: Asked, chain: Chain) -> None:
    account, payers = intake(), [chain.buyer(), chain.buyer()]
    first = height(chain) + 1
    broadcast(chain, *(payment(payer, requirements(payTo=account)) for payer in payers))
    transfer(chain, payers[0].address, account, 5)
    transfer(chain, account, STRANGER, 3)
    transfer(chain, account, account, 2)
    transfer(chain, STRANGER, account, 0)
    broadcast(chain, payment(payers[1], requirements(payTo=account)))

    found = ask(lambda node: node.history(first, height(chain), account))

    assert found == ask(lambda node: one_by_one(node, first, height(chain), account))
    assert [(t.nonce is not None, t.value) for t in found] == [
        (True, 11_000_000), (True, 11_000_000), (False, 5), (False, 3), (False, 2), (True, 11_000_000)
    ]  # fmt: skip


def test_an_authorization_of_nothing_by_the_account_itself_is_in_its_history(ask: Asked, chain: Chain) -> None:
    """Somebody has its key."""
    owner = Account.create()
    first = height(chain) + 1
    broadcast(chain, payment(owner, requirements(payTo=STRANGER, amount="0")))
    [found] = ask(lambda node: node.history(first, height(chain), owner.address.lower()))
    assert (found.value, found.nonce is not None) == (0, True)


def test_a_stranger_beside_it_is_not_in_it(ask: Asked, chain: Chain) -> None:
    account, other, payer = intake(), intake(), chain.buyer()
    first = height(chain) + 1
    broadcast(chain, payment(payer, requirements(payTo=account)), payment(payer, requirements(payTo=other)))
    [found] = ask(lambda node: node.history(first, height(chain), account))
    assert (found.payer, found.payee, found.value) == (payer.address.lower(), account, 11_000_000)


def test_a_node_that_leaves_the_authorizations_out_makes_no_plain_transfers_of_them(chain: Chain) -> None:
    """A load balancer may ask a node that is behind only for the second of two lists."""
    account = intake()
    first = height(chain) + 1
    broadcast(chain, payment(chain.buyer(), requirements(payTo=account)))

    def behind(request: Json, forward: faults.Forward) -> faults.Reply:
        is_second = request["params"][0]["topics"][0] != TRANSFER_TOPIC
        return faults.answers([] if is_second else forward()["result"])(request, forward)

    with faults.rpc_proxy(chain) as proxy, proxy.broken(behind, "eth_getLogs"):
        # Nothing is told, and then the sum is not the balance's.
        assert Asked(proxy.chain)(lambda node: node.history(first, height(chain), account)) == []


def test_dust_in_every_block_takes_no_question_for_each(chain: Chain) -> None:
    account, stranger = intake(), chain.buyer(1000)
    first = height(chain) + 1
    for _ in range(20):
        transfer(chain, stranger.address, account, 1)
    with faults.rpc_proxy(chain) as proxy:
        found = Asked(proxy.chain)(lambda node: node.history(first, height(chain), account))
        assert [t.value for t in found] == [1] * 20
        assert proxy.calls["eth_getLogs"] == 3
