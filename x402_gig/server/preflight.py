"""Everything that must be true before the first signature; each failure names what to do about it."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence

from x402_gig.chainsync.lookahead import used_wallets
from x402_gig.errors import CannotStart, LeaseLost
from x402_gig.evm import batcher
from x402_gig.evm.node import Block, Node
from x402_gig.evm.wallets import Wallet, Wallets
from x402_gig.ledger import chain_state, slots
from x402_gig.ledger.chain_state import Binding, Cursor
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.leases import held_now
from x402_gig.relaying.gas import check_gas
from x402_gig.relaying.leases import Leases
from x402_gig.relaying.relayer import Batch, Relayer

log = logging.getLogger(__name__)

# A wallet costs a derivation.
WALLETS_CHECKED = 100
WALLETS_LOOKED_AT = 1000
DEPLOY_GAS = 3_000_000
DEPLOY_TIMEOUT_S = 60
DEPLOY_PAUSE_S = 0.5


async def check_chain(node: Node) -> None:
    """The chain and the token are the expected ones. Raises CannotStart."""
    chain_id = await node.chain_id()
    if chain_id != node.token.chain_id:
        raise CannotStart(
            [f"X402_GIG_RPC_URL leads to chain {chain_id}, X402_GIG_NETWORK is chain {node.token.chain_id}"]
        )
    if not await node.code(node.token.address):
        raise CannotStart([f"There is no token at {node.token.address} on this chain"])
    if await node.domain_separator() != "0x" + node.token.domain_separator.hex():
        raise CannotStart([f"The EIP-712 domain of {node.token.address} is not {node.token.name} {node.token.version}"])


def check_commission_address(address: str, token: str, wallets: Wallets, relayers: Sequence[Wallet]) -> None:
    """The commission goes to the operator, not in a circle. Raises CannotStart."""
    if ours := whose(address, token, wallets, relayers):
        raise CannotStart([f"X402_GIG_COMMISSION_ADDRESS is {ours}: it must be an address of your own"])


def whose(address: str, token: str, wallets: Wallets, relayers: Sequence[Wallet]) -> str:
    """Which of the server's own addresses it is; empty when it is none."""
    ours = {
        token: "the token",
        wallets.intake.address: "the intake",
        **{relayer.address: "a relayer" for relayer in relayers},
        **{wallets.gig_address(gig_id): "a gig's wallet" for gig_id in range(1, WALLETS_CHECKED + 1)},
    }
    return ours.get(address, "")


async def ensure_batcher(node: Node, relayers: Sequence[Relayer], leases: Leases) -> None:
    """The batcher is at its address, deployed by us where it is missing, and there is gas to use it.

    Raises CannotStart.
    """
    code = await node.code(batcher.address())
    await check_gas(relayers, deployment=0 if code else DEPLOY_GAS)
    if not code:
        if not await node.code(batcher.CREATE2_DEPLOYER):
            raise CannotStart([f"The chain has no CREATE2 deployer at {batcher.CREATE2_DEPLOYER}"])
        code = await _deployed(node, relayers, leases)
    if code != batcher.runtime_code():
        raise CannotStart([f"The code at {batcher.address()} is not the batcher's"])


async def _deployed(node: Node, relayers: Sequence[Relayer], leases: Leases) -> bytes:
    """Its code. Of servers that start at once, one with a relayer that can pay deploys it, and the others wait."""
    try:
        async with asyncio.timeout(DEPLOY_TIMEOUT_S):
            while not (code := await node.code(batcher.address())):
                await leases.renew()
                if not await _deploy(relayers, leases):
                    await asyncio.sleep(DEPLOY_PAUSE_S)
            return code
    except TimeoutError:
        raise CannotStart(["The batcher's deployment was not mined in time: start again"]) from None


