"""Buyers, kills and faults at random, for as long as you like; then everything is healed and every unit looked for."""

import argparse
import itertools
import random
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from eth_abi.abi import encode as abi_encode
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.crashes import LIFETIME_S, TRANSFER, Buyer, Victim, victim
from tests.faults import RpcProxy, Rule, answers, down, garbage, lose_reply, refuses, rpc_proxy, slow, status
from tests.harness import USDC, Json, NotTrue, decode, devnet, gig_terms
from tests.invariants import Findings, examine, gig_ids

ACCOUNTS = 60
# Deeper than any reorganisation, so that accounts, their gas, tokens and batcher stay.
FIRST_BLOCKS = "0x10"
BLOCK_TIME_S = "0.5"
METHOD_NOT_FOUND = -32601
HEAL_S = 60
# These take no time, so they may come more often.
AT_ONCE = {"dropped from the pool": 2, "reorganisations": 4}
SEND = ("eth_sendRawTransactionSync", "eth_sendRawTransaction")
EXAMPLE = """example:
  scripts/soak --minutes 10 --seed 7    # ten minutes; the same seed makes the same choices again
"""


@dataclass(frozen=True)
class Options:
    """It ends when so many minutes are over and so many payments were made."""

    minutes: float = 2
    payments: int = 300
    seed: int = 0
    concurrency: int = 20
    reorgs: bool = True


@dataclass
class Report:
    findings: Findings
    counts: Counter[str]
    seconds: float

    @property
    def is_good(self) -> bool:
        return not self.findings.all

    def __str__(self) -> str:
        faults = ", ".join(f"{name} {n}" for name, n in sorted(self.counts.items()) if name.startswith("fault: "))
        rest = [f"{name} {n}" for name, n in self.counts.items() if not name.startswith("fault: ")]
        lines = [f"{self.seconds:.0f} s: {', '.join(rest)}", faults.replace("fault: ", "") or "no faults"]
        return "\n".join([*lines, *self.findings.all, str(self.findings)])


