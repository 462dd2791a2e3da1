"""The server's view of a chain, on Anvil: what is there, what would happen, and what moved."""

import secrets
from collections.abc import Sequence

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from msgspec.structs import replace

from tests.evm.conftest import TOKEN, Asked
from tests.evm.payments import INTAKE, payment, requirements, signed_by
from tests.support.harness import Chain, Json
from x402_gig.errors import ChainRefused, ChainUnavailable
from x402_gig.evm import batcher, eip3009
from x402_gig.evm.batcher import Call, Result
from x402_gig.evm.node import Block, Node, SignedTransaction, sign_transaction
from x402_gig.evm.wallets import Wallet, Wallets
from x402_gig.payments.payment import Payment

NOBODY = "0x" + "77" * 20
STRANGER = "0x" + "5a" * 20


def intake() -> str:
    """An account that nobody paid yet."""
    return "0x" + secrets.token_hex(20)


def call_of(paid: Payment) -> bytes:
    return eip3009.transfer_call(paid.authorization, paid.signature, ecdsa=True)


def broadcast(chain: Chain, *payments: Payment) -> Json:
    """A stranger executes these authorizations in one transaction; its receipt."""
    data = batcher.execute_data(TOKEN.address, 100_000, [call_of(paid) for paid in payments])
    return chain.send(STRANGER, batcher.address(), "0x" + data.hex())


def block_of(ask: Asked, receipt: Json) -> Block:
    block = ask(lambda node: node.block(int(receipt["blockNumber"], 16)))
    assert block is not None
    return block


# Blocks and accounts


def test_the_chain_is_known_by_its_id_and_genesis(ask: Asked, chain: Chain) -> None:
    assert ask(lambda node: node.chain_id()) == 8453
    assert ask(lambda node: node.genesis_hash()) == chain.rpc("eth_getBlockByNumber", "0x0", False)["hash"]


def test_blocks_follow_each_other(ask: Asked, chain: Chain) -> None:
    chain.rpc("evm_mine")
    head = ask(lambda node: node.head())
    parent = ask(lambda node: node.block(head.number - 1))
    assert parent is not None
    assert (parent.number, parent.hash) == (head.number - 1, head.parent_hash)
    assert parent.timestamp <= head.timestamp


def test_a_block_of_the_future_is_none(ask: Asked) -> None:
    assert ask(lambda node: node.block(10**9)) is None


def test_an_account_that_nobody_used_has_nothing(ask: Asked) -> None:
    assert ask(lambda node: node.code(NOBODY)) == b""
    assert ask(lambda node: node.native_balance(NOBODY)) == 0
    assert ask(lambda node: node.nonce(NOBODY)) == 0
    assert ask(lambda node: node.balance_of(NOBODY)) == 0


def test_the_batcher_is_where_its_address_says(ask: Asked) -> None:
    assert ask(lambda node: node.code(batcher.address())) == batcher.runtime_code()


def test_the_domain_is_the_tokens(ask: Asked) -> None:
    assert ask(lambda node: node.domain_separator()) == "0x" + TOKEN.domain_separator.hex()


def test_a_balance_is_the_blocks(ask: Asked, chain: Chain) -> None:
    to = intake()
    receipt = broadcast(chain, payment(chain.buyer(), requirements(payTo=to)))
    before, after = blocks_around(ask, receipt)
    assert ask(lambda node: node.balance_of(to, before)) == 0
    assert ask(lambda node: node.balance_of(to, after)) == 11_000_000


def blocks_around(ask: Asked, receipt: Json) -> tuple[Block, Block]:
    """The block before that of the receipt, and that of the receipt."""
    number = int(receipt["blockNumber"], 16)
    before, after = ask(lambda node: node.block(number - 1)), ask(lambda node: node.block(number))
    assert before is not None
    assert after is not None
    return before, after


# Simulation


def simulated(ask: Asked, calls: Sequence[Call]) -> list[Result]:
    return ask(lambda node: node.simulate(calls))[1]


def test_a_simulation_names_its_block_and_changes_nothing(ask: Asked, chain: Chain) -> None:
    buyer = chain.buyer(11_000_000)
    paid = payment(buyer)
    calls = [Call(TOKEN.address, 100_000, call_of(paid)), Call(TOKEN.address, 50_000, balance(buyer))]

    number, (moved, left) = ask(lambda node: node.simulate(calls))

    assert number == int(chain.rpc("eth_blockNumber"), 16)
    assert (moved.tried, moved.success, moved.data) == (True, True, b"")
    # The calls see each other; the chain does not see them.
    assert left.number == 0
    assert chain.usdc(buyer.address) == 11_000_000


def balance(account: LocalAccount) -> bytes:
    return eip3009.balance_of_call(account.address)


