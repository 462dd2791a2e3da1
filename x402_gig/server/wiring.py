"""The composition root: makes every part of a server and gives each one the others that it needs.

Nothing is contacted here, and nothing runs: `server.lifecycle` sees to that.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from starlette.types import ASGIApp

from x402_gig.chainsync.clock import ChainClock
from x402_gig.chainsync.head import Head
from x402_gig.chainsync.lookahead import LookAhead
from x402_gig.chainsync.watcher import Watcher
from x402_gig.evm.node import Node
from x402_gig.evm.rpc import Rpc
from x402_gig.evm.wallets import Wallet, Wallets
from x402_gig.facilitators.local import LocalFacilitator
from x402_gig.gigs.rules import Rules, RuleSet
from x402_gig.gigs.shop import GigShop
from x402_gig.ledger.deposits import Shop
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.gigs import GigShelf, open_shelf
from x402_gig.ledger.payment_book import PaymentBook
from x402_gig.market.finding import Finder
from x402_gig.market.following import Following
from x402_gig.market.keyed_gigs import KeyedGigs
from x402_gig.market.turns import LedgerTurns, Turns
from x402_gig.metrics import Metrics
from x402_gig.payments.checkout import Checkout
from x402_gig.payments.order import Product, Seller
from x402_gig.relaying.gas import GasMoney
from x402_gig.relaying.leases import FUNDING, Leases
from x402_gig.relaying.relayer import Relayer
from x402_gig.server.health import Health
from x402_gig.settings import Settings, parse_rate
from x402_gig.settlement.late_orders import Claims
from x402_gig.settlement.reconciler import Reconciler
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.work import Work
from x402_gig.treasury.dispatcher import Dispatcher, Queue
from x402_gig.treasury.funding import Funding
from x402_gig.treasury.gig_wallet import GigWallet
from x402_gig.treasury.token_transactions import Payouts
from x402_gig.web.api.app import Api, Probes
from x402_gig.web.api.counting import Limiter, SharedCounts
from x402_gig.web.api.keys import Keys

if TYPE_CHECKING:
    # Imported when it is used: most servers do without an HTTP client.
    from x402_gig.facilitators.remote import RemoteFacilitator

# Where blocks come faster than Base's, new ones are read this often, if no buyer waits for what is in them.
READ_INTERVAL_S = 2
# A block every two seconds on Base, and three of them.
BLOCKS_HELD_S = 6

Closing = Callable[[], Awaitable[None]]


class Base(Struct, frozen=True):
    """The parts that nearly all others are given."""

    settings: Settings
    ledger: Ledger
    wallets: Wallets
    node: Node
    clock: ChainClock
    metrics: Metrics
    work: Work
    rules: Rules
    shop: GigShop
    shelves: Shop


class Evidence(Struct, frozen=True):
    """The parts that read the chain and settle payments by it."""

    settling: Settling
    head: Head
    watcher: Watcher


class Senders(Struct, frozen=True):
    """The parts that send transactions."""

    leases: Leases
    relayers: list[Relayer]
    funding: Funding
    payouts: Payouts


class Server(Struct, frozen=True):
    """All parts of a server, as its lifecycle and its callers need them."""

    settings: Settings
    ledger: Ledger
    wallets: Wallets
    node: Node
    seller: Seller
    shop: GigShop
    checkout: Checkout
    app: ASGIApp
    watcher: Watcher
    senders: Senders
    dispatcher: Dispatcher
    reconciler: Reconciler
    following: Following
    lookahead: LookAhead
    work: Work
    facilitator: "LocalFacilitator | RemoteFacilitator"
    closing: Sequence[Closing]


def build(settings: Settings, ledger: Ledger, extra_products: Sequence[Product] = ()) -> Server:
    """Wire everything, by settings that agree with the ledger."""
    base = _base(settings, ledger, extra_products)
    evidence = _evidence(base)
    senders = _senders(base, evidence)
    claims = Claims(base.node, ledger, base.shelves, evidence.watcher, base.work)
    seller = _seller(settings, base.wallets.intake.address)
    facilitator = _facilitator(base, evidence, senders.leases, claims, seller)
    closing: list[Closing] = [base.node.rpc.close, facilitator.close]
    checkout = Checkout(
        seller=seller,
        book=PaymentBook(ledger),
        facilitator=facilitator,
        prover=base.node,
        hold_s=settings.max_timeout_s + BLOCKS_HELD_S,
        clock=base.clock,
        observer=base.metrics,
    )
    queues: list[Queue] = [senders.payouts]
    if isinstance(facilitator, LocalFacilitator):
        queues.insert(0, facilitator)
    keyed = _keyed_gigs(base, evidence, closing)
    lookahead = LookAhead(ledger, base.node, base.wallets, settings.reorg_depth)
    limiter = _limiter(settings, base.wallets.intake.address, closing)
    probes = _probes(base, evidence, senders, lookahead, limiter)
    return Server(
        settings=settings,
        ledger=ledger,
        wallets=base.wallets,
        node=base.node,
        seller=seller,
        shop=base.shop,
        checkout=checkout,
        app=_app(base, checkout, keyed, limiter, probes),
        watcher=evidence.watcher,
        senders=senders,
        dispatcher=Dispatcher(senders.relayers, senders.leases, queues, senders.funding, base.work),
        reconciler=_reconciler(base, evidence, facilitator, keyed),
        following=Following(ledger, base.rules, settings.max_timeout_s),
        lookahead=lookahead,
        work=base.work,
        facilitator=facilitator,
        closing=closing,
    )


def _base(settings: Settings, ledger: Ledger, extra_products: Sequence[Product]) -> Base:
    preset = settings.preset
    wallets = Wallets(settings.mnemonic, settings.wallet_account)
    clock = ChainClock()
    rules = Rules(RuleSet(0, 0, settings.commission_bps, settings.minimum_reward, settings.maximum_reward))
    shop = GigShop(rules, preset.token.address, preset.v1_name, preset.chain_id, clock.now)
    return Base(
        settings=settings,
        ledger=ledger,
        wallets=wallets,
        node=Node(Rpc(settings.rpc_url.get_secret_value()), preset.token),
        clock=clock,
        metrics=Metrics(),
        work=Work(),
        rules=rules,
        shop=shop,
        shelves=_shelves(preset.caip2, [shop, *extra_products], wallets),
    )


def _shelves(network: str, products: Sequence[Product], wallets: Wallets) -> Shop:
    def open_book(connection: Connection, most: int) -> AbstractContextManager[GigShelf]:
        return open_shelf(connection, most, wallets.gig_address, wallets.reward_nonce)

    return Shop(network, {product.name: product for product in products}, open_book)


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


def _evidence(base: Base) -> Evidence:
    settings, intake = base.settings, base.wallets.intake.address
    settling = Settling(
        base.ledger, base.shelves, base.work, intake=intake, asset=base.node.token.address, clock=base.clock
    )
    head = Head(base.node, base.clock)
    # With more confirmations, or a remote facilitator, buyers wait for the watcher instead of a receipt.
    is_waited_for = settings.confirmations > 1 or settings.is_remote
    watcher = Watcher(
        base.node,
        head,
        base.ledger,
        settling,
        intake=intake,
        confirmations=settings.confirmations,
        reorg_depth=settings.reorg_depth,
        pause_s=0 if is_waited_for else READ_INTERVAL_S,
    )
    return Evidence(settling, head, watcher)


def _senders(base: Base, evidence: Evidence) -> Senders:
    settings, ledger, node, watcher = base.settings, base.ledger, base.node, evidence.watcher
    wallets = [base.wallets.relayer(index) for index in range(settings.relayers)]
    leases = Leases(ledger, [wallet.address for wallet in wallets], lambda: watcher.is_blind)
    depths = (settings.confirmations, settings.reorg_depth)
    shared = (node, ledger, evidence.settling, evidence.head, watcher, leases, *depths, base.metrics)

    def gig_wallet(wallet: Wallet, **how: Any) -> GigWallet:
        return GigWallet(wallet, FUNDING, *shared, **how)

    # Half of the relayers at most, so that deposits need not wait.
    at_once = max(1, settings.relayers // 2)
    return Senders(
        leases=leases,
        relayers=[Relayer(wallet, wallet.address, *shared) for wallet in wallets],
        funding=Funding(ledger, node, base.wallets, leases, base.work, base.clock, at_once),
        payouts=Payouts(ledger, node, base.wallets, leases, base.work, gig_wallet),
    )


def _facilitator(
    base: Base, evidence: Evidence, leases: Leases, claims: Claims, seller: Seller
) -> "LocalFacilitator | RemoteFacilitator":
    settings, settling = base.settings, evidence.settling
    if not settings.is_remote:
        return LocalFacilitator(base.node, base.ledger, settling, claims, base.work, evidence.head, leases)
    from x402_gig.facilitators.remote import FacilitatorClient, RemoteFacilitator

    client = FacilitatorClient(settings.facilitator.get_secret_value(), settings.facilitator_token.get_secret_value())
    return RemoteFacilitator(client, seller, base.node, base.ledger, settling, claims, evidence.watcher.wake)


def _keyed_gigs(base: Base, evidence: Evidence, closing: list[Closing]) -> KeyedGigs:
    settings = base.settings
    turns: Turns = LedgerTurns(base.ledger)
    if redis_url := settings.redis_url.get_secret_value():
        from x402_gig.market.redis_turns import RedisTurns

        turns = shared = RedisTurns(redis_url, base.wallets.intake.address, base.ledger)
        closing.append(shared.close)
    return KeyedGigs(
        shop=base.shop,
        ledger=base.ledger,
        node=base.node,
        wallets=base.wallets,
        watcher=evidence.watcher,
        turns=turns,
        confirmations=settings.confirmations,
        reorg_depth=settings.reorg_depth,
        work=base.work,
        halt=lambda: evidence.settling.halt,
    )


def _reconciler(
    base: Base, evidence: Evidence, facilitator: "LocalFacilitator | RemoteFacilitator", keyed: KeyedGigs
) -> Reconciler:
    return Reconciler(
        base.node,
        base.ledger,
        evidence.settling,
        evidence.watcher,
        resender=facilitator,
        refund_nonce=base.wallets.refund_nonce,
        work=base.work,
        clock=base.clock,
        reorg_depth=base.settings.reorg_depth,
        metrics=base.metrics,
        recheck=keyed.recheck,
    )


def _probes(base: Base, evidence: Evidence, senders: Senders, lookahead: LookAhead, limiter: Limiter) -> Probes:
    gas = GasMoney(senders.relayers)

    async def warnings() -> dict[str, str]:
        return {
            "funding": senders.funding.problem,
            "gas": gas.warning,
            "payouts": senders.payouts.problem,
            "wallets": lookahead.problem,
            "relayers": senders.leases.problem,
            "clock": base.clock.problem,
            "redis": await limiter.look(),
        }

    async def token_problem() -> str:
        intake = base.wallets.intake.address
        paused, [blacklisted] = await base.node.refusals(intake)
        if paused:
            return "USDC is paused"
        return f"USDC has the intake {intake} on its blacklist" if blacklisted else ""

    health = Health(
        evidence.head, evidence.watcher, base.ledger, evidence.settling, gas, base.metrics, token_problem, warnings
    )
    return Probes(health.readiness, health.measure)


def _limiter(settings: Settings, name: str, closing: list[Closing]) -> Limiter:
    shared: SharedCounts | None = None
    if redis_url := settings.redis_url.get_secret_value():
        from x402_gig.web.api.redis_counts import RedisCounts

        shared = RedisCounts(redis_url, name)
    by_address, by_key = map(parse_rate, (settings.rate_limit_address, settings.rate_limit_key))
    limiter = Limiter(by_address, by_key, shared)
    closing.append(limiter.close)
    return limiter


def _app(base: Base, checkout: Checkout, keyed: KeyedGigs, limiter: Limiter, probes: Probes) -> ASGIApp:
    finder = Finder(base.ledger)
    return Api(
        checkout=checkout,
        shop=base.shop,
        keyed=keyed,
        keys=Keys(base.ledger),
        limiter=limiter,
        find_gig=finder.find,
        list_gigs=finder.list,
        probes=probes,
        public_url=base.settings.public_url,
    ).build()
