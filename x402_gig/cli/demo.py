"""`x402-gig demo`: a chain, a server, ten gigs bought by real clients, and every balance checked on chain.

The balances are read by web3, and by nothing that the server uses itself.
"""

import asyncio
import json
import shutil
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount
from msgspec import Struct, to_builtins
from rich.console import Console
from web3 import AsyncHTTPProvider, AsyncWeb3
from x402 import x402Client
from x402.http.x402_http_client import x402HTTPClient
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

from x402_gig.buyer.client import ANSWER_TIMEOUT_S, CREATE
from x402_gig.devnet.anvil import DevnetOptions, buyers
from x402_gig.devnet.run import Ready, open_dev
from x402_gig.errors import GigError
from x402_gig.gigs.pricing import to_tokens
from x402_gig.settings import NETWORKS

FUNDING_TIMEOUT_S = 30
TOKEN = "0x4200000000000000000000000000000000000006"  # noqa: S105 - WETH on Base, as an example

BALANCE_OF = [
    {
        "type": "function",
        "name": "balanceOf",
        "stateMutability": "view",
        "inputs": [{"name": "account", "type": "address"}],
        "outputs": [{"name": "", "type": "uint256"}],
    }
]
CAST = "https://farcaster.xyz/dwr/0x1a2b3c4d"
TERMS: Mapping[str, Mapping[str, Any]] = {
    "mention": {"keyword": "usdc"},
    "like": {"url": CAST},
    "recast": {"url": CAST},
    "boost": {"platform": "x", "url": "https://x.com/base/status/1234567890"},
    "custom_bounty": {"how_to_earn": "Draw a cat that pays with USDC"},
    "follow": {"url": "https://farcaster.xyz/dwr"},
    "hold_erc20": {"token_contract": TOKEN, "token_amount_needed": "0.5"},
    "buy_erc20": {"token_contract": TOKEN, "token_amount_needed": "0.1"},
}


class Balances(Struct, frozen=True):
    """In base units, read from the token."""

    payer: int
    gig_wallet: int
    commission: int


class Bought(Struct, frozen=True):
    """One purchase, as `--json` prints it. Amounts are base units."""

    gig_type: str
    client: str
    price: int
    signature: str
    gig_id: int
    gig_wallet: str
    deposit_transaction: str
    reward_transaction: str
    before: Balances
    after: Balances
    milliseconds: int

    @property
    def adds_up(self) -> bool:
        reward = self.after.gig_wallet - self.before.gig_wallet
        commission = self.after.commission - self.before.commission
        paid = self.before.payer - self.after.payer
        return paid == self.price == reward + commission and commission * 10 == reward


@dataclass
class Demo:
    """The shop that is open, a buyer, and where progress is shown."""

    ready: Ready
    web3: AsyncWeb3[AsyncHTTPProvider]
    http: httpx.AsyncClient
    console: Console
    account: LocalAccount = field(default_factory=lambda: buyers()[0])

    def say(self, what: str, text: str) -> None:
        self.console.print(f"  [cyan]{what:<9}[/] {text}")

    async def buy(self, gig_type: str, client: str, pay: "Pay") -> Bought:
        """One gig, from the terms to the funded wallet."""
        self.console.print(f"\n[bold]{gig_type}[/] [dim]{client}[/]")
        started = time.perf_counter()
        terms = self._terms(gig_type)
        answer = await self.http.post(CREATE, json=terms)
        quote = x402HTTPClient(self._client()).get_payment_required_response(answer.headers.get, answer.json())
        price = int(quote.accepts[0].get_amount())
        self.say("402", f"price {to_tokens(price)} USDC to {quote.accepts[0].pay_to}")
        start = await self.web3.eth.block_number
        signature, gig = await pay(self, terms, answer)
        milliseconds = round((time.perf_counter() - started) * 1000)
        self.say("200", f"gig {gig['gig_id']} is {gig['status']}, paid in {gig['payment']['transaction']}")
        funding = await self._funded(gig["gig_id"])
        wallet = gig["gig_wallet_address"]
        before, after = await self._balances(wallet, start), await self._balances(wallet)
        self.say("funded", f"{wallet} in {funding['reward_transaction']}")
        for name in ("payer", "gig_wallet", "commission"):
            was, now = to_tokens(getattr(before, name)), to_tokens(getattr(after, name))
            self.say("", f"[dim]{name.replace('_', ' '):<11}{was:>12} → {now} USDC[/]")
        return Bought(
            gig_type=gig_type,
            client=client,
            price=price,
            signature=signature,
            gig_id=gig["gig_id"],
            gig_wallet=wallet,
            deposit_transaction=funding["deposit_transaction"],
            reward_transaction=funding["reward_transaction"],
            before=before,
            after=after,
            milliseconds=milliseconds,
        )

    def _terms(self, gig_type: str) -> dict[str, Any]:
        return {
            "chain": "base",
            "token_address": NETWORKS["devnet"].usdc,
            "amount": 10,
            "start_time": "2025-10-01T15:00:00Z",
            "duration": "1day",
            "gig_type": gig_type,
            **TERMS[gig_type],
        }

    def _client(self) -> x402Client:
        client = register_exact_evm_client(x402Client(), EthAccountSigner(self.account))
        # The SDK refuses more than a dollar unless it is told otherwise.
        return client.set_spend_controls({"max_amount_per_payment": "$11"})

    async def sign(self, quote: Any) -> tuple[str, dict[str, str]]:
        """The signature, and the header that carries the payment."""
        client = self._client()
        payload = await client.create_payment_payload(quote)
        header = x402HTTPClient(client).encode_payment_signature_header(payload)
        signature = str(payload.payload["signature"])
        self.say("signed", f"{signature[:18]}…{signature[-8:]}")
        return signature, header

    async def _funded(self, gig_id: int) -> dict[str, Any]:
        """The gig's funding, once reward and commission are on chain."""
        async with asyncio.timeout(FUNDING_TIMEOUT_S):
            while True:
                answer = await self.http.get(f"/api/gigs/{gig_id}")
                funding: dict[str, Any] = answer.json()["data"]["funding"]
                if funding["reward_transaction"] and funding["commission_transaction"]:
                    return funding
                await asyncio.sleep(0.05)

    async def _balances(self, gig_wallet: str, block: int | None = None) -> Balances:
        accounts = self.account.address, gig_wallet, self.ready.commission
        return Balances(*[await self.balance(account, block) for account in accounts])

    async def balance(self, account: str, block: int | None = None) -> int:
        """USDC in base units, in this block or the newest."""
        usdc = self.web3.eth.contract(self.web3.to_checksum_address(NETWORKS["devnet"].usdc), abi=BALANCE_OF)
        asked = usdc.functions.balanceOf(self.web3.to_checksum_address(account))
        return int(await asked.call(block_identifier="latest" if block is None else block))