def test_each_call_has_its_own_end_and_its_own_gas(ask: Asked, chain: Chain) -> None:
    burner = ask.deploy("GasBurner")
    paid = payment(chain.buyer())
    calls = [
        Call(burner, 60_000, eip3009.is_valid_signature_call(bytes(32), b"")),
        Call(TOKEN.address, 100_000, call_of(paid)),
        Call(TOKEN.address, 100_000, call_of(paid)),
        Call(NOBODY, 50_000, b"anything"),
    ]

    burnt, first, second, nobody = simulated(ask, calls)

    assert (burnt.success, burnt.gas_used >= 60_000, burnt.revert_reason) == (False, True, "no reason")
    assert first.success
    assert (second.success, second.revert_reason) == (False, "FiatTokenV2: authorization is used or canceled")
    assert nobody.success


def test_a_returned_megabyte_is_cut(ask: Asked) -> None:
    bomb = ask.deploy("BombWallet")
    [result] = simulated(ask, [Call(bomb, 3_000_000, eip3009.is_valid_signature_call(bytes(32), b""))])
    assert result.success
    assert len(result.data) == 256


def test_a_simulation_of_the_past_sees_the_past(ask: Asked, chain: Chain) -> None:
    paid = payment(chain.buyer())
    earlier, later = blocks_around(ask, broadcast(chain, paid))
    state = eip3009.authorization_state_call(paid.authorization.payer, paid.authorization.nonce)
    calls = [Call(TOKEN.address, 50_000, state)]

    _, [before] = ask(lambda node: node.simulate(calls, earlier))
    _, [after] = ask(lambda node: node.simulate(calls, later))

    assert (before.number, after.number) == (0, 1)


# Whose signature is it?


def test_a_payer_without_code_signs_by_key_only(ask: Asked, chain: Chain) -> None:
    buyer, other = chain.buyer(), Account.create()
    own, forged = payment(buyer), signed_by(other, buyer.address)
    assert ask(lambda node: node.proves(own.authorization, own.signature)) is True
    assert ask(lambda node: node.proves(forged.authorization, forged.signature)) is False


@pytest.mark.parametrize(
    ("wallet", "proven"),
    [
        ("Wallet1271", True),
        ("LyingWallet", False),
        ("GasBurner", False),
        ("BombWallet", False),
        ("FickleWallet", False),
    ],
)
def test_a_contract_is_asked(ask: Asked, wallet: str, proven: bool) -> None:
    owner: LocalAccount = Account.create()
    arguments = [owner.address] if wallet == "Wallet1271" else []
    paid = signed_by(owner, ask.deploy(wallet, *arguments))
    assert ask(lambda node: node.proves(paid.authorization, paid.signature)) is proven


def test_a_contract_answers_for_its_owner_only(ask: Asked) -> None:
    wallet = ask.deploy("Wallet1271", Account.create().address)
    paid = signed_by(Account.create(), wallet)
    assert ask(lambda node: node.proves(paid.authorization, paid.signature)) is False


# Is it used?


def test_an_authorization_is_used_from_the_block_on_that_has_it(ask: Asked, chain: Chain) -> None:
    paid, before = payment(chain.buyer()), ask(lambda node: node.head())
    after = block_of(ask, broadcast(chain, paid))
    assert ask(lambda node: node.is_used(paid.authorization, before)) is False
    assert ask(lambda node: node.is_used(paid.authorization, after)) is True
    assert ask(lambda node: node.is_used(paid.authorization)) is True


def test_a_token_that_does_not_tell_is_no_token_that_says_no(ask: Asked, chain: Chain) -> None:
    paid = payment(chain.buyer())

    async def asked_of_no_token(node: Node) -> bool:
        return await Node(node.rpc, replace(TOKEN, address=batcher.address())).is_used(paid.authorization)

    with pytest.raises(ChainUnavailable, match="does not tell"):
        ask(asked_of_no_token)


# What moved


def test_a_deposit_is_found_in_its_block_whoever_sent_it(ask: Asked, chain: Chain) -> None:
    to, buyer = intake(), chain.buyer()
    paid = payment(buyer, requirements(payTo=to))
    receipt = broadcast(chain, paid)
    block = block_of(ask, receipt)

    [found] = ask(lambda node: node.transfers(block, to))

    assert (found.payer, found.payee, found.value) == (buyer.address.lower(), to, 11_000_000)
    assert found.nonce == paid.authorization.nonce
    assert (found.transaction, found.block_hash) == (receipt["transactionHash"], receipt["blockHash"])
    assert found.block_number == block.number
    # The payer's own view, and that of the receipt.
    assert ask(lambda node: node.transfers(block, found.payer)) == [found]
    seen = ask(lambda node: node.receipt(receipt["transactionHash"]))
    assert seen is not None
    assert (seen.success, seen.block_hash, seen.transfers) == (True, block.hash, [found])


def test_every_pair_of_a_transaction_is_a_deposit_of_its_own(ask: Asked, chain: Chain) -> None:
    to = intake()
    mine = [payment(chain.buyer(), requirements(payTo=to, amount=str(n))) for n in (1, 2, 3)]
    foreign = payment(chain.buyer(), requirements(payTo=intake()))
    block = block_of(ask, broadcast(chain, mine[0], foreign, *mine[1:]))

    found = ask(lambda node: node.transfers(block, to))

    assert [(t.nonce, t.value) for t in found] == [
        (p.authorization.nonce, n) for p, n in zip(mine, (1, 2, 3), strict=True)
    ]


