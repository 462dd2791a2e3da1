"""A server that is killed and started again on the same ledger and seed, the points to kill it at, and its buyers."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from tests.support import ledgers
from tests.support.cuts import CommitProxy
from tests.support.faults import Forward, HangUp, RpcProxy, Rule, Status, Then
from tests.support.harness import (
    CREATE,
    START_TIMEOUT_S,
    Chain,
    Dev,
    Json,
    gig_terms,
    payment_header,
    serve_settings,
    until,
)
from x402_gig.devnet.anvil import free_port

PATIENCE_S = 60
LIFETIME_S = 3600
Answer = Future[httpx.Response]


@dataclass
class Victim(Dev):
    """`x402-gig serve`. Its port stays the same, so its buyers need not know that it was ever away.

    `ledger` is the database's own URL, past any proxy.
    """

    ledger: str = ""
    requirements: Json = field(default_factory=dict)
    folder: Path = field(default_factory=Path)
    environment: dict[str, str] = field(default_factory=dict)
    kills: int = 0
    _process: "subprocess.Popen[bytes] | None" = None

    def rpc(self, method: str, *params: Any) -> Any:
        """Asked twice at the most: Anvil leaves a question without an answer now and then, while it reorganises."""
        with suppress(httpx.ReadTimeout):
            return super().rpc(method, *params)
        return super().rpc(method, *params)

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def spawn(self) -> None:
        """Start the process, and do not wait until it serves."""
        with (self.folder / "log.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "x402_gig", "serve"],
                stdout=subprocess.DEVNULL,
                stderr=log,
                env={**os.environ, **self.environment},
                cwd=self.folder,
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_serving(self) -> bool:
        try:
            return httpx.get(self.url + "/healthz", timeout=1).status_code == 200
        except httpx.HTTPError:
            return False

    def start(self) -> None:
        self.spawn()
        until(lambda: self.is_serving or not self.is_running, START_TIMEOUT_S)
        assert self.is_running, self.log[-5000:]

    def signal(self, number: signal.Signals) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        self._process.send_signal(number)
        return self._process

    def kill(self) -> None:
        """SIGKILL; it is dead when this returns."""
        self.signal(signal.SIGKILL).wait()
        if not ledgers.is_file(self.ledger):
            # As if the deadline of its leases were past already: what comes next need not wait for it.
            ledgers.let_leases_end(self.ledger)
        self.kills += 1

    def stop(self) -> None:
        if self._process is not None and self.is_running:
            self._process.terminate()
            self._process.wait(timeout=30)

    def ping(self) -> None:
        """Once it has answered this, it has gone on as far as it could with what it was told before."""
        for _ in range(5):
            httpx.get(self.url + "/healthz")

    def price(self, terms: Json) -> Json:
        """What its 402 says, also while it is away."""
        return self.requirements | {"amount": str(terms["amount"] * 1_100_000)}

    def now(self) -> int:
        """By the chain's clock."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)


@contextmanager
def victim(
    chain: Chain, proxy: RpcProxy, folder: Path, cuts: CommitProxy | None = None, **settings: Any
) -> Iterator[Victim]:
    """A running server that sees `chain` through `proxy` only, and its ledger through `cuts` where they are given."""
    port = free_port(0)
    ledger = cuts.upstream if cuts else ledgers.new(folder)
    url = cuts.url if cuts else ledger
    environment = serve_settings(proxy.chain, folder, port=port, database_url=url, **settings)
    shop = Victim(chain.rpc_url, url=f"http://127.0.0.1:{port}", ledger=ledger, folder=folder, environment=environment)
    shop.start()
    try:
        shop.requirements = shop.quote(gig_terms())
        shop.intake = shop.requirements["payTo"]
        shop.commission = environment["X402_GIG_COMMISSION_ADDRESS"]
        yield shop
    finally:
        shop.stop()


