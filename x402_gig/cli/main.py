"""The command line. Each command imports what it needs when it runs, so that `--help` is quick."""

import contextlib
import logging
import os
import signal
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from msgspec.structs import replace

from x402_gig.buyer.terms import TermFlags, takes_terms
from x402_gig.cli import gigs, keys, ledger, settings
from x402_gig.cli.access import Json
from x402_gig.cli.terminal import complain, err, print_json, run_to_end
from x402_gig.errors import OutcomeUnknown, Refused

if TYPE_CHECKING:
    from eth_account.signers.local import LocalAccount

    from x402_gig.buyer.client import Bought, Buyer, Payment

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

AnvilPort = Annotated[int, typer.Option(help="Port of Anvil; a free one when it is taken.")]
BlockTime = Annotated[float | None, typer.Option(help="Seconds between blocks; without it each transaction gets one.")]
ForkUrl = Annotated[str | None, typer.Option(help="Fork this chain (Base or Base Sepolia) with its real contracts.")]
ServerUrl = Annotated[str, typer.Argument(metavar="URL", help="The server, such as http://127.0.0.1:4021.")]
MaxPrice = Annotated[str, typer.Option(metavar="USDC", help="Pay at most this, commission included.")]
Yes = Annotated[
    bool, typer.Option("--yes", help="Sign for a server on this machine, too, with a key that is worth something.")
]
KeyEnv = Annotated[str, typer.Option(metavar="NAME", help="The environment variable with the payer's private key.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(metadata.version("x402-gig"))
        raise typer.Exit


Version = Annotated[bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)]


@app.callback()
def main(version: Version = False) -> None:
    """Sell gigs over x402: terms in, a 402 with the price in USDC, a signed payment, and the gig is live."""


@app.command(epilog="Example: x402-gig dev --port 4021 --block-time 2")
def dev(
    port: Annotated[int, typer.Option(help="Port of the server; a free one when it is taken.")] = 4021,
    anvil_port: AnvilPort = 8545,
    block_time: BlockTime = None,
    fork_url: ForkUrl = None,
    database: Annotated[
        Path | None, typer.Option(help="Keep the ledger in this SQLite file, and the wallets' seed beside it.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Anvil and the server together, in the foreground, without any configuration."""
    from x402_gig.devnet import run
    from x402_gig.devnet.anvil import DevnetOptions

    options = DevnetOptions(port=anvil_port, block_time_s=block_time, fork_url=fork_url)
    # One line for each gig that is bought.
    logging.getLogger("x402_gig.settlement.settling").setLevel(logging.INFO)
    run_to_end(run.dev(options, port=port, database=database, as_json=as_json), logging.WARNING)


@app.command(epilog="Example: x402-gig devnet --anvil-port 8545")
def devnet(
    anvil_port: AnvilPort = 8545,
    anvil_host: Annotated[str, typer.Option(help="Where Anvil listens; 0.0.0.0 in a container.")] = "127.0.0.1",
    block_time: BlockTime = None,
    fork_url: ForkUrl = None,
    as_json: Json = False,
) -> None:
    """Only the chain of `dev`, so that a server can be stopped and started beside it."""
    from x402_gig.devnet import run
    from x402_gig.devnet.anvil import DevnetOptions

    options = DevnetOptions(port=anvil_port, host=anvil_host, block_time_s=block_time, fork_url=fork_url)
    run_to_end(run.chain_only(options, as_json=as_json), logging.WARNING)


@app.command(epilog="Example: X402_GIG_NETWORK=base X402_GIG_RPC_URL=https://… x402-gig serve")
def serve() -> None:
    """The server in production. Settings come from the environment and `.env`; see docs/settings.md for the list."""
    from x402_gig.cli.serve import serve

    serve()


@app.command(epilog="Example: x402-gig demo --json")
def demo(as_json: Json = False) -> None:
    """Watch it work: a chain, a server, ten gigs bought by real clients. Exit code 0 when every balance adds up."""
    from x402_gig.cli import demo as shown

    adds_up = run_to_end(shown.demo(as_json=as_json), logging.WARNING)
    if adds_up is None:
        complain("Interrupted.")
    raise typer.Exit({True: 0, False: 1, None: 130}[adds_up])


BUY_EXAMPLE = (
    "Example: BUYER_KEY=0x… x402-gig buy http://127.0.0.1:4021 --type like "
    "--url https://farcaster.xyz/dwr/0x1a2b3c4d --amount 10 --max-price 11"
)
SIGN_EXAMPLE = (
    'Example: header="$(BUYER_KEY=0x… x402-gig sign http://127.0.0.1:4021 --terms gig.json --max-price 11)" '
    '&& curl -i --max-time 90 http://127.0.0.1:4021/api/gigs/create/x402 -H "$header" --data-binary @gig.json'
)


@app.command(epilog=BUY_EXAMPLE)
@takes_terms
def buy(
    server: ServerUrl,
    max_price: MaxPrice,
    flags: TermFlags,
    key_env: KeyEnv = "BUYER_KEY",
    wait_funded: Annotated[bool, typer.Option(help="Wait until the reward is in the gig's wallet.")] = True,
    deadline: Annotated[int, typer.Option(min=1, help="Seconds to go on asking for an outcome.")] = 300,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Buy a gig. Exit code 0: bought; 1: refused, nothing charged; 2: wrong usage; 3: outcome unknown.

    The terms come from --terms or from the flags under "Terms".
    """
    from x402_gig.gigs.pricing import to_tokens

    body = flags.body()
    with _buyer(server, key_env, max_price, yes=yes, as_json=as_json) as buyer:
        payment = _sign(buyer, body)
        with err().status("Settling…"):
            bought = _pay(buyer, payment, deadline, as_json)
        _step("settled", (bought.receipt or {}).get("transaction", ""))
        if not as_json:
            _print_gig(bought.gig)
        if wait_funded:
            bought = _with_funding(buyer, bought)
    if as_json:
        print_json({"gig": bought.gig, "payment": bought.receipt, "price": to_tokens(payment.price_units)})


@app.command(epilog=SIGN_EXAMPLE)
@takes_terms
def sign(
    server: ServerUrl,
    max_price: MaxPrice,
    flags: TermFlags,
    key_env: KeyEnv = "BUYER_KEY",
    v1: Annotated[bool, typer.Option("--v1", help="Sign for x402 version 1, as an X-PAYMENT header.")] = False,
    yes: Yes = False,
) -> None:
    """Sign the payment of a gig and send nothing: the header goes to stdout, what it is good for to stderr.

    The header pays for the very terms that were quoted, so keep them in a file: --terms.
    """
    body = flags.body()
    with _buyer(server, key_env, max_price, yes=yes) as buyer:
        payment = _sign(buyer, body, version=1 if v1 else 2)
    _step("body", f"post exactly this, to {payment.url}:" if flags.terms is None else f"post {flags.terms} as it is")
    if flags.terms is None:
        err().print(body.decode(), markup=False, soft_wrap=True)
    print(payment.header)


@contextlib.contextmanager
def _buyer(server: str, key_env: str, max_price: str, *, yes: bool = False, as_json: bool = False) -> "Iterator[Buyer]":
    """Someone to buy with; a refusal inside ends the command with exit code 1 and everything that is wrong."""
    import httpx

    from x402_gig.buyer.client import Buyer

    account, limit_units = _account(key_env), _usdc_units(max_price)
    try:
        if not yes:
            _check_worth(server, key_env, account)
        with httpx.Client() as http:
            yield Buyer(http, server, account, limit_units, notify=lambda why: _step("waiting", why))
    except Refused as exc:
        complain(f"Nothing was charged. {exc.detail}", exc.problems)
        if as_json:
            print_json({"error": exc.detail, "problems": exc.problems, "charged": False})
        raise typer.Exit(1) from None


def _check_worth(server: str, key_env: str, account: "LocalAccount") -> None:
    """Raises Refused for a key that may be worth something at a server that may be a devnet's."""
    from x402_gig.buyer.client import is_on_this_machine
    from x402_gig.devnet.anvil import buyers

    if is_on_this_machine(server) and account.address not in {buyer.address for buyer in buyers()}:
        raise Refused(
            f"{server} is on this machine, and {key_env} holds the key of none of a devnet's test accounts. A devnet "
            "has the id and the USDC of Base, so Base would honour what is signed for it: use the key of a test "
            "account, or sign all the same with --yes"
        )


def _account(key_env: str) -> "LocalAccount":
    from eth_account import Account

    key = os.environ.get(key_env)
    if not key:
        raise typer.BadParameter(f"the environment variable {key_env} is not set: it holds the payer's private key")
    try:
        account: LocalAccount = Account.from_key(key.strip())
    except Exception:  # noqa: BLE001 - whatever the library says repeats the key
        raise typer.BadParameter(f"{key_env} does not hold a private key (0x and 64 hex digits)") from None
    return account


def _usdc_units(usdc: str) -> int:
    from x402_gig.gigs.pricing import USDC_DECIMALS, to_units

    try:
        return to_units(Decimal(usdc), USDC_DECIMALS)
    except (ArithmeticError, ValueError):
        raise typer.BadParameter("--max-price is a number of USDC, such as 11 or 11.5") from None


def _sign(buyer: "Buyer", body: bytes, version: int = 2) -> "Payment":
    from x402_gig.gigs.pricing import to_tokens

    with err().status("Asking for the price…"):
        quote = buyer.quote(body, version=version)
    _step("price", f"{to_tokens(quote.price_units)} USDC on {quote.offer.network}, to {quote.offer.pay_to}")
    payment = buyer.sign(quote)
    _step("signed", f"by {payment.payer}, valid until {payment.valid_until:%Y-%m-%d %H:%M:%S} UTC")
    return payment


def _pay(buyer: "Buyer", payment: "Payment", deadline_s: int, as_json: bool) -> "Bought":
    # Whoever is told to stop here has a payment on its way, and must say so first.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return buyer.pay(payment, deadline_s)
    except (OutcomeUnknown, KeyboardInterrupt) as exc:
        why = exc.detail if isinstance(exc, OutcomeUnknown) else "interrupted"
        complain(f"The outcome is not known: {why}.")
        err().print(
            "The gig may be paid. Repeating the same payment tells, and never charges twice. Sign anew only when it"
        )
        err().print(f"is refused, which it is at the latest after {payment.valid_until:%H:%M:%S} UTC:\n")
        err().print(payment.curl, markup=False, soft_wrap=True)
        if as_json:
            print_json({"error": why, "charged": None, "header": payment.header})
        raise typer.Exit(3) from None


def _with_funding(buyer: "Buyer", bought: "Bought") -> "Bought":
    funding = None
    # The gig is bought: stopping now ends the waiting and nothing else.
    with err().status("Funding the gig's wallet…"), contextlib.suppress(KeyboardInterrupt):
        funding = buyer.funding(bought.gig["gig_id"])
    if funding is None:
        _step("funding", "not on chain yet; the gig is live all the same")
        return bought
    _step("funded", funding["reward_transaction"])
    return replace(bought, gig=bought.gig | {"funding": funding})


def _print_gig(gig: dict[str, Any]) -> None:
    print(f"Gig {gig['gig_id']} is {gig['status']}, from {gig['start_time']} to {gig['end_time']}")
    print(f"  paid    {gig['total_amount']} USDC: {gig['gig_balance']} reward, {gig['platform_fee']} commission")
    print(f"  wallet  {gig['gig_wallet_address']}", flush=True)


def _step(name: str, text: str) -> None:
    from rich.markup import escape

    err().print(f"[green]{name:<8}[/] {escape(text)}", soft_wrap=True)


ledger.add_to(app)
app.add_typer(keys.keys, name="keys")
app.add_typer(gigs.gigs, name="gigs")
app.add_typer(settings.settings, name="settings")