def test_a_call_that_failed_is_no_deposit(ask: Asked, chain: Chain) -> None:
    to, poor = intake(), chain.buyer(0)
    receipt = broadcast(chain, payment(poor, requirements(payTo=to)))
    assert receipt["status"] == "0x1"
    block = block_of(ask, receipt)
    assert ask(lambda node: node.transfers(block, to)) == []


def test_a_plain_transfer_is_seen_and_has_no_nonce_and_one_of_nothing_is_none(ask: Asked, chain: Chain) -> None:
    to, buyer = intake(), chain.buyer()
    nothing = chain.send(buyer.address, TOKEN.address, "0xa9059cbb" + to[2:].rjust(64, "0") + f"{0:064x}")
    empty = block_of(ask, nothing)
    assert ask(lambda node: node.transfers(empty, to)) == []
    plain = chain.send(buyer.address, TOKEN.address, "0xa9059cbb" + to[2:].rjust(64, "0") + f"{5:064x}")
    block = block_of(ask, plain)
    [seen] = ask(lambda node: node.transfers(block, to))
    assert (seen.payer, seen.payee, seen.value, seen.nonce) == (buyer.address.lower(), to, 5, None)
    assert seen.transaction == plain["transactionHash"]


def test_a_block_the_node_does_not_have_is_not_an_empty_block(ask: Asked) -> None:
    head = ask(lambda node: node.head())
    with pytest.raises(ChainRefused):
        ask(lambda node: node.transfers(replace(head, hash="0x" + "99" * 32), INTAKE))


def test_busy_blocks_are_those_with_money_in_or_out(ask: Asked, chain: Chain) -> None:
    buyer, to = chain.buyer(), intake()
    first = block_of(ask, broadcast(chain, payment(buyer, requirements(payTo=to))))
    chain.rpc("anvil_mine", "0x3")
    second = block_of(ask, broadcast(chain, payment(buyer, requirements(payTo=to))))

    both = [first.number, second.number]
    assert ask(lambda node: node.busy_blocks(first.number, second.number, to)) == both
    assert ask(lambda node: node.busy_blocks(first.number, second.number, buyer.address.lower())) == both
    assert ask(lambda node: node.busy_blocks(first.number + 1, second.number - 1, to)) == []


# Sending


@pytest.fixture(scope="module")
def relayer(chain: Chain) -> Wallet:
    wallet = Wallets(Account.create_with_mnemonic()[1]).relayer(0)
    chain.rpc("anvil_setBalance", wallet.address, hex(10**20))
    return wallet


def signed(wallet: Wallet, nonce: int, data: bytes, to: str) -> SignedTransaction:
    fields = {"chainId": 8453, "nonce": nonce, "to": to, "data": data, "gas": 300_000}
    return sign_transaction(wallet.key, fields | {"maxFeePerGas": 10**10, "maxPriorityFeePerGas": 10**9})


def test_a_transaction_is_sent_once_and_found_by_its_hash(ask: Asked, chain: Chain, relayer: Wallet) -> None:
    paid = payment(chain.buyer())
    data = batcher.execute_data(TOKEN.address, 100_000, [call_of(paid)])
    nonce = ask(lambda node: node.nonce(relayer.address))
    transaction = signed(relayer, nonce, data, batcher.address())

    receipt = ask(lambda node: node.send(transaction))

    assert receipt is not None
    assert (receipt.transaction, receipt.success) == (transaction.hash, True)
    assert [t.nonce for t in receipt.transfers] == [paid.authorization.nonce]
    assert ask(lambda node: node.receipt(transaction.hash)) == receipt
    with pytest.raises(ChainRefused):
        ask(lambda node: node.send(transaction))


def test_a_nonce_is_used_when_a_block_has_its_transaction(ask: Asked, chain: Chain, relayer: Wallet) -> None:
    """One that waits in the pool counts for nothing: it may be dropped, or outbid."""
    nonce = ask(lambda node: node.nonce(relayer.address))
    chain.rpc("evm_setAutomine", False)
    try:
        ask(lambda node: node.send(signed(relayer, nonce, b"", NOBODY), wait=False))
        assert ask(lambda node: node.nonce(relayer.address)) == nonce
    finally:
        chain.mine()
    assert ask(lambda node: node.nonce(relayer.address)) == nonce + 1


def test_a_transaction_that_reverts_has_a_receipt_that_says_so(ask: Asked, relayer: Wallet) -> None:
    nonce = ask(lambda node: node.nonce(relayer.address))
    transaction = signed(relayer, nonce, b"\xde\xad\xbe\xef", batcher.address())
    receipt = ask(lambda node: node.send(transaction))
    assert receipt is not None
    assert (receipt.success, receipt.transfers) == (False, [])


def test_a_transaction_nobody_sent_has_no_receipt(ask: Asked) -> None:
    assert ask(lambda node: node.receipt("0x" + "12" * 32)) is None
