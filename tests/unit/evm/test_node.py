"""A node's answers, right and wrong; the real ones are in tests/evm."""

import asyncio
from typing import Any

import pytest
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from tests.unit.evm.examples import BLOCK, NONCE, PAYER, PAYER_ACCOUNT, TOKEN, TRANSACTION, moved, used
from x402_gig.errors import ChainRefused, ChainUnavailable
from x402_gig.evm.batcher import Call
from x402_gig.evm.keys import PrivateKey
from x402_gig.evm.node import Block, Node, Receipt, SignedTransaction, sign_transaction
from x402_gig.evm.rpc import Rpc

RAW_BLOCK = {
    "number": "0x10",
    "hash": "0x" + "B1" * 32,
    "parentHash": "0x" + "B0" * 32,
    "timestamp": "0x64",
    "baseFeePerGas": "0x7",
    "gasLimit": hex(120_000_000),
}
RAW_RECEIPT = {
    "transactionHash": TRANSACTION,
    "status": "0x1",
    "blockNumber": "0x10",
    "blockHash": BLOCK,
    "gasUsed": "0x5208",
    "logs": [used(4), moved(5)],
}
AT = Block(16, BLOCK, "0x" + "b0" * 32, 100, 7, 120_000_000)
YEAR_2100 = 4_102_444_800
CHECKSUM = to_checksum_address(TOKEN.address)
SIGNED = SignedTransaction(TRANSACTION, "0xf00d")