async def _deploy(relayers: Sequence[Relayer], leases: Leases) -> bool:
    """False when no relayer of this process can."""
    ours = [relayer for relayer in relayers if leases.fence(relayer.lease) is not None]
    able = [relayer for relayer in ours if await relayer.has_gas()]
    if not able:
        return False
    log.info("deploying the batcher at %s", batcher.address())
    data = batcher.SALT + batcher.creation_code()
    # In a slot like any other transaction: a reorganisation may drop this one too.
    deployment = Batch(data, DEPLOY_GAS, to=batcher.CREATE2_DEPLOYER)
    with contextlib.suppress(LeaseLost):
        await able[0].start()
        slot = await able[0].write_down(slots.DEPLOY, lambda _: deployment)
        if slot is not None:
            await able[0].finish(slot)
    return True


async def check_ledger(node: Node, ledger: Ledger, wallets: Wallets) -> bool:
    """Is the ledger bound already? One that belongs to another chain or seed raises CannotStart."""
    ours = await _binding(node, wallets)
    bound = await ledger.read(chain_state.bound_to)
    if bound is None or bound == ours:
        return bound is not None
    if bound.intake != ours.intake:
        raise CannotStart(
            [f"The ledger belongs to the intake {bound.intake}: another seed or X402_GIG_WALLET_ACCOUNT made it"]
        )
    advice = "use another X402_GIG_DATABASE_URL"
    raise CannotStart([f"The ledger belongs to another chain (a devnet is a new one at every start): {advice}"])


async def bind_ledger(node: Node, ledger: Ledger, wallets: Wallets, reorg_depth: int) -> None:
    """Make a fresh ledger this chain's and this seed's. Raises CannotStart when the seed has funded gigs before.

    It begins so far below the head that its beginning cannot be replaced: reading again never goes below it. Where
    several servers start at once, the first one does it.
    """
    ours = await _binding(node, wallets)
    head = await node.head()
    used = await used_wallets(node, wallets, range(1, WALLETS_LOOKED_AT + 1), head, head.number + 1)
    if used and await ledger.read(chain_state.bound_to) is None:
        raise CannotStart(
            [
                "The ledger is empty but this seed has funded gigs before: restore the ledger's backup, or set "
                "another X402_GIG_WALLET_ACCOUNT"
            ]
        )
    start = await node.block(max(0, head.number - reorg_depth)) or head
    balance = await node.balance_of(ours.intake, head) - await _moved_since(node, start, head, ours.intake)

    def bind(connection: Connection) -> None:
        if chain_state.bound_to(connection) is None:
            chain_state.bind(connection, ours, Cursor(start.number, start.hash), balance)

    await ledger.write(bind)
    await check_ledger(node, ledger, wallets)


async def _moved_since(node: Node, start: Block, head: Block, account: str) -> int:
    """By how much the balance has changed, in base units."""
    if start == head:
        return 0
    moved = await node.history(start.number + 1, head.number, account)
    return sum(t.value * ((t.payee == account) - (t.payer == account)) for t in moved)


async def _binding(node: Node, wallets: Wallets) -> Binding:
    return Binding(node.token.chain_id, await node.genesis_hash(), wallets.intake.address)


async def check_relayers(ledger: Ledger, wallets: Sequence[Wallet]) -> None:
    """Every transaction under way has its relayer, here or at another server. Raises CannotStart."""
    ours = {wallet.address for wallet in wallets}
    if missing := await ledger.read(lambda c: slots.busy_relayers(c) - held_now(c)) - ours:
        raise CannotStart(
            [
                f"Transactions of relayer {address} are under way: start with more X402_GIG_RELAYERS"
                for address in missing
            ]
        )


async def check_not_halted(ledger: Ledger) -> None:
    """The intake moved nothing that the ledger does not know of. Raises CannotStart."""
    if halt := await ledger.read(chain_state.funding_halt):
        raise CannotStart([f'{halt}. Restore the newest ledger, or see "When it is halted" in docs/operations.md'])
