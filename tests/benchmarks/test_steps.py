"""What each step of an unpaid and of a paid request costs: `.venv/bin/pytest tests/benchmarks --benchmark-enable`.

`scripts/bench --steps` prints the medians. In the suite each step runs once, so that all of them keep running.
"""

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mnemonic import Mnemonic
from pytest_benchmark.fixture import BenchmarkFixture
from starlette.types import Message, Scope

from tests.support import ledgers
from tests.support.harness import CREATE, gig_terms
from tests.unit.evm.examples import AUTHORIZATION, PAYER_ACCOUNT, TOKEN, moved, used
from tests.unit.ledger.examples import ASSET, SHOP, reservation, transfer, word
from tests.unit.payments.examples import NOW, SELLER, USDC, document, encoded
from x402_gig.evm import batcher
from x402_gig.evm.batcher import Call
from x402_gig.evm.eip3009 import token_transfers, transfer_call
from x402_gig.evm.keys import PrivateKey
from x402_gig.evm.node import sign_transaction
from x402_gig.evm.wallets import Wallets
from x402_gig.gigs.rules import Rules, RuleSet
from x402_gig.gigs.shop import GigShop
from x402_gig.gigs.terms import Limits, read_terms
from x402_gig.ledger import deposits, reservations
from x402_gig.ledger.engine import Ledger
from x402_gig.payments.gate import PaymentGate, parse_object
from x402_gig.payments.wire import read_payment

AT_ONCE = 64
LIMITS = Limits(10_000_000, 10**12, USDC.lower())
RULES = RuleSet(1, 0, 1000, LIMITS.minimum_units, LIMITS.maximum_units)
PRICE = LIMITS.minimum_units * 11 // 10
KEY = PrivateKey(bytes(PAYER_ACCOUNT.key))
BODY = b'{"chain": "base", "amount": 10.5, "gig_type": "like", "url": "https://farcaster.xyz/dwr/0x1a2b3c4d"}'
SEED = Mnemonic("english").generate()


# Unpaid


def test_parse_a_body(benchmark: BenchmarkFixture) -> None:
    assert benchmark(parse_object, BODY)["gig_type"] == "like"


def test_read_terms(benchmark: BenchmarkFixture) -> None:
    now = datetime.fromtimestamp(NOW, UTC)
    assert benchmark(read_terms, gig_terms(), LIMITS, now).problems == ()


def test_order_a_gig(benchmark: BenchmarkFixture) -> None:
    shop = GigShop(Rules(RULES), USDC.lower(), "base", 8453)
    assert benchmark(shop.order, gig_terms()).price_units == PRICE


def test_answer_402(benchmark: BenchmarkFixture) -> None:
    """The gate as a whole, without the HTTP server: body read, terms validated, 402 sent."""
    benchmark.extra_info["requests"] = AT_ONCE
    till: Any = SimpleNamespace(seller=SELLER)  # nobody pays
    shop = GigShop(Rules(RULES), USDC.lower(), "base", 8453)
    gate = PaymentGate(_unreached, product=shop, checkout=till, public_url="https://gigs.example")
    with asyncio.Runner() as runner:
        statuses = benchmark(lambda: runner.run(_ask(gate)))
    assert statuses == [402] * AT_ONCE


async def _unreached(*_: Any) -> None:
    raise AssertionError("nobody has paid")


async def _ask(gate: PaymentGate) -> list[int]:
    """So many one after the other: starting an event loop would be most of the time of one."""
    sent: list[Message] = []
    scope: Scope = {"type": "http", "method": "POST", "path": CREATE, "headers": [], "query_string": b""}
    body = json.dumps(gig_terms()).encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    for _ in range(AT_ONCE):
        await gate(dict(scope), receive, send)
    return [message["status"] for message in sent if message["type"] == "http.response.start"]


# Paid: what the buyer sends


@pytest.mark.parametrize("version", [1, 2])
def test_read_a_payment_header(benchmark: BenchmarkFixture, version: int) -> None:
    name = {1: "x-payment", 2: "payment-signature"}[version]
    payment = benchmark(read_payment, {name: encoded(document(version))})
    assert payment is not None
    assert payment.version == version


def test_hash_an_authorization(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(TOKEN.digest, AUTHORIZATION)) == 32


def test_recover_its_signer(benchmark: BenchmarkFixture) -> None:
    signature = TOKEN.sign(AUTHORIZATION, KEY)
    assert benchmark(TOKEN.recovers, AUTHORIZATION, signature)