@dataclass
class Soak:
    shop: Victim
    proxy: RpcProxy
    options: Options
    progress: Callable[[str], None] = lambda _: None
    counts: Counter[str] = field(default_factory=Counter)
    buyers: list[Buyer] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)
    healed: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self._numbers = itertools.count()
        self._accounts: list[LocalAccount] = []
        self._strangers = itertools.cycle([Account.create().address for _ in range(ACCOUNTS)])

    def run(self) -> Report:
        """Raises whatever went wrong in one of the threads."""
        self._accounts = [self.shop.buyer(10**12) for _ in range(ACCOUNTS)]
        for _ in range(ACCOUNTS):
            self.shop.rpc("anvil_setBalance", next(self._strangers), hex(10**20))
        self.shop.rpc("anvil_mine", FIRST_BLOCKS)
        self.shop.kill()
        with ThreadPoolExecutor(self.options.concurrency + 2) as threads:
            work = [threads.submit(self.kill), threads.submit(self.break_things)]
            work += [threads.submit(self.shop_until_enough) for _ in range(self.options.concurrency)]
            while not self.is_enough() and not any(thread.done() for thread in work):
                self.progress(self.status())
                time.sleep(1)
            self.enough.set()
            self._wait_for_answers(work)
        self.progress(f"{self.status()}; healed, waiting for the last answers")
        return self.look()

    def _wait_for_answers(self, work: list["Future[None]"]) -> None:
        """Once healed, every payment settles; one that was sent in vain too often ends when it expires."""
        if late := wait(work, timeout=HEAL_S).not_done:
            self.counts["answered when they expired"] += len(late)
            self.shop.rpc("evm_increaseTime", LIFETIME_S)
            self.shop.rpc("evm_mine")
        for thread in work:
            thread.result()

    def is_enough(self) -> bool:
        return len(self.buyers) >= self.options.payments and self.seconds >= self.options.minutes * 60

    @property
    def patience_s(self) -> float:
        """Nobody gives up before all is healed."""
        return self.options.minutes * 60 + 3 * HEAL_S

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def status(self) -> str:
        answered = sum(1 for buyer in self.buyers if buyer.answer is not None and buyer.answer.status_code == 200)
        return f"{self.seconds:.0f} s: {len(self.buyers)} orders, {answered} gigs, {self.shop.kills} kills"

    def look(self) -> Report:
        findings = examine(self.shop, self.buyers, timeout_s=HEAL_S)
        answers_ = Counter(buyer.answer.status_code for buyer in self.buyers if buyer.answer is not None)
        totals = Counter(
            orders=len(self.buyers),
            payments=sum(len(buyer.nonces) for buyer in self.buyers),
            gigs=len(gig_ids(self.shop.ledger)),
            kills=self.shop.kills,
            **{"bought twice": len(findings.twice)},
            **{f"answers {code}": n for code, n in answers_.items()},
        )
        totals.update(self.counts)
        return Report(findings, totals, self.seconds)

    # The server

    def kill(self) -> None:
        """SIGKILL every second or two, sometimes before it is ready."""
        chance = random.Random(f"{self.options.seed} kill")
        while not self.enough.is_set():
            self.shop.spawn()
            if chance.random() < 0.8:
                self._wait_until(lambda: self.shop.is_serving or not self.shop.is_running)
            if self.shop.is_running:
                self.enough.wait(chance.uniform(1, 2))
                self.shop.kill()
            else:
                self.counts["starts refused"] += 1
        self.healed.wait()
        self.shop.start()

    def _wait_until(self, check: Callable[[], bool]) -> None:
        while not self.enough.is_set() and not check():
            self.enough.wait(0.05)

    # Its buyers

    def shop_until_enough(self) -> None:
        while not self.enough.is_set():
            chance = random.Random(f"{self.options.seed} buyer {next(self._numbers)}")
            terms = gig_terms(amount=chance.randint(10, 30))
            buyer = Buyer(self.shop, chance.choice(self._accounts), terms, patience_s=self.patience_s)
            buyer.sign()
            self.buyers.append(buyer)
            habit = chance.choices(
                [self.buy, self.hang_up, self.replay, self.sign_anew, self.leak], weights=[4, 2, 2, 2, 1]
            )[0]
            self.counts[habit.__name__.replace("_", " ")] += 1
            with suppress(NotTrue):  # without a final answer: it is among the findings
                habit(buyer, chance)

    def buy(self, buyer: Buyer, _: random.Random) -> None:
        buyer.insist()

    def hang_up(self, buyer: Buyer, chance: random.Random) -> None:
        """And come back later with the same payment."""
        with suppress(httpx.TransportError):
            buyer.post(timeout_s=chance.uniform(0.05, 1.5))
        buyer.insist()

    def replay(self, buyer: Buyer, _: random.Random) -> None:
        """The same payment several times at once, and again when it is settled."""
        with ThreadPoolExecutor(3) as threads:
            same = [*threads.map(lambda _: buyer.insist(), range(3)), buyer.insist()]
        if {answer.status_code for answer in same} == {200} and len({answer.json()["gig_id"] for answer in same}) != 1:
            raise AssertionError(f"one payment, several gigs: {[answer.text for answer in same]}")

    def sign_anew(self, buyer: Buyer, chance: random.Random) -> None:
        """What SDK clients do when they do not get their answer in time."""
        with suppress(httpx.TransportError):
            if buyer.post(timeout_s=chance.uniform(0.1, 2)).status_code == 200:
                buyer.insist()
                return
        buyer.sign()
        buyer.insist()

    def leak(self, buyer: Buyer, chance: random.Random) -> None:
        """A stranger sees the authorization and executes it, before or while the server does."""
        if chance.random() < 0.5:
            self.front_run(buyer)
            buyer.insist()
            return
        with ThreadPoolExecutor(1) as threads:
            threads.submit(self.front_run, buyer)
            buyer.insist()

    def front_run(self, buyer: Buyer) -> None:
        stranger = next(self._strangers)
        payload = decode(buyer.headers[-1]["PAYMENT-SIGNATURE"])["payload"]
        self.shop.rpc("anvil_impersonateAccount", stranger)
        transaction = {"from": stranger, "to": USDC, "data": execution(payload), "gas": hex(200_000)}
        self.shop.rpc("eth_sendTransaction", transaction)

    # Faults

    def break_things(self) -> None:
        chance = random.Random(f"{self.options.seed} faults")
        try:
            while not self.enough.wait(chance.uniform(0.1, 1)):
                if chance.random() < 0.8:  # a server that cannot start shows little
                    self._wait_until(lambda: self.shop.is_serving)
                fault = chance.choices(list(self._faults()), [AT_ONCE.get(name, 1) for name in self._faults()])[0]
                self.counts[f"fault: {fault}"] += 1
                self._faults()[fault](chance)
        finally:
            self.enough.set()
            self.healed.set()

    def _faults(self) -> dict[str, Callable[[random.Random], None]]:
        faults = {
            "node down": self._rule(down),
            "node slow": self._rule(slow(0.3)),
            "answers 429": self._rule(status(429)),
            "answers 502": self._rule(status(502)),
            "answers garbage": self._rule(garbage),
            "replies to sends lost": self._rule(lose_reply, *SEND),
            "receipts missing": self._without_receipts,
            "dropped from the pool": self._drop,
        }
        return faults | ({"reorganisations": self._reorganise} if self.options.reorgs else {})

    def _rule(self, rule: Rule, *methods: str) -> Callable[[random.Random], None]:
        def hold(chance: random.Random) -> None:
            with self.proxy.broken(rule, *methods):
                self.enough.wait(chance.uniform(0.2, 2))

        return hold

    def _without_receipts(self, chance: random.Random) -> None:
        with self.proxy.broken(refuses(METHOD_NOT_FOUND, "no such method"), "eth_sendRawTransactionSync"):
            self._rule(answers(None), "eth_getTransactionReceipt")(chance)

    def _drop(self, chance: random.Random) -> None:
        pool = self.shop.rpc("txpool_content")["pending"]
        hashes = [transaction["hash"] for slots in pool.values() for transaction in slots.values()]
        if hashes:
            self.shop.rpc("anvil_dropTransaction", chance.choice(hashes))

    def _reorganise(self, chance: random.Random) -> None:
        self.shop.rpc("anvil_reorg", chance.randint(1, 5), [])


