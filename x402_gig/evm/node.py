"""What the server asks a chain, in its own words; the only room that speaks JSON-RPC."""

import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct

from x402_gig.errors import ChainRefused, ChainUnavailable
from x402_gig.evm import batcher, eip3009, erc20, rlp, used_wallets
from x402_gig.evm.answers import count, octets, quantity, word
from x402_gig.evm.batcher import Call, Result
from x402_gig.evm.eip3009 import Token, TokenTransfer, token_transfers
from x402_gig.evm.keccak import keccak
from x402_gig.evm.keys import PrivateKey
from x402_gig.evm.rpc import METHOD_NOT_FOUND, Rpc
from x402_gig.evm.used_wallets import Trace
from x402_gig.gigs.records import TokenInfo
from x402_gig.payments.payment import Authorization

log = logging.getLogger(__name__)

# What reading JSON of another shape than expected ends in.
MALFORMED = (TypeError, ValueError, LookupError, AttributeError)
# Two blocks of Base; what takes longer is looked for by its hash.
SEND_TIMEOUT_S = 5
PRIORITY_FEE_TTL_S = 10
# No chain's clock is that far ahead of this machine's, nor one block of the one before.
MAX_AHEAD_S = 24 * 3600
# More than a cold storage slot and the proxy in front of the token cost.
READ_GAS = 50_000
# More than the batcher takes to look for one block.
ANCESTOR_GAS = 20_000
# Of the answer to a call that is not the batcher's, in bytes.
MAX_ANSWER = 256
# In one question for logs.
PAYERS_ASKED = 100
# Of a transaction (EIP-1559), in the order in which they are encoded, and its type (EIP-2718).
FIELDS = ("chainId", "nonce", "maxPriorityFeePerGas", "maxFeePerGas", "gas", "to", "value", "data")
TO, DATA = FIELDS.index("to"), FIELDS.index("data")
DYNAMIC_FEE = b"\x02"


class Block(Struct, frozen=True):
    number: int
    hash: str
    parent_hash: str
    timestamp: int
    base_fee: int
    gas_limit: int


class Receipt(Struct, frozen=True):
    transaction: str
    success: bool
    block_number: int
    block_hash: str
    gas_used: int
    transfers: list[TokenTransfer]


class SignedTransaction(Struct, frozen=True):
    """Ready to be sent; `raw` is as secret as the money it moves until it is on chain."""

    hash: str
    raw: str

    def __repr__(self) -> str:
        return f"SignedTransaction({self.hash})"


