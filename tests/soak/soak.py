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
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.e2e.attacks import deploy, transfer_call
from tests.soak.breakages import RECEIPT, Breakages, Fault
from tests.support import ledgers, servers
from tests.support.crashes import LIFETIME_S, Buyer, Victim, victim
from tests.support.creators import Creator
from tests.support.cuts import CommitProxy, commit_proxy
from tests.support.faults import RpcProxy, rpc_proxy
from tests.support.harness import USDC, NotTrue, decode, devnet, gig_terms, until
from tests.support.invariants import Findings, examine, gig_ids
from tests.support.operator import Desk
from tests.support.starters import Starters
from tests.support.tokens import call_data
from tests.support.tokens import deploy as deploy_token
from x402_gig.evm import batcher

ACCOUNTS, WALLETS, MEDDLERS, POOR, STARTERS = 60, 15, 5, 5, 2
UNITS = 10**12
# Deeper than any reorganisation, so that accounts, wallets, their gas, tokens and batcher stay.
FIRST_BLOCKS = "0x10"
BLOCK_TIME_S = "0.5"
HEAL_S = 60
EXPIRED, NO_MONEY = "invalid_exact_evm_payload_authorization_valid_before", "insufficient_funds"
# These take no time, so they may come more often.
AT_ONCE = {"dropped from the pool": 2, "reorganisations": 4}
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


@dataclass(frozen=True)
class Purse:
    """Who signs, and the contract wallet that pays, if one does."""

    signer: LocalAccount
    wallet: str = ""


