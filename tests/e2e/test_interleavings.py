"""Random interleavings of buyers, strangers, crashes, outages and reorganisations, on a real chain and a real server.

After every step the ledger and the chain must agree as far as they can while things are under way; at the end of every
interleaving all is healed and they must agree to the last unit.
"""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, cast

import httpx
import pytest
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.support import faults
from tests.support.crashes import Buyer, Victim, victim
from tests.support.faults import RpcProxy, rpc_proxy
from tests.support.harness import USDC, calldata, decode, devnet, gig_terms
from tests.support.invariants import assert_all_accounted_for, transfers
from tests.support.ledgers import reading

OUTAGES = {
    "down": faults.down,
    "too many requests": faults.status(429),
    "garbage": faults.garbage,
    "lost replies": faults.lose_reply,
}
# Deeper than any reorganisation, so that accounts, token and batcher stay.
FIRST_BLOCKS = "0x10"
ACCOUNTS = 8


@dataclass
class World:
    """One chain and one server for all interleavings; what an earlier one left is final."""

    shop: Victim
    proxy: RpcProxy
    threads: ThreadPoolExecutor
    accounts: list[LocalAccount]
    buyers: list[Buyer] = field(default_factory=list)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    with (
        devnet("--block-time", "0.3") as chain,
        rpc_proxy(chain) as proxy,
        victim(chain, proxy, folder, max_timeout_s=10) as shop,
        ThreadPoolExecutor(64) as threads,
    ):
        accounts = [shop.buyer(10**12) for _ in range(ACCOUNTS)]
        shop.rpc("anvil_mine", FIRST_BLOCKS)
        yield World(shop, proxy, threads, accounts)


class Interleaving(RuleBasedStateMachine):
    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world
        self.shop = world.shop
        self.mine: list[Buyer] = []
        self.posts: list[Future[httpx.Response | None]] = []

    # Buyers and strangers

    @rule(who=st.integers(0, ACCOUNTS - 1), amount=st.integers(10, 30))
    def buy(self, who: int, amount: int) -> None:
        buyer = Buyer(self.shop, self.world.accounts[who], gig_terms(amount=amount))
        buyer.sign()
        self.mine.append(buyer)
        self._post(buyer)

    @precondition(lambda self: self.mine)
    @rule(which=st.integers(0, 99))
    def send_the_same_again(self, which: int) -> None:
        self._post(self.mine[which % len(self.mine)])

    @precondition(lambda self: self.mine)
    @rule(which=st.integers(0, 99))
    def a_stranger_executes_it(self, which: int) -> None:
        payload = decode(self.mine[which % len(self.mine)].headers[-1]["PAYMENT-SIGNATURE"])["payload"]
        stranger = "0x" + "5a" * 20
        self.shop.rpc("anvil_setBalance", stranger, hex(10**20))
        self.shop.rpc("anvil_impersonateAccount", stranger)
        transaction = {"from": stranger, "to": USDC, "data": calldata(payload), "gas": hex(200_000)}
        self.shop.rpc("eth_sendTransaction", transaction)

    def _post(self, buyer: Buyer) -> None:
        """As an impatient client, who comes back at the end."""

        def post() -> httpx.Response | None:
            with suppress(httpx.TransportError):
                return buyer.post(timeout_s=5)
            return None

        self.posts.append(self.world.threads.submit(post))

    # The server

    @precondition(lambda self: self.shop.is_running)
    @rule()
    def kill(self) -> None:
        self.shop.kill()

    @precondition(lambda self: not self.shop.is_running)
    @rule()
    def start(self) -> None:
        self.shop.spawn()

    # The chain

    @rule(depth=st.integers(1, 5))
    def reorganise(self, depth: int) -> None:
        self.shop.rpc("anvil_reorg", depth, [])

    @precondition(lambda self: not self.world.proxy.rules)
    @rule(outage=st.sampled_from(sorted(OUTAGES)))
    def break_the_connection(self, outage: str) -> None:
        self.world.proxy.rules["*"] = OUTAGES[outage]

    @precondition(lambda self: self.world.proxy.rules)
    @rule()
    def mend_the_connection(self) -> None:
        self.world.proxy.rules.clear()

    @rule()
    def lose_what_is_in_the_pool(self) -> None:
        for pending in self.shop.rpc("txpool_content")["pending"].values():
            for transaction in pending.values():
                self.shop.rpc("anvil_dropTransaction", transaction["hash"])

    @rule(blocks=st.integers(1, 3))
    def mine_blocks(self, blocks: int) -> None:
        self.shop.rpc("anvil_mine", hex(blocks))

    # What must hold

    @invariant()
    def nothing_is_doubled(self) -> None:
        """On chain: a wallet is funded once, and no more leaves the intake than came in."""
        moved = transfers(self.shop)
        intake, commission = self.shop.intake.lower(), self.shop.commission.lower()
        rewards = Counter(paid.payee for paid in moved if paid.payer == intake and paid.payee != commission)
        assert not [wallet for wallet, count in rewards.items() if count > 1]
        received = sum(paid.value for paid in moved if paid.payee == intake)
        assert sum(paid.value for paid in moved if paid.payer == intake) <= received

    @invariant()
    def every_deposit_has_one_owner_and_every_gig_its_payment(self) -> None:
        with reading(self.shop.ledger) as ledger:
            unpaid = ledger.execute(
                "select p.id from payments p left join deposits d on d.payment_id = p.id and d.on_chain = 1 "
                "where (p.state = 'settled') <> (d.id is not null)"
            ).fetchall()
            gigless = ledger.execute(
                "select p.id from payments p left join gigs g on g.payment_id = p.id "
                "where p.state = 'settled' and g.id is null"
            ).fetchall()
            unbacked = ledger.execute(
                "select m.id from movements m join gigs g on g.id = m.subject and m.kind = 'reward' "
                "join payments p on p.id = g.payment_id where m.state = 'done' and p.state = 'rejected'"
            ).fetchall()
        assert (unpaid, gigless, unbacked) == ([], [], [])

    def teardown(self) -> None:
        """All is healed, every buyer insists, and every unit is looked for."""
        self.world.proxy.rules.clear()
        for post in self.posts:
            post.result()
        if self.shop.is_running:
            self.shop.kill()
        self.shop.start()
        for answer in [self.world.threads.submit(buyer.insist) for buyer in self.mine]:
            answer.result()
        self.world.buyers += self.mine
        assert_all_accounted_for(self.shop, self.world.buyers)


def test_whatever_happens_in_whatever_order_the_ledger_is_the_chain(world: World) -> None:
    run_state_machine_as_test(
        cast(Any, lambda: Interleaving(world)),
        settings=settings(
            max_examples=5,
            stateful_step_count=20,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
