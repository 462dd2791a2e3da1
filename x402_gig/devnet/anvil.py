"""Anvil as a child process, and a chain on it that looks like Base to this server."""

import asyncio
import json
import platform
import shutil
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from eth_account import Account
from eth_account.signers.local import LocalAccount
from msgspec import Struct

from x402_gig.errors import CannotStart, ChainUnavailable
from x402_gig.evm.rpc import Rpc
from x402_gig.settings import NETWORKS, NetworkPreset

FOUNDRY_MNEMONIC = "test test test test test test test test test test test junk"
BUYERS = 10
BUYER_USDC = 1_000_000 * 10**6
START_TIMEOUT_S = 60
# Nearer to Base's than Anvil's default of 30 million.
BLOCK_GAS_LIMIT = 120_000_000


class Devnet(Struct, frozen=True):
    """A running chain. `buyers` hold a million USDC each."""

    rpc_url: str
    preset: NetworkPreset
    buyers: list[LocalAccount]


class DevnetOptions(Struct, frozen=True):
    """How to start it. `port` 0 takes a free one; a taken port moves to a free one as well."""

    port: int = 8545
    host: str = "127.0.0.1"
    block_time_s: float | None = None
    fork_url: str | None = None
    extra: Sequence[str] = ()


def buyers() -> list[LocalAccount]:
    """The accounts of Foundry's default mnemonic, which everybody knows."""
    Account.enable_unaudited_hdwallet_features()
    path = "m/44'/60'/0'/0/{}"
    return [Account.from_mnemonic(FOUNDRY_MNEMONIC, account_path=path.format(i)) for i in range(BUYERS)]


def find_anvil() -> str:
    """Anvil on PATH, or the program that Foundry's npm package brought. Raises CannotStart."""
    if on_path := shutil.which("anvil"):
        return on_path
    system = {"Darwin": "darwin", "Windows": "win32"}.get(platform.system(), "linux")
    machine = "arm64" if platform.machine().lower() in ("arm64", "aarch64") else "amd64"
    # The native program and not npm's wrapper: the wrapper would leave it behind when it is stopped.
    name = Path("node_modules/@foundry-rs") / f"anvil-{system}-{machine}" / "bin"
    for folder in (Path.cwd(), *Path.cwd().parents, *Path(__file__).parents):
        for program in (folder / name).glob("anvil*"):
            return str(program)
    raise CannotStart(["Anvil is missing. Get it with: npm install @foundry-rs/anvil (or see https://getfoundry.sh)"])


def free_port(wanted: int) -> int:
    """`wanted`, or any free port of loopback when it is taken or 0."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise CannotStart(["No free port on 127.0.0.1"])


@asynccontextmanager
async def devnet(options: DevnetOptions) -> AsyncIterator[Devnet]:
    """Start Anvil, prepare the chain, and stop it at the end. Raises CannotStart."""
    port = free_port(options.port)
    url = f"http://127.0.0.1:{port}"
    # A session of its own: Ctrl-C in the terminal reaches us, and we stop Anvil when nothing needs it any more.
    process = await asyncio.create_subprocess_exec(
        *_command(options, port), stdout=DEVNULL, stderr=PIPE, start_new_session=True
    )
    rpc = Rpc(url, timeout_s=30)
    try:
        await _until_ready(process, rpc)
        yield Devnet(url, await _prepare(rpc, forked=options.fork_url is not None), buyers())
    finally:
        await rpc.close()
        await _stop(process)


def _command(options: DevnetOptions, port: int) -> list[str]:
    command = [find_anvil(), "--host", options.host, "--port", str(port), "--enable-tx-gas-limit", "--silent"]
    if options.fork_url is None:
        command += ["--chain-id", str(NETWORKS["devnet"].chain_id), "--gas-limit", str(BLOCK_GAS_LIMIT)]
    else:
        command += ["--fork-url", options.fork_url]
    if options.block_time_s:
        command += ["--block-time", str(options.block_time_s)]
    return [*command, *options.extra]


async def _until_ready(process: Process, rpc: Rpc) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while process.returncode is None:
            try:
                await rpc.call("eth_chainId")
            except ChainUnavailable:
                await asyncio.sleep(0.05)
            else:
                return
    said = (await process.stderr.read()).decode(errors="replace").strip() if process.stderr else ""
    raise CannotStart([f"Anvil stopped at once: {said[:500] or 'it said nothing'}"])


async def _stop(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(10):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _prepare(rpc: Rpc, *, forked: bool) -> NetworkPreset:
    """The token at its address and USDC for the buyers."""
    chain_id = int(await rpc.call("eth_chainId"), 16)
    preset = next((preset for preset in NETWORKS.values() if preset.chain_id == chain_id), None)
    if preset is None:
        raise CannotStart(
            [f"--fork-url leads to chain {chain_id}: only Base (8453) and Base Sepolia (84532) are served"]
        )
    if not forked:
        await _install_usdc(rpc, preset.usdc)
    for buyer in buyers():
        await rpc.call("anvil_dealERC20", buyer.address, preset.usdc, hex(BUYER_USDC))
    return preset


async def _install_usdc(rpc: Rpc, address: str) -> None:
    """Deploy the local USDC and copy its code to the canonical address: its domain follows the address."""
    artifact = json.loads((files("x402_gig.devnet") / "LocalUSDC.json").read_text())
    deployer = buyers()[0].address
    transaction = {"from": deployer, "data": artifact["bytecode"], "gas": hex(10_000_000)}
    sent = await rpc.call("eth_sendTransaction", transaction)
    await rpc.call("evm_mine")
    receipt = await rpc.call("eth_getTransactionReceipt", sent)
    code = await rpc.call("eth_getCode", receipt["contractAddress"], "latest")
    await rpc.call("anvil_setCode", address, code)