@dataclass
class Soak:
    """`cuts` are of a ledger on PostgreSQL."""

    shop: Victim
    proxy: RpcProxy
    cuts: CommitProxy | None
    starters: Starters
    options: Options
    progress: Callable[[str], None] = lambda _: None
    counts: Counter[str] = field(default_factory=Counter)
    buyers: list[Buyer] = field(default_factory=list)
    # These do not count: all of them are to be refused.
    meddlers: list[Buyer] = field(default_factory=list)
    poor: list[Buyer] = field(default_factory=list)
    enough: threading.Event = field(default_factory=threading.Event)
    # Released by each thread that breaks things, when it has broken its last.
    healed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self._numbers = itertools.count()
        self._purses: list[Purse] = []
        self._wallets: list[Purse] = []
        self._meddling_wallets: list[str] = []
        self._poor_wallets: list[str] = []
        # Each comes again so late that none of them has two transactions under way.
        self._strangers = itertools.cycle([Account.create().address for _ in range(ACCOUNTS)])

    def run(self) -> Report:
        """Raises whatever went wrong in one of the threads."""
        self._settle()
        self.shop.kill()
        with ThreadPoolExecutor(self.options.concurrency + STARTERS + 3) as threads:
            work = [threads.submit(self.kill)]
            work += [threads.submit(self.break_things, name, faults) for name, faults in self._breakers().items()]
            work += [threads.submit(self.start_until_enough) for _ in range(STARTERS)]
            work += [threads.submit(self.shop_until_enough) for _ in range(self.options.concurrency)]
            while not self.is_enough() and not any(thread.done() for thread in work):
                self.progress(self.status())
                time.sleep(1)
            self.enough.set()
            self._wait_for_answers(work)
        self.progress(f"{self.status()}; healed, waiting for the last answers")
        self.starters.fund_again(self._strangers)
        return self.look()

    def _settle(self) -> None:
        """Accounts and contract wallets, with all that they will ever need."""
        owner = Account.create()
        self._wallets = [Purse(owner, wallet) for wallet in self._copies("Wallet1271", WALLETS, owner.address)]
        self._purses = [*self._wallets, *(Purse(self.shop.buyer(UNITS)) for _ in range(ACCOUNTS))]
        self._meddling_wallets = self._copies("MeddlingWallet", MEDDLERS)
        self._poor_wallets = self._copies("Wallet1271", POOR, owner.address, units=0)
        for _ in range(ACCOUNTS):
            self.shop.rpc("anvil_setBalance", stranger := next(self._strangers), hex(10**20))
            self.shop.rpc("anvil_dealERC20", stranger, self.starters.token.address, hex(UNITS**2))
            self.shop.rpc("anvil_impersonateAccount", stranger)
        self.shop.rpc("anvil_mine", FIRST_BLOCKS)

    def _copies(self, name: str, count: int, *arguments: str, units: int = UNITS) -> list[str]:
        """The addresses of so many contract wallets, each with so much money."""
        code = self.shop.rpc("eth_getCode", deploy(self.shop, name, *arguments), "latest")
        wallets = [str(Account.create().address) for _ in range(count)]
        for wallet in wallets:
            self.shop.rpc("anvil_setCode", wallet, code)
            self.shop.give_usdc(wallet, units)
        return wallets

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
        findings = examine(self.shop, [*self.buyers, *self.meddlers, *self.poor], timeout_s=HEAL_S)
        findings.refused += self._refused()
        self.starters.check(findings)
        answers_ = Counter(buyer.answer.status_code for buyer in self.buyers if buyer.answer is not None)
        totals = Counter(
            orders=len(self.buyers),
            payments=sum(len(buyer.nonces) for buyer in self.buyers),
            gigs=len(gig_ids(self.shop.ledger)),
            **{"gigs created with a key": len(self.starters.made)},
            kills=self.shop.kills,
            **{"bought twice": len(findings.twice)},
            **{f"answers {code}": n for code, n in answers_.items()},
        )
        if self.cuts is not None:
            totals["commits cut"] = self.cuts.by_turns
        totals.update(self.counts)
        return Report(findings, totals, self.seconds)

    def _refused(self) -> list[str]:
        """Those who have the money, and those who have none for another reason than that."""
        told = [(buyer, buyer.answer) for buyer in [*self.buyers, *self.poor] if buyer.answer is not None]
        refused = [(buyer, answer.json()["error"]) for buyer, answer in told if answer.status_code == 402]
        return [
            f"{buyer.payer or buyer.account.address} was refused: {why}"
            for buyer, why in refused
            if why != EXPIRED and (why != NO_MONEY or buyer not in self.poor)
        ]

    # The server

    def kill(self) -> None:
        """SIGKILL every second or two, sometimes before it is ready."""
        chance = random.Random(f"{self.options.seed} kill")
        while not self.enough.is_set():
            self.shop.spawn()
            if chance.random() < 0.8:
                self._wait_until(lambda: self.shop.is_serving or not self.shop.is_running)
            has_served = self.shop.is_serving
            if self.shop.is_running:
                self.enough.wait(chance.uniform(1, 2))
            if self.shop.is_running:
                self.shop.kill()
            else:
                self.counts["ended by itself" if has_served else "starts refused"] += 1
        for _ in self._breakers():
            self.healed.acquire()
        self.shop.start()

    def _wait_until(self, check: Callable[[], bool]) -> None:
        while not self.enough.is_set() and not check():
            self.enough.wait(0.05)

    # Its buyers

    def shop_until_enough(self) -> None:
        while not self.enough.is_set():
            chance = random.Random(f"{self.options.seed} buyer {next(self._numbers)}")
            habit = chance.choices(
                [self.buy, self.hang_up, self.replay, self.sign_anew, self.leak, self.suffer_meddling],
                weights=[4, 2, 2, 2, 1, 1],
            )[0]
            purses = self._wallets if habit == self.suffer_meddling else self._purses
            buyer = self._buyer(chance.choice(purses), chance.randint(10, 30))
            self.buyers.append(buyer)
            self.counts[habit.__name__.replace("_", " ")] += 1
            with suppress(NotTrue):  # without a final answer: it is among the findings
                habit(buyer, chance)

    def _buyer(self, purse: Purse, amount: int) -> Buyer:
        terms = gig_terms(amount=amount)
        buyer = Buyer(self.shop, purse.signer, terms, payer=purse.wallet, patience_s=self.patience_s)
        buyer.sign()
        return buyer

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

    def suffer_meddling(self, buyer: Buyer, chance: random.Random) -> None:
        """Beside a wallet that makes a poor neighbour rich and pays for him, where it is asked for its signature."""
        amount = buyer.terms["amount"]
        poor = self._buyer(Purse(buyer.account, chance.choice(self._poor_wallets)), amount)
        meddler = self._buyer(Purse(buyer.account, chance.choice(self._meddling_wallets)), amount)
        planned = self._by_stranger(meddler.payer, call_data("plan(address,bytes)", batcher.address(), meddling(poor)))
        with suppress(NotTrue):  # it may be dropped
            until(lambda: self.shop.rpc(RECEIPT, planned), 3)
        self.poor.append(poor)
        self.meddlers.append(meddler)
        with ThreadPoolExecutor(2) as threads:
            threads.submit(meddler.insist)
            threads.submit(poor.insist)
            buyer.insist()

    def front_run(self, buyer: Buyer) -> None:
        self._by_stranger(USDC, execution(buyer))

    def _by_stranger(self, to: str, data: str) -> str:
        transaction = {"from": next(self._strangers), "to": to, "data": data, "gas": hex(1_000_000)}
        return str(self.shop.rpc("eth_sendTransaction", transaction))

    # Creators with a key

    def start_until_enough(self) -> None:
        while not self.enough.is_set():
            with suppress(NotTrue):  # not started: it is among the findings
                self.starters.start_one(self._strangers, self.patience_s)

    # Faults

    def break_things(self, name: str, faults: dict[str, Fault]) -> None:
        chance = random.Random(f"{self.options.seed} {name}")
        try:
            while not self.enough.wait(chance.uniform(0.1, 1)):
                if chance.random() < 0.8:  # a server that cannot start shows little
                    self._wait_until(lambda: self.shop.is_serving)
                fault = chance.choices(list(faults), [AT_ONCE.get(name, 1) for name in faults])[0]
                self.counts[f"fault: {fault}"] += 1
                faults[fault](chance)
        finally:
            self.enough.set()
            self.healed.release()

    def _breakers(self) -> dict[str, dict[str, Fault]]:
        """One thread each: what lasts meets whatever else goes wrong."""
        breakages = Breakages(self.shop, self.proxy, self.cuts, self.enough, self.options.reorgs)
        return {"passing faults": breakages.passing(), "lasting faults": breakages.lasting()}