@dataclass
class Buyer:
    """One account that buys one gig, and sends what it signed until it gets a final answer.

    Where `payer` is given, a contract wallet pays and the account signs for it.
    """

    shop: Victim
    account: LocalAccount
    terms: Json = field(default_factory=gig_terms)
    headers: list[Json] = field(default_factory=list)
    nonces: list[str] = field(default_factory=list)
    answer: httpx.Response | None = None
    payer: str = ""
    patience_s: float = PATIENCE_S

    def sign(self) -> None:
        nonce = "0x" + os.urandom(32).hex()
        # By the chain's clock, which tests set ahead.
        changes = {"validBefore": str(self.shop.now() + LIFETIME_S), "from": self.payer or self.account.address}
        self.headers.append(payment_header(self.account, self.shop.price(self.terms), nonce=nonce, **changes))
        self.nonces.append(nonce)

    def post(self, timeout_s: float = 90, sent: Callable[[], None] = lambda: None) -> httpx.Response:
        """`sent` is called as soon as the whole request is on its way."""

        def trace(event: str, _: Any) -> None:
            if event == "http11.send_request_body.complete":
                sent()

        return self.shop.http.post(
            self.shop.url + CREATE,
            json=self.terms,
            headers=self.headers[-1],
            timeout=timeout_s,
            extensions={"trace": trace},
        )

    def ask(self, sent: Callable[[], None] = lambda: None) -> httpx.Response:
        """The same header again until the answer is not 503. Raises TransportError when the server is away."""
        answer: httpx.Response = until(lambda: self._final(sent), self.patience_s, pause_s=0.1)
        return answer

    def insist(self, sent: Callable[[], None] = lambda: None) -> httpx.Response:
        """As `ask`, and a server that is away is no answer."""
        answer: httpx.Response = until(lambda: self._final_if_there(sent), self.patience_s, pause_s=0.1)
        return answer

    def _final(self, sent: Callable[[], None]) -> httpx.Response | None:
        self.answer = self.post(sent=sent)
        return self.answer if self.answer.status_code != 503 else None

    def _final_if_there(self, sent: Callable[[], None]) -> httpx.Response | None:
        try:
            return self._final(sent)
        except httpx.TransportError:
            return None


How = Callable[[Buyer, Callable[[], None]], httpx.Response]


def buyers(shop: Victim, count: int, units: int = 11_000_000) -> list[Buyer]:
    crowd = [Buyer(shop, shop.buyer(units)) for _ in range(count)]
    for buyer in crowd:
        buyer.sign()
    return crowd


# What the server asks the chain, told apart by the functions that it calls.


def _selector(signature: str) -> str:
    return bytes(keccak(text=signature)[:4]).hex()


TRANSFER = _selector("transferWithAuthorization(address,address,uint256,uint256,uint256,bytes32,uint8,bytes32,bytes32)")
EXECUTE = _selector("execute(address,uint256,bytes[])")
EXECUTE_ON = _selector("executeOn(uint256,bytes32,address,uint256,bytes[])")
SIMULATE = _selector("simulate((address,uint256,bytes)[])")
BALANCE_OF = _selector("balanceOf(address)")

Condition = Callable[[Json], bool]


def data_of(request: Json) -> str:
    """Calldata of an eth_call, or a whole raw transaction."""
    what = request["params"][0]
    return str(what["data"] if isinstance(what, dict) else what)


def request_of(raw: str) -> Json:
    """A request as those that the conditions below look at."""
    return {"params": [raw]}


def simulates(count: int) -> Condition:
    """The simulation of so many payments."""
    return lambda request: data_of(request).startswith("0x" + SIMULATE) and data_of(request).count(TRANSFER) == count


def sends_deposits(count: int) -> Condition:
    return lambda request: EXECUTE in data_of(request) and data_of(request).count(TRANSFER) == count


def sends_funding(_: int) -> Condition:
    return lambda request: EXECUTE_ON in data_of(request) and TRANSFER in data_of(request)


def looks_at_intake(_: int) -> Condition:
    """The balance that is asked for before each funding, of a contract that is there."""
    return lambda request: (
        "to" in request["params"][0] and BALANCE_OF in data_of(request) and TRANSFER not in data_of(request)
    )


# Moments of a call


def before(trap: "Trap", _: Forward) -> Json:
    trap.spring()
    raise HangUp


def after(trap: "Trap", forward: Forward) -> Json:
    forward()
    trap.spring()
    raise HangUp


