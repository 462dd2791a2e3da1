"""An audit's report, for people and for programs."""

from collections.abc import Iterator
from typing import Any

from msgspec.structs import asdict

from x402_gig.audit.audit import Report
from x402_gig.audit.totals import Totals
from x402_gig.gigs.pricing import to_tokens
from x402_gig.operator.words import clock, number


def as_json(report: Report) -> dict[str, Any]:
    """Amounts in base units, the time of the block in Unix seconds."""
    return {
        "ok": report.adds_up,
        "network": report.network,
        "intake": report.intake,
        "from_block": report.begin,
        "block": report.block.number,
        "block_hash": report.block.hash,
        "time": report.block.timestamp,
        **asdict(report.totals),
        "owed": report.totals.owed,
        "keyed_gigs": report.keyed_gigs,
        "differences": [
            {"subject": d.subject, "problem": d.problem, "block": d.block_number} for d in report.differences
        ],
        "notes": report.notes,
    }


def heading(report: Report) -> str:
    blocks = f"blocks {report.begin} to {report.block.number} ({clock(report.block.timestamp)} UTC)"
    return f"Intake {report.intake} on {report.network}, {blocks}"


def table(totals: Totals) -> str:
    lines = [(name, to_tokens(units), remark) for name, units, remark in _lines(totals)]
    width = max(len(amount) for _, amount, _ in lines)
    return "\n".join(f"{name:<17} {amount:>{width}} USDC  {remark}".rstrip() for name, amount, remark in lines)


def _lines(totals: Totals) -> Iterator[tuple[str, int, str]]:
    counts = totals.counts
    if totals.start:
        yield "before the ledger", totals.start, "in the intake when the ledger began"
    commission_wallets = ", ".join(f"to {wallet}" for wallet in totals.commission_wallets)
    yield "received", totals.received, number(counts.get("received", 0), "deposit")
    yield "  rewards", totals.rewards, number(counts.get("reward", 0), "gig wallet")
    yield "  commissions", totals.commissions, commission_wallets
    yield "  refunds", totals.refunds, number(counts.get("refund", 0), "deposit")
    if totals.unsigned:
        yield "  not ours", totals.unsigned, "left the intake and this ledger did not sign it"
    yield "  in the intake", totals.intake_balance, ""
    yield "owed", totals.owed, ""
    yield "  rewards due", totals.rewards_due, ""
    yield "  commissions due", totals.commissions_due, ""
    yield "  refunds due", totals.refunds_due, ""
    yield (
        "  unclaimed",
        totals.unclaimed,
        "deposits without an order: x402-gig refunds list" if totals.unclaimed else "",
    )
    if nobodys := totals.intake_balance - totals.owed:
        yield "nobody's", nobodys, "in the intake beyond what is owed"


def keyed(report: Report) -> str:
    """Their money never enters the intake."""
    return f"{number(report.keyed_gigs, 'live gig')} of API keys, each compared with its own wallet"


def verdict(report: Report) -> str:
    return "All adds up." if report.adds_up else f"{number(len(report.differences), 'difference')}:"


def promise(totals: Totals) -> str:
    """`received = rewards + commissions + refunds + intake balance`, in USDC."""
    came = totals.start + totals.received
    went = [totals.rewards, totals.commissions, totals.refunds, totals.intake_balance, *filter(None, [totals.unsigned])]
    names = ["rewards", "commissions", "refunds", "intake balance", "not ours"]
    right = " + ".join(f"{name} {to_tokens(units)}" for name, units in zip(names, went, strict=False))
    return f"received {to_tokens(came)} {'≠' if totals.gap else '='} {right}"
