"""What the chain allows: the transfers of a payment with nobody but the sender of the transactions in between."""

import json
import secrets
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from statistics import median
from urllib.parse import urlsplit

from tests.bench.payments import TOKEN, Purse
from tests.support.harness import USDC, Chain
from x402_gig.evm import batcher
from x402_gig.evm.eip3009 import transfer_call
from x402_gig.evm.node import sign_transaction

FEE_WEI = 10**10
PLENTY_WEI = 10**22
PRICE_UNITS, REWARD_UNITS = 11_000_000, 10_000_000


class Sender:
    """One account and one connection; each transaction is signed, sent and waited for."""

    def __init__(self, chain: Chain, purse: Purse) -> None:
        upstream = urlsplit(chain.rpc_url)
        self._connection = HTTPConnection(str(upstream.hostname), upstream.port)
        self._key = purse.keys[0]
        self._chain_id = int(chain.rpc("eth_chainId"), 16)
        self._nonce = int(chain.rpc("eth_getTransactionCount", purse.addresses[0], "latest"), 16)
        chain.rpc("anvil_setBalance", purse.addresses[0], hex(PLENTY_WEI))
        chain.rpc("anvil_setCode", batcher.address(), "0x" + batcher.runtime_code().hex())

    def send(self, to: str, data: bytes, gas: int) -> None:
        fields = {"chainId": self._chain_id, "nonce": self._nonce, "to": to, "data": data, "gas": gas}
        fees = {"maxFeePerGas": FEE_WEI, "maxPriorityFeePerGas": 1}
        transaction = sign_transaction(self._key, fields | fees)
        question = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransactionSync", "params": [transaction.raw]}
        self._connection.request("POST", "/", json.dumps(question), {"Content-Type": "application/json"})
        receipt = json.loads(self._connection.getresponse().read())["result"]
        assert receipt["status"] == "0x1", receipt
        self._nonce += 1

    def close(self) -> None:
        self._connection.close()


def lone_ms(chain: Chain, purse: Purse, count: int) -> float:
    """p50 of a deposit alone."""
    sender, took = Sender(chain, purse), []
    intake = _fresh()
    for number in range(count):
        call = transfer_call(*purse.authorize(number, intake, PRICE_UNITS), ecdsa=True)
        started = time.perf_counter()
        sender.send(USDC, call, batcher.PLAIN_CALL_GAS)
        took.append(time.perf_counter() - started)
    sender.close()
    return 1000 * median(took)


def payments_a_second(chain: Chain, purse: Purse, size: int, batches: int) -> float:
    """Deposits and rewards, in batches of this size."""
    sender, intake = Sender(chain, purse), _fresh()
    calls = [_batch(purse, [intake] * size, PRICE_UNITS) for _ in range(batches)]
    calls += [_batch(purse, [_fresh() for _ in range(size)], REWARD_UNITS) for _ in range(batches)]
    started = time.perf_counter()
    for data in calls:
        gas = min(batcher.batch_gas(data, batcher.PLAIN_CALL_GAS, size), batcher.MAX_TRANSACTION_GAS)
        sender.send(batcher.address(), data, gas)
    sender.close()
    return batches * size / (time.perf_counter() - started)


def _batch(purse: Purse, payees: Sequence[str], value: int) -> bytes:
    signed = [purse.authorize(number, payee, value) for number, payee in enumerate(payees)]
    calls = [transfer_call(*one, ecdsa=True) for one in signed]
    return batcher.execute_data(TOKEN.address, batcher.PLAIN_CALL_GAS, calls)


def _fresh() -> str:
    return "0x" + secrets.token_hex(20)