def test_state_the_requirements_of_a_price(benchmark: BenchmarkFixture) -> None:
    assert benchmark(SELLER.requirements, PRICE).amount == str(PRICE)


# Paid: what the chain is asked and sent, for 64 payments


def _transfers() -> list[bytes]:
    signature = TOKEN.sign(AUTHORIZATION, KEY)
    return [transfer_call(AUTHORIZATION, signature, ecdsa=True)] * AT_ONCE


def test_encode_calldata_of_a_transfer(benchmark: BenchmarkFixture) -> None:
    signature = TOKEN.sign(AUTHORIZATION, KEY)
    assert len(benchmark(lambda: transfer_call(AUTHORIZATION, signature, ecdsa=True))) == 4 + 9 * 32


def test_encode_calldata_of_a_simulation(benchmark: BenchmarkFixture) -> None:
    benchmark.extra_info["requests"] = AT_ONCE
    calls = [Call(TOKEN.address, batcher.PLAIN_CALL_GAS, data) for data in _transfers()]
    assert benchmark(batcher.simulate_data, calls)


def test_encode_calldata_of_a_batch(benchmark: BenchmarkFixture) -> None:
    benchmark.extra_info["requests"] = AT_ONCE
    assert benchmark(batcher.execute_data, TOKEN.address, batcher.PLAIN_CALL_GAS, _transfers())


def test_sign_a_transaction(benchmark: BenchmarkFixture) -> None:
    benchmark.extra_info["requests"] = AT_ONCE
    data = batcher.execute_data(TOKEN.address, batcher.PLAIN_CALL_GAS, _transfers())
    fields = {"chainId": 8453, "nonce": 7, "to": batcher.address(), "data": data, "gas": 10_000_000}
    fees = {"maxFeePerGas": 10**9, "maxPriorityFeePerGas": 10**6}
    assert benchmark(sign_transaction, KEY, fields | fees).raw.startswith("0x02")


def test_read_a_receipt(benchmark: BenchmarkFixture) -> None:
    benchmark.extra_info["requests"] = AT_ONCE
    logs = [log for number in range(AT_ONCE) for log in (used(2 * number), moved(2 * number + 1))]
    assert len(benchmark(token_transfers, logs, TOKEN.address)) == AT_ONCE


def test_sign_an_authorization(benchmark: BenchmarkFixture) -> None:
    assert len(benchmark(TOKEN.sign, AUTHORIZATION, KEY)) == 65


def test_derive_a_gigs_wallet(benchmark: BenchmarkFixture) -> None:
    wallets, numbers = Wallets(SEED), itertools.count(1)
    assert benchmark(lambda: wallets.gig_address(next(numbers))).startswith("0x")


# Paid: the two commits, for 64 payments


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """A commit to a ledger on disk, as `serve` makes them."""
    with ledgers.all_looked_at():
        ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with asyncio.Runner() as runner:
        yield lambda work: runner.run(ledger.write(work))
    ledger.close()


def test_commit_nothing(benchmark: BenchmarkFixture, write: Callable[..., Any]) -> None:
    benchmark.extra_info["requests"] = AT_ONCE
    assert benchmark(write, lambda connection: 7) == 7


def test_commit_payments(benchmark: BenchmarkFixture, write: Callable[..., Any]) -> None:
    benchmark.extra_info["requests"] = AT_ONCE
    rounds = itertools.count()

    def reserve() -> int:
        first = AT_ONCE * next(rounds)
        wanted = [reservation(first + number) for number in range(AT_ONCE)]
        return len(write(lambda connection: reservations.reserve(connection, wanted)))

    assert benchmark(reserve) == AT_ONCE


def test_commit_settlements(benchmark: BenchmarkFixture, write: Callable[..., Any]) -> None:
    """Payments become gigs: with their deposits, rewards that are due, and answers."""
    benchmark.extra_info["requests"] = AT_ONCE
    rounds = itertools.count()

    def prepare() -> tuple[tuple[range], dict[str, Any]]:
        first = AT_ONCE * next(rounds)
        numbers = range(first, first + AT_ONCE)
        write(lambda connection: reservations.reserve(connection, [reservation(number) for number in numbers]))
        return (numbers,), {}

    def settle(numbers: range) -> int:
        def work(connection: Any) -> int:
            deposits.record(connection, ASSET, [transfer(number) for number in numbers], NOW)
            return len(deposits.settle(connection, SHOP, [word(number) for number in numbers]))

        return int(write(work))

    settled = benchmark.pedantic(settle, setup=prepare, rounds=20)  # type: ignore[no-untyped-call]
    assert settled == AT_ONCE
