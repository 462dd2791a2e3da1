"""A server's life: prepared, at work, closed."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from x402_gig.errors import CannotStart, LedgerUnavailable, Unavailable
from x402_gig.evm.devnet_gas import give_gas
from x402_gig.ledger import shared_settings
from x402_gig.ledger.engine import Ledger
from x402_gig.payments.order import Product
from x402_gig.server import preflight
from x402_gig.server.wiring import Server, build
from x402_gig.settings import Settings

log = logging.getLogger(__name__)

WATCH_INTERVAL_S = 0.5
RECONCILE_INTERVAL_S = 1.0


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
            stack.push_async_callback(close, server)
            await prepare(server)
        except Unavailable as exc:
            is_ledger = isinstance(exc, LedgerUnavailable)
            where = "DATABASE_URL" if is_ledger else "RPC_URL, and X402_GIG_FACILITATOR if it is remote"
            raise CannotStart([f"{exc.detail}: see X402_GIG_{where}"]) from exc
        await stack.enter_async_context(_running(server))
        yield server


async def prepare(server: Server) -> None:
    """Check everything that must hold, and finish reading the chain. Raises CannotStart or Unavailable."""
    node, ledger, wallets, senders = server.node, server.ledger, server.wallets, server.senders
    relayers = [relayer.wallet for relayer in senders.relayers]
    await preflight.check_chain(node)
    preflight.check_commission_address(server.settings.commission_address, node.token.address, wallets, relayers)
    is_bound = await preflight.check_ledger(node, ledger, wallets)
    await server.facilitator.prepare()
    if server.settings.network == "devnet":
        await give_gas(node.rpc, [wallet.address for wallet in relayers])
    await preflight.ensure_batcher(node, senders.relayers, senders.leases)
    if not is_bound:
        await preflight.bind_ledger(node, ledger, wallets, server.settings.reorg_depth)
    await _agree(server)
    await preflight.check_relayers(ledger, relayers)
    # Before anything is settled: a gig that is made needs a wallet that was looked at.
    await server.lookahead.begin()
    # Before anything is signed: has money left the intake without this ledger knowing?
    await server.watcher.catch_up()
    await preflight.check_not_halted(ledger)


async def _agree(server: Server) -> None:
    """Write the shared settings down where the ledger has none, and go by what it says. Raises CannotStart."""
    wanted = server.settings.model_dump(include=set(shared_settings.NAMES))
    # Another server, which started at the same time, may have been first.
    server.settings.agreed(await server.ledger.write(lambda c: shared_settings.keep(c, wanted)))
    await server.following.look()


@asynccontextmanager
async def _running(server: Server) -> AsyncIterator[None]:
    """Settle, fund, watch and reconcile until the context ends."""
    leases, payouts = server.senders.leases, server.senders.payouts

    async def look_at_others() -> None:
        """What is due may be another process's doing, or that of a commit whose answer was lost."""
        await server.senders.funding.look()
        server.work.has_come()

    await leases.renew()
    jobs = {
        "leases": leases.run(look_at_others),
        "following": server.following.run(),
        "watcher": server.watcher.run(WATCH_INTERVAL_S),
        "dispatcher": server.dispatcher.run(),
        "payouts": payouts.serve(),
        "wallets": server.lookahead.run(),
        "reconciler": server.reconciler.run(RECONCILE_INTERVAL_S),
    }
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job, name=name) for name, job in jobs.items()]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def close(server: Server) -> None:
    """Leave the leases to others, and end every connection."""
    await server.senders.leases.release()
    for end in server.closing:
        await end()