def at_the_commit(trap: "Trap", forward: Forward) -> Then:
    """It has the answer and cannot write down what follows from it."""
    answer = forward()
    lock = ledgers.locked(trap.shop.ledger)
    lock.__enter__()

    def kill() -> None:
        trap.shop.ping()
        trap.spring()
        lock.__exit__(None, None, None)

    return Then(answer, kill)


def once_funded(trap: "Trap", forward: Forward) -> Then:
    def kill() -> None:
        until(lambda: not ledgers.rows(trap.shop.ledger, "select 1 from movements where state = 'due'"))
        trap.spring()

    return Then(forward(), kill)


Moment = Callable[["Trap", Forward], "Json | Then"]


@dataclass(frozen=True)
class Point:
    """Where on the way of a batch the server dies."""

    name: str
    which: Callable[[int], Condition]
    moment: Moment

    def __str__(self) -> str:
        return self.name


ASKS = ("eth_call", "eth_sendRawTransactionSync", "eth_sendRawTransaction")

# A payment is reserved and its transaction signed in one commit, and the same is true of a funding.
POINTS = [
    Point("before it is simulated", simulates, before),
    Point("before reserve and sign", simulates, at_the_commit),
    Point("after reserve and sign, before broadcast", sends_deposits, before),
    Point("after broadcast, before receipt", sends_deposits, after),
    Point("after receipt, before fulfil", sends_deposits, at_the_commit),
    Point("after fulfil, before fund", looks_at_intake, before),
    Point("before the funding is signed", looks_at_intake, at_the_commit),
    Point("after the funding is signed, before its broadcast", sends_funding, before),
    Point("after the funding's broadcast, before its receipt", sends_funding, after),
    Point("after the funding's receipt, before it is written", sends_funding, at_the_commit),
    Point("after fund", sends_funding, once_funded),
]


@dataclass
class Trap:
    """Kills the server once, at a point on the way of a batch of `count` payments."""

    shop: Victim
    point: Point
    count: int
    sprung: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._turn = threading.Lock()
        self._seen = 0
        self._is_out = False

    def rule(self, request: Json, forward: Forward) -> Json | bytes | Then:
        # Earlier payments are funded too: only what follows the batch's own transaction is meant.
        self._is_out = self._is_out or sends_deposits(self.count)(request)
        may_be = self._is_out or self.point.which is simulates
        is_meant = may_be and self.point.which(self.count)(request) and self._is_turn()
        return self.point.moment(self, forward) if is_meant else forward()

    def _is_turn(self) -> bool:
        with self._turn:
            self._seen += 1
            return self._seen == 1

    def spring(self) -> None:
        self.shop.kill()
        self.sprung.set()


@contextmanager
def shopping(
    crowd: Sequence[Buyer], sent: Callable[[], None] = lambda: None, how: How = Buyer.insist
) -> Iterator[list[Answer]]:
    """Each buyer on a thread of its own."""
    with ThreadPoolExecutor(len(crowd)) as threads:
        yield [threads.submit(how, buyer, sent) for buyer in crowd]


@dataclass
class Together:
    """Makes one batch of `count` payments: the one relayer is kept busy with another payment until all are there."""

    shop: Victim
    count: int
    trap: Rule
    decoy_waits: threading.Event = field(default_factory=threading.Event)
    all_there: threading.Event = field(default_factory=threading.Event)

    def rule(self, request: Json, forward: Forward) -> Any:
        if sends_deposits(1)(request) and not self.all_there.is_set():
            self.decoy_waits.set()
            self.all_there.wait(PATIENCE_S)
        if (
            self.all_there.is_set()
            and data_of(request).startswith("0x" + SIMULATE)
            and TRANSFER in data_of(request)
            and not simulates(self.count)(request)
        ):
            raise Status(503)  # not all of them: they will be back
        return self.trap(request, forward)

    @contextmanager
    def shopping(self, crowd: Sequence[Buyer], how: How = Buyer.insist) -> Iterator[list[Answer]]:
        decoy = buyers(self.shop, 1)
        arrived = threading.Semaphore(0)
        with shopping(decoy) as first:
            assert self.decoy_waits.wait(PATIENCE_S)
            with shopping(crowd, arrived.release, how) as others:
                for _ in crowd:
                    assert arrived.acquire(timeout=PATIENCE_S)
                self.shop.ping()
                self.all_there.set()
                yield [*first, *others]