Pay = Callable[[Demo, dict[str, Any], httpx.Response], Awaitable[tuple[str, dict[str, Any]]]]


async def _pay_v2(demo: Demo, terms: dict[str, Any], quoted: httpx.Response) -> tuple[str, dict[str, Any]]:
    """The official SDK, version 2: the quote is in the 402's header."""
    quote = x402HTTPClient(x402Client()).get_payment_required_response(quoted.headers.get, None)
    signature, header = await demo.sign(quote)
    return signature, _paid(await demo.http.post(CREATE, json=terms, headers=header))


async def _pay_v1(demo: Demo, terms: dict[str, Any], quoted: httpx.Response) -> tuple[str, dict[str, Any]]:
    """The same in version 1: the quote is in the 402's body."""
    quote = x402HTTPClient(x402Client()).get_payment_required_response(lambda _: None, quoted.json())
    signature, header = await demo.sign(quote)
    return signature, _paid(await demo.http.post(CREATE, json=terms, headers=header))


async def _pay_by_hand(demo: Demo, terms: dict[str, Any], quoted: httpx.Response) -> tuple[str, dict[str, Any]]:
    """Print the curl command and run it; where there is no curl, httpx sends the same header."""
    quote = x402HTTPClient(x402Client()).get_payment_required_response(quoted.headers.get, None)
    signature, header = await demo.sign(quote)
    [(name, value)] = header.items()
    body, url = json.dumps(terms), demo.ready.url + CREATE
    demo.console.print(f"\ncurl {url} -d '{body}' -H '{name}: {value}'\n", style="dim", markup=False)
    if not shutil.which("curl"):
        return signature, _paid(await demo.http.post(CREATE, content=body, headers=header))
    command = ["curl", "--silent", "--show-error", "--max-time", "90", url, "-d", body, "-H", f"{name}: {value}"]
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    return signature, _gig(output)


def _paid(answer: httpx.Response) -> dict[str, Any]:
    return _gig(answer.content)


def _gig(body: bytes) -> dict[str, Any]:
    gig: dict[str, Any] = json.loads(body)
    if "gig_id" not in gig:
        raise GigError(f"The purchase failed: {gig}")
    return gig


async def demo(*, as_json: bool) -> bool:
    """Buy one gig of each type and two more by other means; True when every balance adds up."""
    console = Console(stderr=as_json, highlight=False, soft_wrap=True)
    started = time.perf_counter()
    console.print("Starting Anvil and the server …")
    async with open_dev(DevnetOptions(port=0)) as (ready, _):
        console.print(f"chain {ready.rpc_url}, server {ready.url}, payer {ready.buyers[0].address}")
        async with httpx.AsyncClient(base_url=ready.url, timeout=ANSWER_TIMEOUT_S) as http:
            web3 = AsyncWeb3(AsyncHTTPProvider(ready.rpc_url))
            shop = Demo(ready, web3, http, console)
            bought = [await shop.buy(gig_type, "x402 SDK, version 2", _pay_v2) for gig_type in TERMS]
            bought.append(await shop.buy("like", "x402 SDK, version 1 header", _pay_v1))
            bought.append(await shop.buy("mention", "a printed header, as with curl", _pay_by_hand))
            intake_left = await shop.balance(ready.intake)
        await web3.provider.disconnect()
    ok = all(purchase.adds_up for purchase in bought) and intake_left == 0
    seconds = round(time.perf_counter() - started, 1)
    _report(console, bought, intake_left, ok, seconds)
    if as_json:
        document = {"ok": ok, "seconds": seconds, "intake_left": intake_left}
        print(json.dumps(document | {"purchases": to_builtins(bought)}, indent=2))
    return ok


def _report(console: Console, bought: list[Bought], intake_left: int, ok: bool, seconds: object) -> None:
    paid = sum(purchase.price for purchase in bought)
    rewards = sum(purchase.after.gig_wallet for purchase in bought)
    commission = bought[-1].after.commission - bought[0].before.commission
    console.print(
        f"\n[bold]{len(bought)} gigs[/]: paid {to_tokens(paid)} = rewards {to_tokens(rewards)} + commission "
        f"{to_tokens(commission)} + left in the intake {to_tokens(intake_left)} USDC, in {seconds} s"
    )
    verdict = "[bold green]Every balance adds up.[/]" if ok else "[bold red]The balances do not add up.[/]"
    console.print(verdict)
