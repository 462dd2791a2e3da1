"""The operator's commands on the ledger: with the settings of `serve`, beside a running server."""

import time
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from x402_gig.cli.access import Json, parse_address, read_office, with_office, write_office
from x402_gig.cli.terminal import complain, err, print_json
from x402_gig.errors import Refused

if TYPE_CHECKING:
    from x402_gig.audit.audit import Report
    from x402_gig.ledger.engine import Connection
    from x402_gig.ledger.payment_queries import Story
    from x402_gig.operator.next_step import Circumstances
    from x402_gig.operator.opening import Office

HASH_CHARS = 66

payments = typer.Typer(no_args_is_help=True, help="Payments in the ledger: list them, look at one, send one again.")
refunds = typer.Typer(no_args_is_help=True, help="Money in the intake that belongs to no order: list it, pay it back.")


def add_to(app: typer.Typer) -> None:
    app.command(epilog="Example: x402-gig audit --json > audit.json")(audit)
    app.add_typer(payments, name="payments")
    app.add_typer(refunds, name="refunds")


def audit(as_json: Json = False) -> None:
    """Rebuild from the chain's logs what came and went, and compare it with the ledger, row by row.

    Takes the settings of `serve`, writes nothing, and works beside a live server.

    Exit code 0: all adds up; 1: it lists what differs; 2: wrong usage or settings; 3: chain or ledger cannot be read.
    """
    from x402_gig.audit import report as shown

    report = with_office(_audit)
    if as_json:
        print_json(shown.as_json(report))
    else:
        print(shown.heading(report), shown.table(report.totals), shown.promise(report.totals), sep="\n", flush=True)
        if report.keyed_gigs:
            print(shown.keyed(report), flush=True)
    for note in report.notes:
        err().print(note, style="yellow", markup=False, soft_wrap=True)
    if not report.adds_up:
        complain(shown.verdict(report), map(str, report.differences))
        raise typer.Exit(1)
    err().print(shown.verdict(report), style="bold green")


async def _audit(office: "Office") -> "Report":
    from rich.progress import Progress

    from x402_gig.audit.audit import Audit
    from x402_gig.operator.opening import open_chain

    async with open_chain(office) as node:
        with Progress(console=err(), transient=True, disable=not err().is_terminal) as bar:
            reading = bar.add_task("Reading blocks", total=None)
            expect, progress = (lambda n: bar.update(reading, total=n)), (lambda n: bar.advance(reading, n))
            return await Audit(office, node, expect, progress).run()


class State(StrEnum):
    """Of a payment."""

    OPEN = "open"
    SETTLED = "settled"
    REJECTED = "rejected"


@payments.command("list", epilog="Example: x402-gig payments list --flagged")
def list_payments(
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    flagged: Annotated[
        bool, typer.Option("--flagged", help="Only those that were sent in vain and wait for a person.")
    ] = False,
    payer: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Only those of this payer.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 50,
    as_json: Json = False,
) -> None:
    """The newest payments: id, state, value, payer, time (UTC), and the transaction or the reason."""
    from x402_gig.ledger.payment_queries import newest
    from x402_gig.operator.payments import listed

    address = parse_address(payer)
    rows = read_office(lambda connection, _: newest(connection, limit, state=state, payer=address, flagged=flagged))
    if as_json:
        print_json(rows)
    elif rows:
        print(listed(rows))
    else:
        err().print("There is none.")


@payments.command("show", epilog="Example: x402-gig payments show 12")
def show_payment(
    what: Annotated[str, typer.Argument(metavar="ID|NONCE|TRANSACTION", help="Its number, or any hash of its life.")],
    as_json: Json = False,
) -> None:
    """All that is known of one payment, in the order in which it happened, and what comes next."""
    from x402_gig.operator import payments as shown

    word = _word(what)

    def read(connection: "Connection", office: "Office") -> "tuple[Story, Circumstances]":
        return _story(connection, word), _circumstances(connection, office)

    found, here = read_office(read)
    if as_json:
        print_json(shown.as_json(found, here))
    else:
        print(shown.told(found, here))