class Node:
    """One chain, seen through one RPC endpoint, and the token we are paid in.

    Every method raises ChainUnavailable when the node does not answer and ChainRefused when it says no.
    """

    def __init__(self, rpc: Rpc, token: Token) -> None:
        self.rpc = rpc
        self.token = token
        self._send_sync = True
        self._priority_fee = 0
        self._priority_fee_until = 0.0
        # The latest time of a block, in Unix seconds.
        self._latest = 0

    async def chain_id(self) -> int:
        return quantity(await self.rpc.call("eth_chainId"))

    async def genesis_hash(self) -> str:
        return (await self.existing(0)).hash

    async def head(self) -> Block:
        return _required(await self._block("eth_getBlockByNumber", "latest"), "latest")

    async def block(self, number: int) -> Block | None:
        return await self._block("eth_getBlockByNumber", hex(number))

    async def existing(self, number: int) -> Block:
        """The same, of a chain that is known to be this long: ChainUnavailable for a node that is behind."""
        return _required(await self.block(number), number)

    async def parent(self, block: Block) -> Block:
        """The block before this one on its own chain."""
        return _required(await self._block("eth_getBlockByHash", block.parent_hash), block.parent_hash)

    async def _block(self, method: str, name: str) -> Block | None:
        """ChainUnavailable for one that seems to be of the future, unless the block before it is of that time too."""
        block = _block(await self.rpc.call(method, name, False))
        if block is not None and block.timestamp > max(self._latest, time.time()) + MAX_AHEAD_S:
            parent = _block(await self.rpc.call("eth_getBlockByHash", block.parent_hash, False))
            if parent is None or block.timestamp > parent.timestamp + MAX_AHEAD_S:
                raise ChainUnavailable(f"the chain node's block {block.number} is of the future")
        self._latest = max(self._latest, block.timestamp if block else 0)
        return block

    async def transactions(self, block: Block) -> set[str]:
        """The hashes of a block's transactions: its own hash depends on them."""
        raw = await self.rpc.call("eth_getBlockByHash", block.hash, False)
        try:
            return {str(transaction).lower() for transaction in raw["transactions"]}
        except MALFORMED:
            raise ChainUnavailable(f"the chain node does not give the transactions of block {block.number}") from None

    async def code(self, address: str) -> bytes:
        return octets(await self.rpc.call("eth_getCode", address, "latest"))

    async def native_balance(self, address: str) -> int:
        return quantity(await self.rpc.call("eth_getBalance", address, "latest"))

    async def nonce(self, address: str, block: Block | None = None) -> int:
        """How many nonces are used, in the newest block or at the end of the one given."""
        return count(await self.rpc.call("eth_getTransactionCount", address, _exactly(block)))

    async def priority_fee(self) -> int:
        """Wei per gas; at most ten seconds old."""
        if time.monotonic() > self._priority_fee_until:
            self._priority_fee = quantity(await self.rpc.call("eth_maxPriorityFeePerGas"))
            self._priority_fee_until = time.monotonic() + PRIORITY_FEE_TTL_S
        return self._priority_fee

    async def domain_separator(self) -> str:
        return str(await self._call(self.token.address, eip3009.DOMAIN_SEPARATOR_CALL))

    async def balance_of(self, account: str, block: Block | None = None) -> int:
        """Token balance in base units, in the newest block or in the one given."""
        return quantity(await self._call(self.token.address, eip3009.balance_of_call(account), block))

    async def balance_above(self, account: str, block: Block, places: Iterable[tuple[int, str]]) -> int | None:
        """Token balance at a block, in base units; None when it has not all of these below it, heights with hashes.

        One call: the batcher tells whether the chain of the block has the 256 before it.
        """
        token = self.token.address
        older = {place for place in places if place != (block.number, block.hash)}
        calls = [
            Call(batcher.address(), ANCESTOR_GAS, batcher.execute_on_data(*place, token, 0, [])) for place in older
        ]
        calls.append(Call(token, READ_GAS, eip3009.balance_of_call(account)))
        _, results = await self.simulate(calls, block)
        return results[-1].number if all(result.success for result in results) else None

    async def refusals(self, *accounts: str) -> tuple[bool, list[bool]]:
        """Is the token paused, and which accounts are on its blacklist?"""
        token = self.token.address
        calls = [eip3009.PAUSED_CALL, *(eip3009.is_blacklisted_call(account) for account in accounts)]
        _, results = await self.simulate([Call(token, READ_GAS, data) for data in calls])
        paused, *blacklisted = [result.number != 0 for result in results]
        return paused, blacklisted

    async def _call(self, to: str, data: bytes, block: Block | None = None, **more: str) -> Any:
        return await self.rpc.call("eth_call", {"to": to, "data": "0x" + data.hex(), **more}, _exactly(block))

    async def simulate(self, calls: Sequence[Call], block: Block | None = None) -> tuple[int, list[Result]]:
        """Run `calls` one after the other on the newest block or the one given, each with its own gas limit."""
        data = batcher.simulate_data(calls)
        gas = batcher.intrinsic_gas(data) + sum(c.gas_limit * 64 // 63 + 10_000 for c in calls) + 100_000
        returned = octets(await self._call(batcher.address(), data, block, gas=hex(gas)))
        try:
            return batcher.simulated(returned)
        except ValueError:
            raise ChainUnavailable("eth_call: the chain node's answer is not the batcher's") from None

    def recovers(self, authorization: Authorization, signature: bytes) -> bool:
        return self.token.recovers(authorization, signature)

    async def proves(self, authorization: Authorization, signature: bytes) -> bool:
        """`recovers`, or a contract at the payer's address says so (ERC-1271)."""
        if self.recovers(authorization, signature):
            return True
        data = eip3009.is_valid_signature_call(self.token.digest(authorization), signature)
        _, [proof] = await self.simulate([Call(authorization.payer, batcher.CONTRACT_CALL_GAS, data)])
        if not proof.tried:  # the node gave the eth_call less gas than it was asked for
            raise ChainUnavailable("the payer's contract cannot be asked for its signature right now")
        return eip3009.approves(proof.success, proof.data)

    async def is_used(self, authorization: Authorization, block: Block | None = None) -> bool:
        """Was it executed or cancelled, by the newest block or by the one given?"""
        [is_used] = await self.are_used([authorization], block)
        if is_used is None:
            raise ChainUnavailable("the token does not tell whether the authorization is used")
        return is_used

    async def are_used(self, authorizations: Sequence[Authorization], block: Block | None = None) -> list[bool | None]:
        """The same of several; None where the token does not tell. No code but the token's runs before the answers."""
        states = [eip3009.authorization_state_call(a.payer, a.nonce) for a in authorizations]
        _, results = await self.simulate([Call(self.token.address, READ_GAS, state) for state in states], block)
        return [result.number != 0 if result.success else None for result in results]

    async def send(self, transaction: SignedTransaction, *, wait: bool = True) -> Receipt | None:
        """Broadcast; the receipt when the node waits for it, else None. ChainUnavailable: it may be out."""
        if self._send_sync and wait:
            try:
                raw = await self.rpc.call("eth_sendRawTransactionSync", transaction.raw, timeout_s=SEND_TIMEOUT_S)
                return _receipt(raw, self.token.address)
            except ChainRefused as refused:
                if refused.code != METHOD_NOT_FOUND:
                    raise
                self._send_sync = False
        await self.rpc.call("eth_sendRawTransaction", transaction.raw)
        return None

    async def receipt(self, transaction: str) -> Receipt | None:
        return _receipt(await self.rpc.call("eth_getTransactionReceipt", transaction), self.token.address)

    async def transfers(self, block: Block, account: str) -> list[TokenTransfer]:
        """Transfers to or from `account` in one block, asked for by its hash; those of nothing are left out.

        By hash, because some nodes answer a range beyond their head with an empty list.
        """
        try:
            is_touched = bool(await self._traces({"blockHash": block.hash}, account))
        except ChainRefused:
            is_touched = True
        # Anybody may "transfer" zero from anybody.
        found = await self._transfers_in(block.hash) if is_touched else []
        return [t for t in found if account in (t.payer, t.payee) and t.value]

    async def _transfers_in(self, block_hash: str) -> list[TokenTransfer]:
        """All of a block, from one answer: a pair is two neighbours of the whole block."""
        try:
            logs = await self._logs({"blockHash": block_hash}, [eip3009.MOVED_TOPICS])
        except ChainRefused:
            # Anybody may fill a block with more logs than the node gives at once.
            if (receipts := await self._receipts(block_hash)) is None:
                raise
            logs = [log for receipt in receipts for log in receipt]
        return _transfers(logs, self.token.address)

    async def _receipts(self, block_hash: str) -> list[list[dict[str, Any]]] | None:
        """The logs of each transaction; None when the node does not have the block."""
        receipts = await self.rpc.call("eth_getBlockReceipts", {"blockHash": block_hash})
        try:
            return [receipt["logs"] for receipt in receipts] if receipts is not None else None
        except MALFORMED:
            raise ChainUnavailable("eth_getBlockReceipts: the chain node's answer is malformed") from None

    async def busy_blocks(self, first: int, last: int, account: str) -> list[int]:
        """The blocks of a range, both ends included, that have transfers to or from `account`.

        A node that does not have them may leave some out: see `transfers`.
        """
        logs = await self._traces({"fromBlock": hex(first), "toBlock": hex(last)}, account)
        try:
            return sorted({count(log["blockNumber"]) for log in logs})
        except MALFORMED:
            raise ChainUnavailable("the chain node's logs are malformed") from None

    async def history(self, first: int, last: int, account: str) -> list[TokenTransfer]:
        """Transfers to or from `account` in a range of blocks, both ends included, for few calls.

        Those of nothing are left out, but for authorizations of its own. A node that does not have the blocks may leave
        some out: compare the sum with the balance.
        """
        where = {"fromBlock": hex(first), "toBlock": hex(last)}
        moved = _transfers(await self._traces(where, account), self.token.address)
        payers = sorted({t.payer for t in moved if t.value or t.payer == account})
        logs: list[dict[str, Any]] = []
        for start in range(0, len(payers), PAYERS_ASKED):
            topics = [_topic(payer) for payer in payers[start : start + PAYERS_ASKED]]
            # Both halves of a pair in one answer: a second one may be of a node that is behind, and leave its half out.
            logs += await self._logs(where, [eip3009.MOVED_TOPICS, topics])
        found = [t for t in _transfers(logs, self.token.address) if account in (t.payer, t.payee)]
        return [t for t in found if t.value or (t.payer == account and t.nonce)]

    async def token_info(self, token: str) -> tuple[int, TokenInfo | None]:
        """What any ERC-20 says of itself, or None when it is none; and the block in which it was asked."""
        number, answers = await self.simulate(erc20.info_calls(token, batcher.address()))
        return number, erc20.token_info(token, answers)

    async def token_balance(self, token: str, account: str, block: Block) -> int | None:
        """Of any ERC-20, in base units; None when it does not say."""
        [balance] = await self.token_balances(token, [account], block)
        return balance

    async def token_balances(self, token: str, accounts: Sequence[str], block: Block) -> list[int | None]:
        calls = [Call(token, erc20.ASKED_GAS, eip3009.balance_of_call(account)) for account in accounts]
        _, balances = await self.simulate(calls, block)
        return [balance.number if erc20.is_word(balance) else None for balance in balances]

    async def token_deposits(self, token: str, accounts: Sequence[str], first: int, last: int) -> list[TokenTransfer]:
        """Transfers of any ERC-20 to these accounts in a range of blocks, both ends included; not those of nothing."""
        return await self._token_transfers(token, [None, [_topic(a) for a in accounts]], first, last)

    async def token_payments(self, token: str, accounts: Sequence[str], first: int, last: int) -> list[TokenTransfer]:
        """The same from these accounts."""
        return await self._token_transfers(token, [[_topic(a) for a in accounts]], first, last)

    async def _token_transfers(self, token: str, topics: list[Any], first: int, last: int) -> list[TokenTransfer]:
        query = {"fromBlock": hex(first), "toBlock": hex(last), "address": token}
        logs = await self.rpc.call("eth_getLogs", {**query, "topics": [eip3009.TRANSFER_TOPIC, *topics]})
        try:
            found = _transfers(erc20.plain_transfers(logs), token)
        except MALFORMED:
            raise ChainUnavailable("the chain node's logs are malformed") from None
        # Anybody may "transfer" zero from anybody.
        return [transfer for transfer in found if transfer.value]

    async def paid_accounts(self, accounts: Sequence[str], first: int, last: int) -> set[str]:
        """Those of these that were sent any ERC-20 in a range of blocks, both ends included."""
        where = {"fromBlock": hex(first), "toBlock": hex(last)}
        topics = [eip3009.TRANSFER_TOPIC, None, [_topic(account) for account in accounts]]
        logs = await self.rpc.call("eth_getLogs", {**where, "topics": topics})
        try:
            return {
                eip3009.address_in(log["topics"][2]) for log in erc20.plain_transfers(logs) if quantity(log["data"])
            }
        except MALFORMED:
            raise ChainUnavailable("the chain node's logs are malformed") from None

    async def used_wallets(self, intake: str, traces: Sequence[Trace], block: Block) -> list[bool]:
        """Of gigs' wallets: did each send a transaction, hold USDC or gas money, or have one of its nonces used?"""
        data = used_wallets.call_data(self.token.address, intake, traces)
        call = {"data": "0x" + data.hex(), "gas": hex(used_wallets.GAS)}
        returned = octets(await self.rpc.call("eth_call", call, _exactly(block)))
        try:
            return used_wallets.read_answer(returned, len(traces))
        except ValueError:
            raise ChainUnavailable("eth_call: the chain node's answer is not about gigs' wallets") from None

    async def executed(self, payer: str, nonce: str, first: int) -> list[TokenTransfer]:
        """What an authorization moved, if it was executed in this block or later."""
        where = {"fromBlock": hex(first), "toBlock": "latest"}
        used = await self._logs(where, [eip3009.AUTHORIZATION_USED_TOPIC, _topic(payer), nonce])
        blocks = {str(log["blockHash"]) for log in used}
        moved = [t for block_hash in blocks for t in await self._transfers_in(block_hash)]
        return [t for t in moved if (t.payer, t.nonce) == (payer, nonce)]

    async def call_as(self, sender: str, call: Call) -> Result:
        """What this account would get for a call of its own. ChainRefused: it would fail."""
        by = {"from": sender, "gas": hex(call.gas_limit)}
        return Result(True, True, 0, octets(await self._call(call.target, call.data, None, **by))[:MAX_ANSWER])

    async def estimate_gas(self, sender: str, to: str, data: bytes, limit: int) -> int:
        """ChainRefused: it would fail, or take more gas than `limit`."""
        call = {"from": sender, "to": to, "data": "0x" + data.hex(), "gas": hex(limit)}
        return count(await self.rpc.call("eth_estimateGas", call))

    async def _traces(self, where: dict[str, str], account: str) -> list[dict[str, Any]]:
        topic = _topic(account)
        incoming = await self._logs(where, [eip3009.TRANSFER_TOPIC, None, topic])
        return incoming + await self._logs(where, [eip3009.TRANSFER_TOPIC, topic])

    async def _logs(self, where: dict[str, str], topics: list[Any]) -> list[dict[str, Any]]:
        query = {**where, "address": self.token.address, "topics": topics}
        logs = await self.rpc.call("eth_getLogs", query)
        if not isinstance(logs, list):
            raise ChainUnavailable("eth_getLogs: the chain node's answer is not a list")
        return logs


def _exactly(block: Block | None) -> str | dict[str, Any]:
    """This very block (EIP-1898): another one of its height may say something else."""
    return "latest" if block is None else {"blockHash": block.hash, "requireCanonical": True}


def _topic(account: str) -> str:
    return "0x" + account[2:].rjust(64, "0")


def sign_transaction(key: PrivateKey, fields: dict[str, Any]) -> SignedTransaction:
    """An EIP-1559 transaction of these `FIELDS`; without a value it sends none."""
    values = [fields.get(name, 0) for name in FIELDS]
    values[TO] = bytes.fromhex(fields["to"][2:])
    unsigned = [*values, []]  # no access list
    signature = key.sign(keccak(DYNAMIC_FEE + rlp.encode(unsigned)))
    r, s = int.from_bytes(signature[:32]), int.from_bytes(signature[32:64])
    raw = DYNAMIC_FEE + rlp.encode([*unsigned, signature[64], r, s])
    return SignedTransaction("0x" + keccak(raw).hex(), "0x" + raw.hex())


def unsigned_fields(raw: str) -> dict[str, Any]:
    """What `sign_transaction` made `raw` of."""
    values = list(rlp.elements(bytes.fromhex(raw[4:])))[: len(FIELDS)]
    fields = {name: int.from_bytes(value) for name, value in zip(FIELDS, values, strict=True)}
    return {**fields, "to": "0x" + values[TO].hex(), "data": values[DATA]}


def _block(raw: Any) -> Block | None:
    if raw is None:
        return None
    try:
        return Block(
            number=count(raw["number"]),
            hash=word(raw["hash"]),
            parent_hash=word(raw["parentHash"]),
            timestamp=count(raw["timestamp"]),
            base_fee=count(raw.get("baseFeePerGas", "0x0")),
            gas_limit=count(raw["gasLimit"]),
        )
    except MALFORMED:
        raise ChainUnavailable("the chain node's block is malformed") from None


def _required(block: Block | None, name: str | int) -> Block:
    if block is None:
        raise ChainUnavailable(f"the chain node has no block {name}")
    return block


def _receipt(raw: Any, token: str) -> Receipt | None:
    """None for a missing receipt and for one that no block holds yet (a pre-confirmation)."""
    if raw is None or isinstance(raw, str):
        return None
    try:
        if raw.get("blockHash") is None:
            return None
        return Receipt(
            transaction=word(raw["transactionHash"]),
            success=quantity(raw["status"]) == 1,
            block_number=count(raw["blockNumber"]),
            block_hash=word(raw["blockHash"]),
            gas_used=count(raw["gasUsed"]),
            transfers=_transfers(raw["logs"], token),
        )
    except MALFORMED:
        raise ChainUnavailable("the chain node's receipt is malformed") from None


def _transfers(logs: Any, token: str) -> list[TokenTransfer]:
    try:
        return token_transfers(logs, token)
    except MALFORMED:
        raise ChainUnavailable("the chain node's logs are malformed") from None
