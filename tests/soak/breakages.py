"""Faults of the chain, the node and the database around a server in a soak, each for a while."""

import random
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tests.support.cuts import CommitProxy
from tests.support.faults import (
    RpcProxy,
    Rule,
    answers,
    down,
    garbage,
    late_receipts,
    lose_reply,
    no_sync,
    slow,
    status,
)
from tests.support.harness import Chain

SYNC, RECEIPT = "eth_sendRawTransactionSync", "eth_getTransactionReceipt"
SEND = (SYNC, "eth_sendRawTransaction")

# Returns when it is over.
Fault = Callable[[random.Random], None]


@dataclass
class Breakages:
    """Faults by name. `cuts` are of a ledger on PostgreSQL; when `over` is set, all end at once."""

    chain: Chain
    proxy: RpcProxy
    cuts: CommitProxy | None
    over: threading.Event
    reorgs: bool = True

    def lasting(self) -> dict[str, Fault]:
        faults: dict[str, Fault] = {"no lasting fault": self._nothing, "receipts late": self._late_receipts}
        return faults | ({"commits cut": self._cut_commits} if self.cuts is not None else {})

    def passing(self) -> dict[str, Fault]:
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
        return faults | ({"reorganisations": self._reorganise} if self.reorgs else {})

    def _rule(self, rule: Rule, *methods: str) -> Fault:
        def hold(chance: random.Random) -> None:
            with self.proxy.broken(rule, *methods):
                self.over.wait(chance.uniform(0.2, 2))

        return hold

    def _without_receipts(self, chance: random.Random) -> None:
        with self.proxy.broken(no_sync, SYNC):
            self._rule(answers(None), RECEIPT)(chance)

    def _late_receipts(self, chance: random.Random) -> None:
        """Nonces are used before receipts show."""
        seconds = chance.uniform(0.6, 3)
        with self.proxy.broken(lose_reply, SYNC), self.proxy.broken(late_receipts(seconds), RECEIPT):
            self.over.wait(seconds + chance.uniform(0, 3))

    def _cut_commits(self, chance: random.Random) -> None:
        """Also those that write down that a server lives."""
        assert self.cuts is not None
        self.cuts.every = chance.randint(3, 20)
        self.over.wait(chance.uniform(0.5, 3))
        self.cuts.every = 0

    def _nothing(self, chance: random.Random) -> None:
        self.over.wait(chance.uniform(0.5, 3))

    def _drop(self, chance: random.Random) -> None:
        pool = self.chain.rpc("txpool_content")["pending"]
        hashes = [transaction["hash"] for slots in pool.values() for transaction in slots.values()]
        if hashes:
            self.chain.rpc("anvil_dropTransaction", chance.choice(hashes))

    def _reorganise(self, chance: random.Random) -> None:
        self.chain.rpc("anvil_reorg", chance.randint(1, 5), [])