@payments.command("retry", epilog="Example: x402-gig payments retry 12")
def retry_payment(
    payment_id: Annotated[int, typer.Argument(metavar="ID", help="Its number.")],
) -> None:
    """Have an open payment sent once more, although it was sent in vain as often as we send one by ourselves."""
    from x402_gig.ledger.payments import send_again
    from x402_gig.operator.payments import final_outcome

    def write(connection: "Connection", office: "Office") -> "tuple[Story, Circumstances]":
        found = _story(connection, str(payment_id))
        if not send_again(connection, payment_id):
            raise Refused(final_outcome(found))
        return found, _circumstances(connection, office)

    found, here = write_office(write)
    err().print(f"Payment {payment_id} is to be sent again: the running server does it within seconds.")
    if here.now_s >= found.payment["valid_before"]:
        err().print(
            "By this machine's clock it has expired: then it is rejected, and nothing is charged.", style="yellow"
        )
    err().print(f"See what became of it: x402-gig payments show {payment_id}")


def _word(what: str) -> str:
    """A payment's number, or a hash in lower case."""
    word = what.lower()
    if not (word.isascii() and word.isdigit()) and not (word.startswith("0x") and len(word) == HASH_CHARS):
        raise typer.BadParameter(
            "a payment is named by its number, or by a nonce or transaction (0x and 64 hex digits)"
        )
    return word


def _story(connection: "Connection", word: str) -> "Story":
    """Of the one payment that is meant. Raises Refused."""
    from x402_gig.ledger import payment_queries

    ids = (
        payment_queries.with_number(connection, int(word))
        if word.isdigit()
        else payment_queries.with_hash(connection, word)
    )
    if not ids:
        raise Refused(f"There is no payment {word}; x402-gig refunds list shows money that came without one")
    if len(ids) > 1:
        raise Refused(f"That is {len(ids)} payments: choose one of {', '.join(map(str, ids))}")
    return payment_queries.story(connection, ids[0])


def _circumstances(connection: "Connection", office: "Office") -> "Circumstances":
    from x402_gig.ledger.chain_state import funding_halt
    from x402_gig.operator.next_step import Circumstances

    return Circumstances(int(time.time()), funding_halt(connection), office.settings.is_remote)


@refunds.command("list", epilog="Example: x402-gig refunds list")
def list_refunds(as_json: Json = False) -> None:
    """Deposits that belong to nobody and why they are still here, and the newest that were paid back."""
    from x402_gig.operator import refunds as shown

    found = read_office(lambda connection, office: shown.overview(connection, office, int(time.time())))
    if as_json:
        print_json(shown.as_json(found))
    else:
        print(shown.told(found))


@refunds.command("pay", epilog="Example: x402-gig refunds pay 7 --to 0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
def pay_refund(
    deposit_id: Annotated[int, typer.Argument(metavar="DEPOSIT_ID", help="As x402-gig refunds list names it.")],
    to: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Who gets it; only for plain transfers.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Pay a deposit back that belongs to nobody: once, and only when no reorganisation can take it away any more."""
    from x402_gig.operator.refunds import pay, payable
    from x402_gig.operator.words import usdc

    address = parse_address(to)
    deposit, payee = read_office(lambda connection, office: payable(connection, office, deposit_id, address))
    err().print(
        f"Deposit {deposit.id}: {usdc(deposit.value)} of {deposit.payer}, {deposit.transaction}", soft_wrap=True
    )
    if not yes:
        typer.confirm(f"Pay {usdc(deposit.value)} to {payee}?", abort=True, err=True)
    write_office(lambda connection, office: pay(connection, office, deposit_id, address))
    err().print(
        f"Written down: the running server pays {usdc(deposit.value)} to {payee} within seconds.", soft_wrap=True
    )
    err().print("See x402-gig refunds list")