class Scripted(Rpc):
    """A node that gives these answers, one after the other; an exception is raised."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[Any, ...]] = []

    async def call(self, method: str, *params: Any, timeout_s: float | None = None) -> Any:
        self.asked.append((method, *params))
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def node(*answers: Any) -> Node:
    return Node(Scripted(*answers), TOKEN)


def later(seconds: int) -> dict[str, Any]:
    """A block that is so much later than the end of the century."""
    return RAW_BLOCK | {"timestamp": hex(YEAR_2100 + seconds)}


def without(raw: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key != name}


def test_a_block_is_read_or_not_there() -> None:
    assert asyncio.run(node(RAW_BLOCK).block(16)) == AT
    assert asyncio.run(node(None).block(16)) is None


def test_a_block_without_a_base_fee_is_one_of_an_older_chain() -> None:
    block = asyncio.run(node(without(RAW_BLOCK, "baseFeePerGas")).head())
    assert block.base_fee == 0


BAD_BLOCKS = [
    [],
    "0x10",
    7,
    {},
    *(without(RAW_BLOCK, name) for name in ("number", "hash", "parentHash", "timestamp", "gasLimit")),
    RAW_BLOCK | {"number": None},
    RAW_BLOCK | {"hash": None},
    RAW_BLOCK | {"timestamp": "soon"},
    RAW_BLOCK | {"timestamp": "0x" + "f" * 4500},
    RAW_BLOCK | {"hash": "call +1 555"},
    RAW_BLOCK | {"parentHash": BLOCK[:-2]},
    *(RAW_BLOCK | {name: hex(2**63)} for name in ("number", "timestamp", "gasLimit")),
]


@pytest.mark.parametrize("raw", BAD_BLOCKS)
def test_a_malformed_block_is_no_answer(raw: Any) -> None:
    with pytest.raises(ChainUnavailable):
        asyncio.run(node(raw).block(16))


@pytest.mark.parametrize("parent", [None, RAW_BLOCK])
def test_a_block_of_the_far_future_is_no_answer(parent: Any) -> None:
    with pytest.raises(ChainUnavailable, match="of the future"):
        asyncio.run(node(later(0), parent).head())


def test_a_chain_that_is_far_ahead_of_this_machine_is_believed_when_its_blocks_agree() -> None:
    async def two_heads() -> list[int]:
        chain = node(later(0), later(-2), later(2))
        return [(await chain.head()).timestamp for _ in range(2)]

    assert asyncio.run(two_heads()) == [YEAR_2100, YEAR_2100 + 2]


def test_a_chain_without_a_head_is_no_answer() -> None:
    for question in (node(None).head(), node(None).genesis_hash()):
        with pytest.raises(ChainUnavailable):
            asyncio.run(question)


@pytest.mark.parametrize("raw", [None, "", "0x", "ten", "10", "-0x1", "0x" + "f" * 65, 16, 1.5, [], {}, True])
def test_what_is_no_number_is_no_answer(raw: Any) -> None:
    with pytest.raises(ChainUnavailable):
        asyncio.run(node(raw).chain_id())


@pytest.mark.parametrize("raw", [None, "0x0", "0xzz", 16, [], {}])
def test_what_are_no_bytes_is_no_answer(raw: Any) -> None:
    with pytest.raises(ChainUnavailable):
        asyncio.run(node(raw).code(PAYER))


@pytest.mark.parametrize("raw", ["0x", "0x00", "0x" + "ff" * 64, "0x" + "00" * 31 + "20", None])
def test_what_is_not_the_batchers_is_no_answer(raw: Any) -> None:
    """As from a chain where it is not deployed."""
    with pytest.raises(ChainUnavailable):
        asyncio.run(node(raw).simulate([Call(PAYER, 1, b"")]))


def test_a_receipt_names_its_block_and_what_moved() -> None:
    receipt = asyncio.run(node(RAW_RECEIPT).receipt(TRANSACTION))
    assert receipt is not None
    assert (receipt.success, receipt.block_number, receipt.block_hash, receipt.gas_used) == (True, 16, BLOCK, 21_000)
    assert [t.nonce for t in receipt.transfers] == [NONCE]


@pytest.mark.parametrize(
    "raw", [None, RAW_RECEIPT | {"blockHash": None}, without(RAW_RECEIPT, "blockHash"), TRANSACTION], ids=repr
)
def test_a_receipt_that_no_block_holds_is_none_yet(raw: Any) -> None:
    assert asyncio.run(node(raw).receipt(TRANSACTION)) is None


BAD_LOGS: list[Any] = [
    None,
    [{}],
    [None],
    [used(4), moved(5, data="0x")],
    [used(4), moved(5, data=None)],
    [used(4), moved(5, logIndex=None)],
    [used(4), moved(5, topics=None)],
    [used(4, topics=used(4)["topics"][:2]), moved(5)],
    [moved(5, transactionHash="call +1 555")],
    [moved(5, blockHash="call +1 555")],
    [moved(5, blockNumber=hex(2**63))],
]
BAD_RECEIPTS = [
    [],
    7,
    *(without(RAW_RECEIPT, name) for name in ("transactionHash", "status", "blockNumber", "gasUsed", "logs")),
    *(RAW_RECEIPT | {name: "call +1 555"} for name in ("transactionHash", "blockHash")),
    *(RAW_RECEIPT | {name: hex(2**63)} for name in ("blockNumber", "gasUsed")),
    *(RAW_RECEIPT | {"logs": logs} for logs in BAD_LOGS),
]


@pytest.mark.parametrize("raw", BAD_RECEIPTS)
def test_a_malformed_receipt_is_no_answer(raw: Any) -> None:
    with pytest.raises(ChainUnavailable):
        asyncio.run(node(raw).receipt(TRANSACTION))


@pytest.mark.parametrize("logs", [{}, "0x", [[]], *BAD_LOGS])
def test_malformed_logs_are_no_answer(logs: Any) -> None:
    with pytest.raises(ChainUnavailable):
        asyncio.run(node([moved(5)], [], logs).transfers(AT, PAYER))


def test_logs_are_asked_for_by_the_hash_of_their_block() -> None:
    rpc = Scripted([], [used(4)], [used(4), moved(5)])
    [found] = asyncio.run(Node(rpc, TOKEN).transfers(AT, PAYER))
    assert found.nonce == NONCE
    assert [query["blockHash"] for _, query in rpc.asked] == [BLOCK] * 3
    assert {query["address"] for _, query in rpc.asked} == {TOKEN.address}


def test_a_block_without_our_account_is_asked_for_no_more() -> None:
    rpc = Scripted([], [])
    assert asyncio.run(Node(rpc, TOKEN).transfers(AT, PAYER)) == []
    assert len(rpc.asked) == 2


def test_pairs_of_others_in_the_same_block_are_not_ours() -> None:
    other = "0x" + "99" * 20
    logs = [used(1, payer=other), moved(2, payer=other, payee=other), used(4), moved(5)]
    found = asyncio.run(node([], [used(4)], logs).transfers(AT, PAYER))
    assert [t.payer for t in found] == [PAYER]


def test_transfers_of_nothing_are_left_out() -> None:
    """Anybody may "transfer" zero from anybody."""
    logs = [used(1), moved(2, value=0), used(4), moved(5), moved(6, value=0), moved(7, value=1)]
    found = asyncio.run(node([], [moved(5)], logs).transfers(AT, PAYER))
    assert [(t.nonce, t.value) for t in found] == [(NONCE, 11_000_000), (None, 1)]


# A block that somebody filled with more logs than a node gives at once

TOO_MANY = ChainRefused("query returned more than 10000 results", code=-32005)


@pytest.mark.parametrize("given", [[TOO_MANY] * 2, [[moved(5)], TOO_MANY, TOO_MANY], [[moved(5)], [], TOO_MANY]])
def test_a_block_with_too_many_logs_is_read_from_its_receipts(given: list[Any]) -> None:
    receipts = [{"logs": [moved(2, payee="0x" + "99" * 20, payer="0x" + "99" * 20)]}, {"logs": [used(4), moved(5)]}]
    rpc = Scripted(*given, receipts)
    [found] = asyncio.run(Node(rpc, TOKEN).transfers(AT, PAYER))
    assert (found.nonce, found.value) == (NONCE, 11_000_000)
    assert rpc.asked[-1] == ("eth_getBlockReceipts", {"blockHash": BLOCK})


def test_without_its_receipts_either_it_is_not_an_empty_block() -> None:
    with pytest.raises(ChainRefused, match="10000"):
        asyncio.run(node(TOO_MANY, TOO_MANY, None).transfers(AT, PAYER))


@pytest.mark.parametrize("receipts", ["0x", [{}], [None], 7])
def test_malformed_receipts_of_a_block_are_no_answer(receipts: Any) -> None:
    with pytest.raises(ChainUnavailable):
        asyncio.run(node(TOO_MANY, TOO_MANY, receipts).transfers(AT, PAYER))


def test_a_question_about_a_block_is_about_this_very_one() -> None:
    """Another one of its height may say something else."""
    rpc = Scripted("0x01", "0x02")
    assert asyncio.run(Node(rpc, TOKEN).balance_of(PAYER, AT)) == 1
    assert asyncio.run(Node(rpc, TOKEN).balance_of(PAYER)) == 2
    assert [asked[-1] for asked in rpc.asked] == [{"blockHash": BLOCK, "requireCanonical": True}, "latest"]


# Sending

SYNC, PLAIN = "eth_sendRawTransactionSync", "eth_sendRawTransaction"


def test_a_node_that_waits_for_the_receipt_is_asked_once() -> None:
    rpc = Scripted(RAW_RECEIPT)
    receipt = asyncio.run(Node(rpc, TOKEN).send(SIGNED))
    assert isinstance(receipt, Receipt)
    assert rpc.asked == [(SYNC, "0xf00d")]


def test_a_node_that_cannot_wait_is_not_asked_to_again() -> None:
    rpc = Scripted(ChainRefused("unknown method", code=-32601), TRANSACTION, TRANSACTION)
    sender = Node(rpc, TOKEN)
    assert [asyncio.run(sender.send(SIGNED)) for _ in range(2)] == [None, None]
    assert [method for method, _ in rpc.asked] == [SYNC, PLAIN, PLAIN]


@pytest.mark.parametrize("error", [ChainRefused("nonce too low", code=-32000), ChainUnavailable("time-out")])
def test_a_refusal_and_a_time_out_are_not_answered_by_sending_again(error: Exception) -> None:
    rpc = Scripted(error)
    with pytest.raises(type(error)):
        asyncio.run(Node(rpc, TOKEN).send(SIGNED))
    assert len(rpc.asked) == 1


def test_a_signed_transaction_is_the_signers() -> None:
    fields = {"chainId": 8453, "nonce": 3, "gas": 1, "maxFeePerGas": 2, "maxPriorityFeePerGas": 1}
    signed = sign_transaction(PrivateKey(bytes(PAYER_ACCOUNT.key)), fields | {"to": CHECKSUM, "data": b"\1"})
    assert Account.recover_transaction(signed.raw).lower() == PAYER
    assert signed.hash == "0x" + keccak(hexstr=signed.raw).hex()
