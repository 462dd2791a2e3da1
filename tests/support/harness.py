"""A real chain, a real server, and buyers that sign by themselves: no code of the server's is used to pay it."""

import asyncio
import base64
import fcntl
import hashlib
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.support import ledgers
from x402_gig.devnet import anvil

Account.enable_unaudited_hdwallet_features()

ROOT = Path(__file__).resolve().parents[2]
USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
CREATE = "/api/gigs/create/x402"
START_TIMEOUT_S = 60
Json = dict[str, Any]


def gig_terms(**changes: Any) -> Json:
    """A valid create body; a change to None leaves the field out."""
    terms = {
        "chain": "base",
        "token_address": USDC,
        "amount": 10,
        "start_time": "2025-10-01T15:00:00Z",
        "duration": "1day",
        "gig_type": "like",
        "url": "https://farcaster.xyz/dwr/0x1a2b3c4d",
        # Makes each order one of its own: the same payer and terms after an abandoned payment are the same order.
        "how_to_earn": f"Like it ({secrets.token_hex(8)})",
    } | changes
    return {name: value for name, value in terms.items() if value is not None}


def encode(document: Any) -> str:
    return base64.b64encode(json.dumps(document).encode()).decode()


def decode(header: str) -> Any:
    return json.loads(base64.b64decode(header))


@dataclass
class Chain:
    """An Anvil, asked directly."""

    rpc_url: str
    http: httpx.Client = field(default_factory=lambda: httpx.Client(timeout=30))

    def rpc(self, method: str, *params: Any) -> Any:
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = self.http.post(self.rpc_url, json=body).json()
        assert "error" not in answer, answer
        return answer["result"]

    def usdc(self, address: str) -> int:
        """Balance in base units."""
        data = "0x70a08231" + address[2:].lower().rjust(64, "0")
        return int(self.rpc("eth_call", {"to": USDC, "data": data}, "latest"), 16)

    def give_usdc(self, address: str, units: int) -> None:
        self.rpc("anvil_dealERC20", address, USDC, hex(units))

    def buyer(self, units: int = 1_000_000_000) -> LocalAccount:
        """A fresh account that holds so many base units of USDC."""
        account: LocalAccount = Account.create()
        self.give_usdc(account.address, units)
        return account

    def mine(self) -> None:
        """Make blocks again."""
        self.rpc("evm_setAutomine", True)
        self.rpc("evm_mine")

    def send(self, sender: str, to: str | None, data: str) -> Json:
        """A transaction from an impersonated account; its receipt."""
        self.rpc("anvil_setBalance", sender, hex(10**20))
        self.rpc("anvil_impersonateAccount", sender)
        transaction = {"from": sender, "data": data, "gas": hex(3_000_000)} | ({"to": to} if to else {})
        sent = self.rpc("eth_sendTransaction", transaction)
        return dict(until(lambda: self.rpc("eth_getTransactionReceipt", sent)))


@cache
def _contracts() -> Path:
    """The folder of the compiled test contracts. All who build share it, so one builds at a time."""
    with (ROOT / "foundry.toml").open() as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        subprocess.run([ROOT / "scripts/forge", "build", "--quiet"], cwd=ROOT, check=True)
    return ROOT / "out"


def bytecode(name: str, source: str = "Wallets") -> str:
    """Of one of the contracts of contracts/test: what deploys it, but for constructor arguments."""
    return str(json.loads((_contracts() / f"{source}.sol/{name}.json").read_text())["bytecode"]["object"])


class NotTrue(AssertionError):
    """Waited for in vain."""


def until(check: Callable[[], Any], timeout_s: float = 30, pause_s: float = 0.02) -> Any:
    """Ask until the answer is true; fails after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while not (answer := check()):
        if time.monotonic() > deadline:
            raise NotTrue(f"not true after {timeout_s} s: {check}")
        time.sleep(pause_s)
    return answer


@dataclass
class Dev(Chain):
    """`x402-gig dev`, as its `--json` line describes it."""

    url: str = ""
    intake: str = ""
    commission: str = ""
    api_key: str = ""
    buyers: list[Json] = field(default_factory=list)

    def post(self, body: Any, headers: Json | None = None, path: str = CREATE) -> httpx.Response:
        content = body if isinstance(body, bytes | str) else json.dumps(body)
        return self.http.post(self.url + path, content=content, headers=headers, timeout=90)

    def quote(self, terms: Json) -> Json:
        """The version 2 payment requirements of a 402."""
        answer = self.post(terms)
        assert answer.status_code == 402, answer.text
        return dict(decode(answer.headers["PAYMENT-REQUIRED"])["accepts"][0])

    def buy(self, account: LocalAccount, terms: Json | None = None) -> httpx.Response:
        terms = terms or gig_terms()
        return self.post(terms, payment_header(account, self.quote(terms)))

    def gig(self, gig_id: int) -> Json:
        answer = self.http.get(f"{self.url}/api/gigs/{gig_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["data"])

    def funded(self, gig_id: int) -> Json:
        """The gig, once its reward and its commission are on chain."""
        # Of many gigs the commissions may leave together before the last of their rewards.
        moved = ("reward_transaction", "commission_transaction")
        return dict(until(lambda: all((gig := self.gig(gig_id))["funding"][name] for name in moved) and gig))


def authorization(account: LocalAccount, requirements: Json, **changes: Any) -> Json:
    now = int(time.time())
    return {
        "from": account.address,
        "to": requirements["payTo"],
        "value": requirements["amount"],
        "validAfter": "0",
        "validBefore": str(now + 60),
        "nonce": "0x" + secrets.token_hex(32),
    } | changes


def sign(account: LocalAccount, requirements: Json, message: Json) -> str:
    """EIP-712 signature of an EIP-3009 authorization."""
    names = ("from", "to", "value", "validAfter", "validBefore", "nonce")
    types = ("address", "address", "uint256", "uint256", "uint256", "bytes32")
    signed = account.sign_typed_data(
        domain_data={
            **requirements["extra"],
            "chainId": int(requirements["network"].split(":")[1]),
            "verifyingContract": requirements["asset"],
        },
        message_types={
            "TransferWithAuthorization": [{"name": n, "type": t} for n, t in zip(names, types, strict=True)],
        },
        message_data={
            **message,
            **{name: int(message[name]) for name in ("value", "validAfter", "validBefore")},
            "nonce": bytes.fromhex(message["nonce"][2:]),
        },
    )
    return "0x" + bytes(signed.signature).hex()


def payload_v2(account: LocalAccount, requirements: Json, **changes: Any) -> Json:
    """A version 2 payment payload; `changes` are to the authorization, before it is signed."""
    message = authorization(account, requirements, **changes)
    return {
        "x402Version": 2,
        "accepted": requirements,
        "payload": {"signature": sign(account, requirements, message), "authorization": message},
    }


def calldata(payload: Json) -> str:
    """Of `transferWithAuthorization(…, uint8, bytes32, bytes32)`: executes a payment payload's authorization."""
    message, raw = payload["authorization"], payload["signature"][2:]
    words = [message["from"][2:], message["to"][2:]]
    words += [f"{int(message[name]):064x}" for name in ("value", "validAfter", "validBefore")]
    words += [message["nonce"][2:], raw[128:], raw[:64], raw[64:128]]
    return "0xe3ee160e" + "".join(word.lower().rjust(64, "0") for word in words)