def execution(buyer: Buyer) -> str:
    """Calldata of the token that executes the buyer's authorization; anybody may send it."""
    payload = decode(buyer.headers[-1]["PAYMENT-SIGNATURE"])["payload"]
    return transfer_call(payload["authorization"], payload["signature"])


def meddling(poor: Buyer) -> bytes:
    """Calldata of the batcher that gives a buyer the money and executes his authorization."""
    top_up = call_data("mint(address,uint256)", poor.payer, UNITS)
    deeds = [bytes.fromhex(deed[2:]) for deed in (top_up, execution(poor))]
    return bytes.fromhex(call_data("execute(address,uint256,bytes[])", USDC, 150_000, deeds)[2:])


@contextmanager
def soak(options: Options, folder: Path, progress: Callable[[str], None] = lambda _: None) -> Iterator[Soak]:
    """A chain, a server with its ledger, its log in `folder`, and everything that happens to them; `run` it."""
    with ExitStack() as stack:
        chain = stack.enter_context(devnet("--block-time", BLOCK_TIME_S))
        proxy = stack.enter_context(rpc_proxy(chain))
        ledger = None if ledgers.are_files() else ledgers.new(folder)
        cuts = stack.enter_context(commit_proxy(ledger)) if ledger else None
        shop = stack.enter_context(victim(chain, proxy, folder, cuts, max_timeout_s=10))
        starters = Starters(Creator(shop, Desk(shop.environment, folder)), deploy_token(shop, "OddToken"))
        yield Soak(shop, proxy, cuts, starters, options, progress)


@contextmanager
def ledgers_on(database: str) -> Iterator[servers.Postgres | None]:
    """SQLite or PostgreSQL; the server of the latter."""
    with ExitStack() as stack:
        postgres = stack.enter_context(servers.postgres()) if database == "postgresql" else None
        stack.enter_context(ledgers.kept_in(postgres))
        yield postgres


def run(options: Options, database: str, folder: Path) -> Report:
    """Keeps the ledger of a soak with findings in the folder, beside the log."""
    with (
        ledgers_on(database) as postgres,
        soak(options, folder, lambda line: print(line, file=sys.stderr, flush=True)) as all_of_it,
    ):
        report = all_of_it.run()
        if postgres is not None and not report.is_good:
            (folder / "ledger.sql").write_bytes(postgres.dump(all_of_it.shop.ledger))
    return report


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
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite", help="(default: sqlite)")
    arguments = vars(parser.parse_args())
    database, options = arguments.pop("database"), Options(**arguments)
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="x402-gig-soak-"))
    report = run(options, database, folder)
    print(report)
    if report.is_good:
        shutil.rmtree(folder)
    else:
        print(f"the ledger and the log are in {folder}")
    sys.exit(0 if report.is_good else 1)
