"""Payments as a person reads them at three in the morning."""

import json
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

from msgspec.structs import asdict

from x402_gig.gigs.shop import PRODUCT
from x402_gig.ledger.payment_queries import Row, Story
from x402_gig.operator.next_step import Circumstances, next_step
from x402_gig.operator.words import clock, gwei, usdc

MAX_TERMS_CHARS = 200
# At the same second, in the order in which one leads to the other.
WRITTEN, SENT, RECEIVED, NOTED, BOUGHT, DUE, MOVED, DONE = range(8)

Event = tuple[int, int, str]


def listed(rows: Sequence[Row]) -> str:
    """One line for each, under each other."""
    lines = [(f"{row['id']}", row["state"], usdc(row["value"]), row) for row in rows]
    widths = [max((len(line[i]) for line in lines), default=0) for i in range(3)]
    return "\n".join(
        f"{number:>{widths[0]}}  {state:<{widths[1]}}  {value:>{widths[2]}}  {row['payer']}  "
        f"{clock(row['created_at'])}  {_remark(row)}".rstrip()
        for number, state, value, row in lines
    )


def _remark(row: Row) -> str:
    return "flagged" if row["flagged"] else str(row["transaction"] or row["reason"])


def as_json(story: Story, here: Circumstances) -> dict[str, Any]:
    """The rows as the tables have them: amounts in base units, times in Unix seconds, fees in wei."""
    return {**asdict(story), "next": next_step(story, here)}


def final_outcome(story: Story) -> str:
    """Of a payment that is not open any more."""
    payment = story.payment
    if payment["state"] == "rejected":
        return f"Payment {payment['id']} is rejected and nothing was charged: {payment['detail']} ({payment['reason']})"
    gig = f" and bought gig {story.gig['id']}" if story.gig is not None else ""
    return f"Payment {payment['id']} is settled in {payment['transaction']}{gig}: there is nothing to send"


def told(story: Story, here: Circumstances) -> str:
    """All that is known of a payment; the last line says what comes next."""
    payment = story.payment
    facts = [
        ("terms", _terms(payment)),
        ("price", usdc(payment["value"])),
        ("payer", payment["payer"]),
        ("nonce", payment["nonce"]),
        ("valid until", f"{clock(payment['valid_before'])} UTC"),
        *_outcome(story),
    ]
    return "\n".join(
        [
            f"Payment {payment['id']} is {payment['state']}{', flagged' if story.is_flagged else ''}",
            *(f"  {name:<11}  {text}" for name, text in facts),
            "  when (UTC)",
            *(f"  {clock(at)}  {text}" for at, _, text in sorted(_events(story), key=itemgetter(0, 1))),
            f"next: {next_step(story, here)}",
        ]
    )


def _terms(payment: Row) -> str:
    terms = payment["terms"]
    if payment["product"] != PRODUCT:
        return f"{payment['product']} {json.dumps(terms)[:MAX_TERMS_CHARS]}"
    words = [f"{terms['gig_type']} on {terms['platform']}", usdc(terms["amount_units"]), terms["duration"]]
    return ", ".join([*words, *filter(None, [terms.get("url"), terms.get("keyword"), terms.get("token_contract")])])


def _outcome(story: Story) -> Iterator[tuple[str, str]]:
    payment, gig = story.payment, story.gig
    if payment["state"] == "rejected":
        yield "because", f"{payment['detail']} ({payment['reason']})"
    if payment["abandoned"]:
        yield "abandoned", "its buyer stopped waiting"
    if gig is not None:
        yield "gig", f"{gig['id']}, {usdc(gig['reward'])} in wallet {gig['wallet']}"


def _events(story: Story) -> Iterator[Event]:
    for entry in story.journal:
        rank = NOTED if entry["reason"] or entry["state"] != "open" else WRITTEN
        yield entry["at"], rank, _joined(entry["state"], entry["transaction"] and f"in {entry['transaction']}", entry)
    for slot in story.sends:
        yield from _sends(slot, SENT, "", _failure(slot, story.deposit))
    if (deposit := story.deposit) is not None:
        where = f"block {deposit['block_number']}" if deposit["on_chain"] else "no block any more"
        text = f"deposit {deposit['id']}: {usdc(deposit['value'])} in {where}, {deposit['transaction']}"
        yield deposit["created_at"], RECEIVED, text
    for alias in story.aliases:
        yield alias["created_at"], NOTED, f"authorization {alias['nonce']} inherits it"
    if (gig := story.gig) is not None:
        yield gig["created_at"], BOUGHT, f"gig {gig['id']}"
    yield from _movements([*([story.reward] if story.reward else []), *story.commissions])


def _failure(slot: Row, deposit: Row | None) -> str:
    has_moved = deposit is not None and deposit["transaction"] == slot["transaction"]
    return "" if has_moved or slot["state"] != "mined" else "; the token refused it there"


def _joined(state: str, place: str | None, entry: Row) -> str:
    text = f"{state} {place}" if place else state
    return f"{text}: {entry['reason']}" if entry["reason"] else text


def _sends(slot: Row, rank: int, what: str, remark: str = "") -> Iterator[Event]:
    """Each transaction that was signed for a slot, and how the slot ended."""
    for number, attempt in enumerate(slot["attempts"]):
        verb = "emptied" if attempt["is_empty"] else "outbid" if number else "sent"
        price = f"at most {gwei(attempt['max_fee'])} for {attempt['gas']:,} gas"
        who = f"relayer {slot['relayer']}, nonce {slot['nonce']}"
        yield attempt["created_at"], rank, f"{what}{verb} in {attempt['hash']} ({who}, {price})"
    if slot["closed_at"] is not None:
        yield slot["closed_at"], rank, f"{what}{_end(slot)}{remark}"


def _end(slot: Row) -> str:
    used = f", {slot['gas_used']:,} gas" if slot["gas_used"] is not None else ""
    which = f": {slot['transaction']}" if slot["transaction"] and len(slot["attempts"]) > 1 else ""
    return f"{slot['state']} in block {slot['block_number']}{used}{which}"


def _movements(rows: Sequence[Row]) -> Iterator[Event]:
    carried: dict[int, tuple[Row, list[str]]] = {}
    for row in rows:
        what = f"{row['kind']} {row['subject']}"
        yield row["created_at"], DUE, f"{what} due: {usdc(row['value'])} to {row['payee']}"
        for slot in row["sends"]:
            carried.setdefault(slot["id"], (slot, []))[1].append(what)
        if row["done_at"] is not None:
            yield row["done_at"], DONE, f"{what} done in block {row['block_number']}, {row['transaction']}"
        elif row["state"] == "void":
            yield row["created_at"], DONE, f"{what} void: its deposit did not come back"
    for slot, names in carried.values():
        yield from _sends(slot, MOVED, f"{' and '.join(names)} ")
