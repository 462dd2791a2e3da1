"""The composition root: the one place that sees every room and puts them together."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp

from x402_gig.chainsync.clock import ChainClock
from x402_gig.chainsync.head import Head
from x402_gig.chainsync.lookahead import LookAhead
from x402_gig.chainsync.watcher import Watcher
from x402_gig.errors import CannotStart, GigError, LedgerUnavailable, Unavailable
from x402_gig.evm.devnet_gas import give_gas
from x402_gig.evm.node import Node
from x402_gig.evm.rpc import Rpc
from x402_gig.evm.wallets import MAX_GIG_ID, Wallet, Wallets
from x402_gig.facilitators.local import LocalFacilitator
from x402_gig.gigs.listing import GigQuery, Page
from x402_gig.gigs.records import GigRecord
from x402_gig.gigs.rules import Rules, RuleSet
from x402_gig.gigs.shop import GigShop
from x402_gig.ledger import shared_settings
from x402_gig.ledger.deposits import Shop
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.gigs import GigShelf, find_gig, list_gigs, open_shelf
from x402_gig.ledger.payments import PaymentBook
from x402_gig.ledger.status import status
from x402_gig.market.following import Following
from x402_gig.market.keyed_gigs import KeyedGigs
from x402_gig.market.turns import LedgerTurns
from x402_gig.metrics import Metrics
from x402_gig.payments.checkout import Checkout
from x402_gig.payments.order import Product, Seller
from x402_gig.relaying.gas import GasMoney
from x402_gig.relaying.leases import FUNDING, Leases
from x402_gig.relaying.relayer import Relayer
from x402_gig.server import preflight
from x402_gig.settings import Settings, parse_rate
from x402_gig.settlement.late_orders import Claims
from x402_gig.settlement.reconciler import Reconciler
from x402_gig.settlement.settling import Settling
from x402_gig.treasury.dispatcher import Dispatcher, Queue
from x402_gig.treasury.funding import Funding
from x402_gig.treasury.gig_wallet import GigWallet
from x402_gig.treasury.token_transactions import Payouts
from x402_gig.web.api.app import Api, Probes, Readiness
from x402_gig.web.api.counting import Limiter, SharedCounts
from x402_gig.web.api.keys import Keys

if TYPE_CHECKING:
    # Imported when they are used: most servers do without an HTTP client and without Redis.
    from x402_gig.facilitators.remote import FacilitatorClient, RemoteFacilitator
    from x402_gig.market.redis_turns import RedisTurns

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
# Where blocks come faster than Base's, new ones are read this often, if no buyer waits for what is in them.
READ_INTERVAL_S = 2
RECONCILE_INTERVAL_S = 1.0
# A block every two seconds on Base, and three of them.
BLOCKS_HELD_S = 6
STALE_S = 30
READINESS_TTL_S = 1
MEASURE_TTL_S = 5
# Prometheus waits for ten seconds, and a node that hangs is what it has to hear of.
LOOK_S = 5


@dataclass
class Server:
    """Everything that runs. `app` serves HTTP; the rest works in the background while `running`."""

    settings: Settings
    wallets: Wallets
    ledger: Ledger
    node: Node
    seller: Seller
    shop: GigShop
    settling: Settling
    head: Head
    watcher: Watcher
    relayers: list[Relayer]
    claims: Claims
    funding: Funding
    clock: ChainClock
    metrics: Metrics
    leases: Leases
    following: Following
    payouts: Payouts
    lookahead: LookAhead
    gas: GasMoney = field(init=False)
    client: "FacilitatorClient | None" = field(init=False, default=None)
    redis_turns: "RedisTurns | None" = field(init=False, default=None)
    keyed: KeyedGigs = field(init=False)
    limiter: Limiter = field(init=False)
    checkout: Checkout = field(init=False)
    reconciler: Reconciler = field(init=False)
    dispatcher: Dispatcher = field(init=False)
    _readiness: Readiness = field(default_factory=lambda: Readiness({}, {}), init=False)
    _readiness_until: float = field(default=0.0, init=False)
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _measured_until: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        facilitator: LocalFacilitator | RemoteFacilitator
        queues: list[Queue] = [self.payouts]
        if not self.settings.is_remote:
            local = LocalFacilitator(self.node, self.ledger, self.settling, self.claims, self.head, self.leases)
            facilitator = local
            queues.insert(0, local)
        else:
            facilitator = self._remote_facilitator()
        self.dispatcher = Dispatcher(self.relayers, self.leases, queues, self.funding)
        for queue in queues:
            queue.wake = self.dispatcher.wake
        self.gas = GasMoney(self.relayers)
        self.keyed = self._keyed_gigs()
        self.limiter = self._limiter()
        self.checkout = Checkout(
            seller=self.seller,
            book=PaymentBook(self.ledger),
            facilitator=facilitator,
            prover=self.node,
            hold_s=self.settings.max_timeout_s + BLOCKS_HELD_S,
            clock=self.clock,
            observer=self.metrics,
        )
        self.reconciler = Reconciler(
            self.node,
            self.ledger,
            self.settling,
            self.watcher,
            resender=facilitator,
            refund_nonce=self.wallets.refund_nonce,
            funding_due=self.fund_soon,
            clock=self.clock,
            reorg_depth=self.settings.reorg_depth,
            metrics=self.metrics,
            recheck=self.keyed.recheck,
        )
        self.settling.funding_due = self.fund_soon
        self.settling.slots_reopened = self.dispatcher.start_again
        self.settling.pause = self._pause
        self.leases.renewed = self._look_at_others
        self.leases.is_blind = lambda: self.watcher.is_blind

    def _remote_facilitator(self) -> "RemoteFacilitator":
        from x402_gig.facilitators.remote import FacilitatorClient, RemoteFacilitator

        token = self.settings.facilitator_token.get_secret_value()
        self.client = FacilitatorClient(self.settings.facilitator.get_secret_value(), token)
        return RemoteFacilitator(
            self.client, self.seller, self.node, self.ledger, self.settling, self.claims, self.watcher.wake
        )

    def _keyed_gigs(self) -> KeyedGigs:
        redis_url = self.settings.redis_url.get_secret_value()
        if redis_url:
            from x402_gig.market.redis_turns import RedisTurns

            self.redis_turns = RedisTurns(redis_url, self.wallets.intake.address, self.ledger)
        return KeyedGigs(
            shop=self.shop,
            ledger=self.ledger,
            node=self.node,
            wallets=self.wallets,
            watcher=self.watcher,
            turns=self.redis_turns or LedgerTurns(self.ledger),
            confirmations=self.settings.confirmations,
            reorg_depth=self.settings.reorg_depth,
            funding_due=self.fund_soon,
            halt=lambda: self.settling.halt,
        )

    def _limiter(self) -> Limiter:
        redis_url = self.settings.redis_url.get_secret_value()
        shared: SharedCounts | None = None
        if redis_url:
            from x402_gig.web.api.redis_counts import RedisCounts

            shared = RedisCounts(redis_url, self.wallets.intake.address)
        by_address, by_key = map(parse_rate, (self.settings.rate_limit_address, self.settings.rate_limit_key))
        return Limiter(by_address, by_key, shared)

    def _pause(self) -> str:
        return "its relayers are out of gas" if self.dispatcher.is_out_of_gas else ""

    async def _look_at_others(self) -> None:
        """What is due may be another process's doing, or that of a commit whose answer was lost."""
        await self.funding.look()
        self.dispatcher.wake()

    def fund_soon(self) -> None:
        self.funding.due()
        self.dispatcher.wake()

    @property
    def app(self) -> ASGIApp:
        probes = Probes(self.readiness, self.measure)
        return Api(
            checkout=self.checkout,
            shop=self.shop,
            keyed=self.keyed,
            keys=Keys(self.ledger),
            limiter=self.limiter,
            find_gig=self.find_gig,
            list_gigs=self.list_gigs,
            probes=probes,
            public_url=self.settings.public_url,
        ).build()

    async def prepare(self) -> None:
        """Check everything that must hold, and finish reading the chain. Raises CannotStart or Unavailable."""
        wallets = [relayer.wallet for relayer in self.relayers]
        await preflight.check_chain(self.node)
        token = self.node.token.address
        preflight.check_commission_address(self.settings.commission_address, token, self.wallets, wallets)
        is_bound = await preflight.check_ledger(self.node, self.ledger, self.wallets)
        if self.client is not None:
            await self.client.check_support(self.seller.network.caip2)
        if self.settings.network == "devnet":
            await give_gas(self.node.rpc, [wallet.address for wallet in wallets])
        await preflight.ensure_batcher(self.node, self.relayers, self.leases)
        if not is_bound:
            await preflight.bind_ledger(self.node, self.ledger, self.wallets, self.settings.reorg_depth)
        await self._agree()
        await preflight.check_relayers(self.ledger, wallets)
        # Before anything is settled: a gig that is made needs a wallet that was looked at.
        await self.lookahead.begin()
        # Before anything is signed: has money left the intake without this ledger knowing?
        await self.watcher.catch_up()
        await preflight.check_not_halted(self.ledger)

    async def _agree(self) -> None:
        """Write the shared settings down where the ledger has none, and go by what it says. Raises CannotStart."""
        wanted = self.settings.model_dump(include=set(shared_settings.NAMES))
        # Another server, which started at the same time, may have been first.
        self.settings.agreed(await self.ledger.write(lambda c: shared_settings.keep(c, wanted)))
        await self.following.look()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Settle, fund, watch and reconcile until the context ends."""
        await self.leases.renew()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self.leases.run(), name="leases"),
                group.create_task(self.following.run(), name="following"),
                group.create_task(self.watcher.run(WATCH_INTERVAL_S), name="watcher"),
                group.create_task(self.dispatcher.run(), name="dispatcher"),
                group.create_task(self.payouts.serve(), name="payouts"),
                group.create_task(self.lookahead.run(), name="wallets"),
                group.create_task(self.reconciler.run(RECONCILE_INTERVAL_S), name="reconciler"),
            ]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()

    async def close(self) -> None:
        await self.leases.release()
        await self.node.rpc.close()
        if self.client is not None:
            await self.client.close()
        if self.redis_turns is not None:
            await self.redis_turns.close()
        await self.limiter.close()

    async def find_gig(self, gig_id: int, key_id: int | None = None) -> GigRecord | None:
        if not 0 < gig_id <= MAX_GIG_ID:
            return None
        return await self.ledger.read(lambda c: find_gig(c, gig_id, key_id))

    async def list_gigs(self, wanted: GigQuery, now: datetime, key_id: int | None) -> Page:
        return await self.ledger.read(lambda c: list_gigs(c, wanted, int(now.timestamp()), key_id))

    async def readiness(self) -> Readiness:
        """At most `READINESS_TTL_S` old: strangers may ask as often as they like."""
        async with self._looking:
            if time.monotonic() > self._readiness_until:
                self._readiness = await self._look_around()
                self._readiness_until = time.monotonic() + READINESS_TTL_S
        return self._readiness

    async def measure(self) -> bytes:
        """The metrics, as Prometheus reads them; gas money and open rows at most `MEASURE_TTL_S` old."""
        ready = await self.readiness()
        self.metrics.has_problems([*ready.problems, *ready.warnings])
        if time.monotonic() > self._measured_until:
            self._measured_until = time.monotonic() + MEASURE_TTL_S
            with contextlib.suppress(Unavailable):
                found = await self.ledger.read(status)
                self.metrics.is_open(found.counts, found.oldest_s)
            if "chain" not in ready.problems:
                await self._measure_gas()
        return self.metrics.exposition()

    async def _measure_gas(self) -> None:
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(LOOK_S):
                for relayer in self.relayers:
                    self.metrics.has_gas(relayer.wallet.address, await relayer.gas_money())

    async def _look_around(self) -> Readiness:
        problems = await self._look_at_chain()
        try:
            await self.ledger.read(lambda c: None)
        except GigError as exc:
            problems["database"] = exc.detail
        if problem := self.watcher.problem:
            problems[_culprit(problem)] = problem.detail
        elif time.monotonic() - self.watcher.up_to_date_at > STALE_S:
            problems["chain"] = f"no new block could be read for {STALE_S} s"
        if self.settling.halt:
            problems["halted"] = self.settling.halt
        warnings = {
            "funding": self.funding.problem,
            "gas": self.gas.warning,
            "payouts": self.payouts.problem,
            "wallets": self.lookahead.problem,
            "relayers": self.leases.problem,
            "clock": self.clock.problem,
            "redis": await self.limiter.look(),
        }
        return Readiness(problems, {name: text for name, text in warnings.items() if text})

    async def _look_at_chain(self) -> dict[str, str]:
        try:
            async with asyncio.timeout(LOOK_S):
                await self.head.look()
                return await self._look_at_gas() | await self._look_at_token()
        except TimeoutError:
            return {"chain": f"the chain node did not answer within {LOOK_S} s"}
        except GigError as exc:
            return {_culprit(exc): exc.detail}

    async def _look_at_gas(self) -> dict[str, str]:
        await self.gas.look()
        return {"gas": self.gas.problem} if self.gas.problem else {}

    async def _look_at_token(self) -> dict[str, str]:
        """Why the token would move nothing at present."""
        paused, [blacklisted] = await self.node.refusals(self.wallets.intake.address)
        if paused:
            return {"token": "USDC is paused"}
        return {"token": f"USDC has the intake {self.wallets.intake.address} on its blacklist"} if blacklisted else {}


def _culprit(problem: GigError) -> str:
    """The name under which `readyz` tells of it."""
    return "database" if isinstance(problem, LedgerUnavailable) else "chain"


def build(settings: Settings, ledger: Ledger, extra_products: Sequence[Product] = ()) -> Server:
    """Wire everything, by settings that agree with the ledger; nothing is contacted yet."""
    preset = settings.preset
    wallets = Wallets(settings.mnemonic, settings.wallet_account)
    intake = wallets.intake.address
    token = preset.token
    node = Node(Rpc(settings.rpc_url.get_secret_value()), token)
    clock, metrics = ChainClock(), Metrics()
    rules = Rules(RuleSet(0, 0, settings.commission_bps, settings.minimum_reward, settings.maximum_reward))
    shop = GigShop(rules, token.address, preset.v1_name, preset.chain_id, clock.now)
    shelves = _shelves(preset.caip2, [shop, *extra_products], wallets)
    settling = Settling(ledger, shelves, intake=intake, asset=token.address, clock=clock)
    depths = {"confirmations": settings.confirmations, "reorg_depth": settings.reorg_depth}
    # A deposit is known by its receipt, but for these.
    is_waited_for = settings.confirmations > 1 or settings.is_remote
    pause_s = 0 if is_waited_for else READ_INTERVAL_S
    head = Head(node, clock)
    watcher = Watcher(node, head, ledger, settling, intake=intake, pause_s=pause_s, **depths)

    relayers = [wallets.relayer(index) for index in range(settings.relayers)]
    leases = Leases(ledger, [wallet.address for wallet in relayers])
    shared = (node, ledger, settling, head, watcher, leases, settings.confirmations, settings.reorg_depth, metrics)

    def gig_wallet(wallet: Wallet, **how: Any) -> GigWallet:
        return GigWallet(wallet, FUNDING, *shared, **how)

    return Server(
        settings=settings,
        wallets=wallets,
        ledger=ledger,
        node=node,
        seller=_seller(settings, intake),
        shop=shop,
        settling=settling,
        head=head,
        watcher=watcher,
        relayers=[Relayer(wallet, wallet.address, *shared) for wallet in relayers],
        claims=Claims(node, ledger, shelves, settling, watcher),
        # Half of the relayers at most, so that deposits need not wait.
        funding=Funding(ledger, node, wallets, leases, clock, at_once=max(1, settings.relayers // 2)),
        clock=clock,
        metrics=metrics,
        leases=leases,
        following=Following(ledger, rules, settings.max_timeout_s),
        payouts=Payouts(ledger, node, wallets, leases, gig_wallet),
        lookahead=LookAhead(ledger, node, wallets, settings.reorg_depth),
    )


def _seller(settings: Settings, intake: str) -> Seller:
    preset = settings.preset
    return Seller(
        network=preset,
        asset=preset.usdc,
        asset_name=preset.usdc_name,
        asset_version=preset.usdc_version,
        pay_to=intake,
        max_timeout_s=settings.max_timeout_s,
    )


def _shelves(network: str, products: Sequence[Product], wallets: Wallets) -> Shop:
    def open_book(connection: Connection, most: int) -> AbstractContextManager[GigShelf]:
        return open_shelf(connection, most, wallets.gig_address, wallets.reward_nonce)

    return Shop(network, {product.name: product for product in products}, open_book)


@asynccontextmanager
async def open_server(settings: Settings, extra_products: Sequence[Product] = ()) -> AsyncIterator[Server]:
    """A prepared server at work. Raises CannotStart."""
    async with AsyncExitStack() as stack:
        ledger = Ledger(settings.database_url.get_secret_value())
        stack.callback(ledger.close)
        try:
            settings = settings.agreed(await ledger.read(shared_settings.settings))
            if settings.warning:
                log.warning(settings.warning)
            server = build(settings, ledger, extra_products)
            stack.push_async_callback(server.close)
            await server.prepare()
        except Unavailable as exc:
            is_ledger = isinstance(exc, LedgerUnavailable)
            where = "DATABASE_URL" if is_ledger else "RPC_URL, and X402_GIG_FACILITATOR if it is remote"
            raise CannotStart([f"{exc.detail}: see X402_GIG_{where}"]) from exc
        await stack.enter_async_context(server.running())
        yield server
