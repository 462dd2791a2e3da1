"""`x402-gig dev` and `x402-gig devnet`: what they start, and what they print."""

import asyncio
import json
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from mnemonic import Mnemonic
from msgspec import Struct, to_builtins
from rich.console import Console

from x402_gig.devnet.anvil import Devnet, DevnetOptions, devnet, free_port
from x402_gig.errors import CannotStart
from x402_gig.evm.devnet_gas import give_gas
from x402_gig.evm.keccak import keccak, with_checksum
from x402_gig.evm.rpc import Rpc
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger import api_keys
from x402_gig.server.http import bind, listening, url_of
from x402_gig.server.lifecycle import open_server
from x402_gig.server.wiring import Server
from x402_gig.settings import NETWORKS, OFF, NetworkPreset, Settings

# Nobody has its key: in development, commissions are only looked at.
DEV_COMMISSION = with_checksum("0x" + keccak(b"x402-gig dev commission")[12:].hex())

EXAMPLE_POST = "https://farcaster.xyz/dwr/0x1a2b3c4d"

console = Console(highlight=False, soft_wrap=True)


class Buyer(Struct, frozen=True):
    address: str
    key: str


class Ready(Struct, frozen=True):
    """The `ready` line of `--json`. A server's fields are empty for the chain alone."""

    rpc_url: str
    buyers: list[Buyer]
    url: str = ""
    intake: str = ""
    commission: str = ""
    api_key: str = ""


@asynccontextmanager
async def open_dev(
    options: DevnetOptions, *, port: int = 0, database: Path | None = None
) -> AsyncIterator[tuple[Ready, Server]]:
    """Chain and server at work; nothing is read from the environment. Raises CannotStart.

    The seed of its wallets is the devnet's own and lies beside its ledger: Base itself would honour what is signed for
    a chain with its id and its USDC, so nobody else may be able to spend what comes to the intake.
    """
    with tempfile.TemporaryDirectory(prefix="x402-gig-") as folder, bind("127.0.0.1", free_port(port)) as listener:
        async with devnet(options) as chain:
            ledger = database or Path(folder) / "ledger.db"
            settings = _settings(chain, url_of(listener), ledger, own_seed(ledger))
            await _give_gas(chain, settings)
            async with open_server(settings) as server, listening(server.app, listener):
                # Also of a ledger that is kept: of a key that is there already only the hash is known.
                _, key = await server.ledger.write(lambda c: api_keys.create(c, "x402-gig dev", None))
                yield _ready(chain, url_of(listener), server.seller.pay_to, key), server


def own_seed(database: Path) -> Path:
    """The file beside a devnet's ledger that holds its phrase, made where there is none. Raises CannotStart."""
    path = database.with_name(f"{database.name}.seed")
    try:
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return path
    except OSError as exc:
        raise CannotStart([f"{path} cannot be made: {exc.strerror}"]) from None
    with os.fdopen(file, "w") as seed:
        seed.write(Mnemonic("english").generate() + "\n")
    return path


def _settings(chain: Devnet, url: str, database: Path, seed_file: Path) -> Settings:
    """Ours alone: a seed or a facilitator in the environment is meant for `serve`, and its money is real."""
    network = "devnet" if chain.preset == NETWORKS["devnet"] else "base-sepolia"
    return Settings(
        network=network,
        rpc_url=chain.rpc_url,
        seed_file=seed_file,
        commission_address=DEV_COMMISSION,
        public_url=url,
        database_url=f"sqlite:///{database}",
        rate_limit_address=OFF,
        rate_limit_key=OFF,
    )


async def _give_gas(chain: Devnet, settings: Settings) -> None:
    """A fork of another network than `devnet`'s gets its gas from us."""
    rpc = Rpc(chain.rpc_url)
    wallets = Wallets(settings.mnemonic)
    await give_gas(rpc, [wallets.relayer(index).address for index in range(settings.relayers)])
    await rpc.close()


def _ready(chain: Devnet, url: str = "", intake: str = "", api_key: str = "") -> Ready:
    buyers = [Buyer(account.address, "0x" + bytes(account.key).hex()) for account in chain.buyers]
    return Ready(chain.rpc_url, buyers, url, intake, DEV_COMMISSION if url else "", api_key)


async def dev(options: DevnetOptions, *, port: int, database: Path | None, as_json: bool) -> None:
    """Until cancelled."""
    async with open_dev(options, port=port, database=database) as (ready, server):
        _print(ready, server.settings.preset, as_json)
        await asyncio.Event().wait()


async def chain_only(options: DevnetOptions, *, as_json: bool) -> None:
    """Until cancelled."""
    async with devnet(options) as chain:
        _print(_ready(chain), chain.preset, as_json)
        await asyncio.Event().wait()


def _print(ready: Ready, preset: NetworkPreset, as_json: bool) -> None:
    if as_json:
        print(json.dumps({name: value for name, value in to_builtins(ready).items() if value}), flush=True)
        return
    console.print(f"[bold]chain[/]   {ready.rpc_url}")
    console.print(f"[bold]buyer[/]   {ready.buyers[0].address}, with 1,000,000 USDC")
    console.print(f"[bold]key[/]     {ready.buyers[0].key} [dim](Foundry's first account: for development only)[/]")
    if ready.url:
        console.print(f"[bold]intake[/]  {ready.intake}")
        console.print(f"[bold]api key[/] {ready.api_key} [dim](new at every start)[/]")
        console.print("\nA price, with curl:\n")
        console.print(f"  {_curl(ready.url, preset)}", markup=False)
        console.print("\nA gig, with the buyer above:\n")
        console.print(f"  BUYER_KEY={ready.buyers[0].key} x402-gig buy {ready.url} --type like \\", markup=False)
        terms = f"--chain {preset.v1_name} --url {EXAMPLE_POST} --amount 10 --max-price 11"
        console.print(f"    {terms}\n", markup=False)
    print(f"ready {ready.url or ready.rpc_url}", flush=True)


def _curl(url: str, preset: NetworkPreset) -> str:
    terms = {
        "chain": preset.v1_name,
        "token_address": preset.usdc,
        "amount": 10,
        "start_time": "2025-10-01T15:00:00Z",
        "duration": "1day",
        "gig_type": "like",
        "url": EXAMPLE_POST,
    }
    return f"curl -i {url}/api/gigs/create/x402 -d '{json.dumps(terms)}'"