def execution(payload: Json) -> str:
    """The token's function that executes a payment's authorization; anybody may call it."""
    message, signature = payload["authorization"], bytes.fromhex(payload["signature"][2:])
    types = ["address", "address", "uint256", "uint256", "uint256", "bytes32", "uint8", "bytes32", "bytes32"]
    numbers = [int(message[name]) for name in ("value", "validAfter", "validBefore")]
    nonce = bytes.fromhex(message["nonce"][2:])
    values = [message["from"], message["to"], *numbers, nonce, signature[64], signature[:32], signature[32:64]]
    return "0x" + TRANSFER + abi_encode(types, values).hex()


@contextmanager
def soak(options: Options, folder: Path, progress: Callable[[str], None] = lambda _: None) -> Iterator[Soak]:
    """A chain, a server with its ledger and log in `folder`, and everything that happens to them; `run` it."""
    with (
        devnet("--block-time", BLOCK_TIME_S) as chain,
        rpc_proxy(chain) as proxy,
        victim(chain, proxy, folder, max_timeout_s=10) as shop,
    ):
        yield Soak(shop, proxy, options, progress)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = Options()
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="at least so long (default: 2)")
    parser.add_argument("--payments", type=int, default=defaults.payments, help="at least so many (default: 300)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of all random choices")
    parser.add_argument("--concurrency", type=int, default=defaults.concurrency, help="buyers at once (default: 20)")
    parser.add_argument("--no-reorgs", dest="reorgs", action="store_false", help="the chain never changes its mind")
    options = Options(**vars(parser.parse_args()))
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="x402-gig-soak-"))
    with soak(options, folder, lambda line: print(line, file=sys.stderr, flush=True)) as all_of_it:
        report = all_of_it.run()
    print(report)
    if report.is_good:
        shutil.rmtree(folder)
    else:
        print(f"the ledger and the log are in {folder}")
    sys.exit(0 if report.is_good else 1)


if __name__ == "__main__":
    main()
