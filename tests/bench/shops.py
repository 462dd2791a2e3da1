"""What is measured: this server and its peer, each in processes of its own on the same chain."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eth_account import Account

from tests.bench.load import Address, Tally, post, run
from tests.bench.payments import questions
from tests.bench.programs import Program, first_answer, ports, program
from tests.support.harness import CREATE, ROOT, Chain, Json, decode, serve_settings, until

HOST = "127.0.0.1"
PLENTY_WEI = 10**21
DRAIN_S = 120


@dataclass(frozen=True)
class Shop:
    """It sells at CREATE on each of `addresses`; `programs` are all the processes that this needs.

    One that passes on what it gets is done with a payment when its payee holds nothing of it any more.
    """

    addresses: Sequence[Address]
    programs: Sequence[Program]
    passes_on: bool = False

    def quote(self) -> Json:
        """What a 402 asks for an order: version 2 payment requirements."""
        [answer] = self._ask(questions()[0]).kept
        head = answer.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        [header] = [line.partition(": ")[2] for line in head if line.lower().startswith("payment-required:")]
        return dict(decode(header)["accepts"][0])

    def _ask(self, body: bytes) -> Tally:
        [address, *_] = self.addresses
        return run([address], [post(address, CREATE, body)], buyers=1, wanted=402)

    def drain(self, chain: Chain, pay_to: str) -> None:
        """Wait until nothing is on its way any more."""
        until(lambda: chain.rpc("txpool_status")["pending"] == "0x0", DRAIN_S)
        if self.passes_on:
            until(lambda: chain.usdc(pay_to) == 0, DRAIN_S)

    @property
    def memory_mb(self) -> float:
        return sum(one.memory_mb for one in self.programs)

    @property
    def cpu_s(self) -> float:
        return sum(one.cpu_s for one in self.programs)

    def wait(self) -> float:
        """Until every address answers with a 402; the seconds that took since the first process was started."""
        answered = [first_answer(self.programs, address, CREATE, questions()[0]) for address in self.addresses]
        return max(answered) - min(one.started for one in self.programs)


# Starts a shop with its files in a folder; it may not answer yet.
Opener = Callable[[Chain, Path], AbstractContextManager[Shop]]


def ours(checkout: Path = ROOT, processes: int = 1, **settings: Any) -> Opener:
    """`x402-gig serve` of a checkout, once or several times on one ledger.

    Opened again in the same folder it is the same shop. The checkout's .venv has the package: `scripts/setup` made it.
    """
    python = str(checkout.resolve() / ".venv/bin/python")

    @contextmanager
    def open_(chain: Chain, folder: Path) -> Iterator[Shop]:
        kept = _kept(folder / "seed", lambda: str(Account.create_with_mnemonic()[1]))
        addresses = [(HOST, port) for port in ports(processes)]
        with ExitStack() as stack:
            programs = []
            for _, port in addresses:
                env = serve_settings(chain, folder, **{"seed": kept, "port": port} | settings)
                arguments = ("-m", "x402_gig", "serve")
                serve = program(*arguments, folder=folder, name=f"serve-{port}", env=env, cwd=folder, python=python)
                programs.append(stack.enter_context(serve))
            yield Shop(addresses, programs, passes_on=True)

    return open_


def _kept(file: Path, make: Callable[[], str]) -> str:
    if not file.exists():
        file.write_text(make())
    return file.read_text()


@contextmanager
def peer(chain: Chain, folder: Path) -> Iterator[Shop]:
    """The official SDK's seller and facilitator as their examples have them: a process each."""
    with _pairs(chain, folder, 1, "facilitator") as shop:
        yield shop


@contextmanager
def tuned_peer(chain: Chain, folder: Path) -> Iterator[Shop]:
    """Sellers with a facilitator each, for these know no other process's transactions; threads where it blocks."""
    with _pairs(chain, folder, 2, "threaded_facilitator") as shop:
        yield shop


@contextmanager
def _pairs(chain: Chain, folder: Path, count: int, facilitator: str) -> Iterator[Shop]:
    pay_to = Account.create().address
    free = ports(2 * count)
    with ExitStack() as stack:
        programs = []
        for seller_port, facilitator_port in zip(free[:count], free[count:], strict=True):
            key = Account.create()
            chain.rpc("anvil_setBalance", key.address, hex(PLENTY_WEI))
            env = {
                "PEER_RPC_URL": chain.rpc_url,
                "PEER_KEY": bytes(key.key).hex(),
                "PEER_PAY_TO": pay_to,
                "PEER_FACILITATOR": f"http://{HOST}:{facilitator_port}",
            }
            for name, port in ((facilitator, facilitator_port), ("seller", seller_port)):
                app = uvicorn(f"tests.bench.peer:{name}", port, folder, env, f"{name}-{port}")
                programs.append(stack.enter_context(app))
        yield Shop([(HOST, port) for port in free[:count]], programs)


@contextmanager
def bare(app: str, folder: Path) -> Iterator[Shop]:
    """One of the limits in `tests.bench.bare`."""
    [port] = ports(1)
    with uvicorn(f"tests.bench.bare:{app}", port, folder, {}, app) as running:
        yield Shop([(HOST, port)], [running])


def uvicorn(app: str, port: int, folder: Path, env: dict[str, str], name: str) -> AbstractContextManager[Program]:
    """The factory `app`, as uvicorn serves by default but for its log of every request."""
    flags = ("--factory", "--port", str(port), "--no-access-log", "--log-level", "warning")
    return program("-m", "uvicorn", app, *flags, folder=folder, name=name, env=env, cwd=ROOT)
