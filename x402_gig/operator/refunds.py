"""Deposits without an owner: why they are still here, and how the operator pays one back. Never twice."""

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from msgspec.structs import asdict

from x402_gig.errors import Refused
from x402_gig.ledger import chain_state, payment_queries, refunds, shared_settings
from x402_gig.ledger.engine import Connection
from x402_gig.ledger.payment_queries import Row
from x402_gig.ledger.refunds import Deposit
from x402_gig.operator.opening import Office
from x402_gig.operator.words import clock, number, usdc
from x402_gig.settlement.reconciler import REFUND_AFTER_S

LISTED = 1000
PAID_LISTED = 20


class Unclaimed(Struct, frozen=True):
    """A deposit that nobody owns, and what is in the way of paying it back."""

    deposit: Deposit
    is_final: bool
    why: list[str]


class Overview(Struct, frozen=True):
    unclaimed: list[Unclaimed]
    refunds: Sequence[Row]
    halt: str


def overview(connection: Connection, office: Office, now_s: int) -> Overview:
    seen, least = chain_state.cursor(connection).number, shared_settings.least_price(connection)
    return Overview(
        [_unclaimed(deposit, office, seen, least, now_s) for deposit in refunds.unclaimed(connection, LISTED)],
        payment_queries.refunds(connection, PAID_LISTED),
        chain_state.funding_halt(connection),
    )


def _unclaimed(deposit: Deposit, office: Office, seen: int, least_price: int, now_s: int) -> Unclaimed:
    missing = _missing_blocks(deposit, office, seen)
    return Unclaimed(deposit, missing == 0, list(_why(deposit, missing, least_price, now_s)))


def _missing_blocks(deposit: Deposit, office: Office, seen: int) -> int:
    """How many blocks must be read before no reorganisation can take it away."""
    return max(0, deposit.block_number + office.settings.reorg_depth - seen)


def _why(deposit: Deposit, missing_blocks: int, least_price: int, now_s: int) -> Iterator[str]:
    if missing_blocks:
        yield f"not final for {number(missing_blocks, 'block')} yet"
    if deposit.nonce is None:
        yield f"a plain transfer, whose sender may not be its owner: x402-gig refunds pay {deposit.id} --to ADDRESS"
        return
    if deposit.value < least_price:
        yield f"less than anything ever cost ({usdc(least_price)}): x402-gig refunds pay {deposit.id}"
    elif now_s < (ripe_at := deposit.created_at + REFUND_AFTER_S):
        yield f"its order may still come until {clock(ripe_at)} UTC; then it is paid back by itself"


def pay(connection: Connection, office: Office, deposit_id: int, to: str | None) -> tuple[Deposit, str]:
    """Write the refund of a deposit down, and return it with its payee. Raises Refused."""
    deposit, payee = payable(connection, office, deposit_id, to)
    if not refunds.write_refund(connection, deposit, payee, office.wallets.refund_nonce):
        raise Refused(_owned(payment_queries.owner(connection, deposit_id), deposit_id))
    return deposit, payee


def payable(connection: Connection, office: Office, deposit_id: int, to: str | None) -> tuple[Deposit, str]:
    """The deposit and who gets it back. Raises Refused, which says why it cannot be paid back."""
    if halt := chain_state.funding_halt(connection):
        raise Refused(f"The server is halted and signs nothing: {halt}. See docs/operations.md")
    deposit = refunds.find_unclaimed(connection, deposit_id)
    if deposit is None:
        raise Refused(_owned(payment_queries.owner(connection, deposit_id), deposit_id))
    if missing := _missing_blocks(deposit, office, chain_state.cursor(connection).number):
        raise Refused(
            f"Deposit {deposit_id} is not final: a reorganisation may take it away. Try again in "
            f"{number(missing, 'block')}"
        )
    return deposit, _payee(deposit, office, to)


def _owned(row: Row | None, deposit_id: int) -> str:
    if row is None:
        return f"There is no deposit {deposit_id}: x402-gig refunds list names those without an owner"
    if not row["on_chain"]:
        return f"Deposit {deposit_id} is not on chain any more: a reorganisation took it away"
    if row["payment_id"] is not None:
        payment_id = row["payment_id"]
        return f"Deposit {deposit_id} belongs to payment {payment_id}: x402-gig payments show {payment_id}"
    if (refund := row["refund"]) is not None:
        how = f"paid back in {refund['transaction']}" if refund["state"] == "done" else "being paid back"
        return f"Deposit {deposit_id} is {how}, to {refund['payee']}"
    return f"Deposit {deposit_id} has an open order: its payment (nonce {row['nonce']}) is about to be settled"


def _payee(deposit: Deposit, office: Office, to: str | None) -> str:
    if deposit.nonce is not None:
        if to is not None:
            raise Refused("Its payer signed for it, so it goes back there: leave --to out")
        return deposit.payer
    if to is None:
        raise Refused(
            f"It is a plain transfer by {deposit.payer}, which may be an exchange: ask who owns it, and name the "
            "address with --to"
        )
    if to in (office.wallets.intake.address, office.settings.preset.token.address, f"0x{0:040x}"):
        raise Refused("--to must be the address of its owner, not the intake, the token or zero")
    return to


def as_json(found: Overview) -> dict[str, Any]:
    """Amounts in base units, times in Unix seconds."""
    unclaimed = [{**asdict(u.deposit), "is_final": u.is_final, "why": u.why} for u in found.unclaimed]
    return {"unclaimed": unclaimed, "refunds": found.refunds, "halt": found.halt}


def told(found: Overview) -> str:
    lines = [*map(_line, found.unclaimed)] or ["Every deposit has an owner."]
    if found.refunds:
        lines.append("Paid back:")
    for row in found.refunds:
        how = f"in {row['refund_transaction']}" if row["state"] == "done" else "due: the server sends it"
        lines.append(f"  deposit {row['id']}  {usdc(row['value'])}  to {row['payee']}  {how}")
    return "\n".join([*lines, *([f"The server is halted: {found.halt}"] if found.halt else [])])


def _line(unclaimed: Unclaimed) -> str:
    deposit = unclaimed.deposit
    what = f"deposit {deposit.id}  {usdc(deposit.value)}  by {deposit.payer}"
    where = f"{clock(deposit.created_at)} UTC in block {deposit.block_number}, {deposit.transaction}"
    why = unclaimed.why or ["the server pays it back by itself"]
    return "\n".join([what, f"  {where}", *(f"  {reason}" for reason in why)])