def payment_header(account: LocalAccount, requirements: Json, **changes: Any) -> Json:
    return {"PAYMENT-SIGNATURE": encode(payload_v2(account, requirements, **changes))}


def payment_header_v1(payload: Json, network: str = "base") -> Json:
    """The same payment as a version 1 header."""
    v1 = {"x402Version": 1, "scheme": "exact", "network": network, "payload": payload["payload"]}
    return {"X-PAYMENT": encode(v1)}


def _first_line(process: "subprocess.Popen[str]", errors: Any) -> Json:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(START_TIMEOUT_S)
    line = process.stdout.readline() if ready else ""
    if not line:
        process.kill()
        errors.seek(0)
        raise AssertionError(f"{process.args!r} did not start: {errors.read()}")
    return dict(json.loads(line)) if line.startswith("{") else {"url": line.split()[-1]}


@contextmanager
def running(
    *arguments: str, env: dict[str, str] | None = None, cwd: Path | None = None
) -> Iterator[tuple["subprocess.Popen[str]", Json]]:
    """`x402-gig ARGUMENTS` and what its ready line says; stopped at the end, and it must stop cleanly."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "x402_gig", *arguments],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(env or {})},
            cwd=cwd,
        )
        try:
            yield process, _first_line(process, errors)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=30)
            errors.seek(0)
            sys.stderr.write(errors.read())


@contextmanager
def dev_server(*flags: str) -> Iterator[Dev]:
    """`x402-gig dev` on free ports."""
    with running("dev", "--json", "--port", "0", "--anvil-port", "0", *flags) as (_, ready):
        yield Dev(**ready)


@contextmanager
def devnet(*flags: str) -> Iterator[Chain]:
    """The chain of `x402-gig devnet` on a free port, without a process that imports it first; `flags` are Anvil's."""
    stack = AsyncExitStack()
    with asyncio.Runner() as runner:
        chain = runner.run(stack.enter_async_context(anvil.devnet(anvil.DevnetOptions(port=0, extra=flags))))
        try:
            yield Chain(chain.rpc_url)
        finally:
            runner.run(stack.aclose())


def serve_settings(chain: Chain, folder: Path, **changes: Any) -> dict[str, str]:
    """What `serve` needs, as environment variables: a shop of its own on `chain`; a change to None leaves one out."""
    seed = changes.get("seed", Account.create_with_mnemonic()[1])
    settings = {
        "network": "devnet",
        "rpc_url": chain.rpc_url,
        "seed": seed,
        # Who starts a ledger again must name the same one.
        "commission_address": Account.from_key(hashlib.sha256(str(seed).encode()).digest()).address,
        "public_url": "https://gigs.example",
        "port": 0,
        "rate_limit_address": "off",
        "rate_limit_key": "off",
    } | changes
    if "database_url" not in settings:
        settings["database_url"] = ledgers.new(folder)
    return {f"X402_GIG_{name.upper()}": str(value) for name, value in settings.items() if value is not None}


@contextmanager
def served(chain: Chain, **settings: Any) -> Iterator[Dev]:
    """`x402-gig serve` beside `chain`, in an empty folder so that no `.env` is read."""
    with (
        tempfile.TemporaryDirectory() as folder,
        running("serve", env=serve_settings(chain, Path(folder), **settings), cwd=Path(folder)) as (_, ready),
    ):
        yield Dev(chain.rpc_url, url=ready["url"])


def start(env: Json, folder: Path) -> "subprocess.CompletedProcess[str]":
    """`serve` that is expected to give up by itself."""
    return subprocess.run(
        [sys.executable, "-m", "x402_gig", "serve"],
        env=env, cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def refused(chain: Chain, folder: Path, **settings: Any) -> str:
    """What `serve` says when it does not start, on one line."""
    ended = start(serve_settings(chain, folder, **settings), folder)
    said = " ".join(ended.stderr.split())
    assert (ended.returncode, ended.stdout) == (1, ""), said
    assert "Traceback" not in said, said
    assert "Cannot start:" in said or "Error:" in said, said
    return said
