"""What happens next to a payment, and who does it."""

from collections.abc import Iterator, Sequence

from msgspec import Struct

from x402_gig.ledger.payment_queries import Row, Story
from x402_gig.ledger.payments import MAX_BROADCASTS
from x402_gig.operator.words import clock


class Circumstances(Struct, frozen=True):
    """`now_s` is this machine's time; `halt` why nothing is signed; `is_remote`: a facilitator executes payments."""

    now_s: int
    halt: str = ""
    is_remote: bool = False


def next_step(story: Story, here: Circumstances) -> str:
    state = story.payment["state"]
    if state == "rejected":
        return _after_rejection(story)
    if here.halt:
        return f"nothing, the server is halted: {here.halt}; see docs/operations.md"
    return _next_movement(story) if state == "settled" else _next_of_open(story, here)


def _after_rejection(story: Story) -> str:
    deposit = story.deposit
    if deposit is None or not deposit["on_chain"]:
        return "nothing: nothing was charged"
    if deposit["refund_id"] is not None:
        return f"nothing more: its money came after all, and is paid back as the refund of deposit {deposit['id']}"
    return f"its money came after all: deposit {deposit['id']} is paid back, see x402-gig refunds list"


def _next_movement(story: Story) -> str:
    for what, row in _movements(story):
        if row is None or (row["state"] == "due" and not _open_slot(row["sends"])):
            return f"the server sends the {what} with its next batch"
        if slot := _open_slot(row["sends"]):
            return f"{_sender(slot)} sends the {what} until a block has it"
    return "nothing: done"


def _movements(story: Story) -> Iterator[tuple[str, Row | None]]:
    if story.reward is not None:
        yield "reward", story.reward
    if story.payment["commission"]:
        kept = [row for row in story.commissions if row["state"] != "void"]
        yield "commission", kept[-1] if kept else None


def _next_of_open(story: Story, here: Circumstances) -> str:
    payment, deposit = story.payment, story.deposit
    if slot := _open_slot(story.sends):
        return f"{_sender(slot)} sends it until a block has it"
    if deposit is not None and deposit["on_chain"] and deposit["value"] == payment["value"]:
        return f"its money is here (deposit {deposit['id']}): the reconciler settles it"
    if payment["resend"]:
        return "the reconciler sends it again"
    return _until_expiry(story, here)


def _until_expiry(story: Story, here: Circumstances) -> str:
    payment = story.payment
    until = f"validBefore {clock(payment['valid_before'])} UTC"
    if here.now_s >= payment["valid_before"]:
        return (
            f"it is past {until}: the reconciler rejects it when it has read a block of that time; nothing is charged"
        )
    if story.is_flagged:
        command = f"x402-gig payments retry {payment['id']}"
        return f"flagged: broadcast {MAX_BROADCASTS} times without success; run {command}, or it is rejected at {until}"
    if here.is_remote:
        return f"waits for the facilitator to execute it until {until}, then it is rejected and nothing was charged"
    return f"waits for {until}, then it is rejected and nothing was charged; sent again when its buyer repeats it"


def _open_slot(sends: Sequence[Row]) -> Row | None:
    return next((slot for slot in sends if slot["state"] == "open"), None)


def _sender(slot: Row) -> str:
    return f"relayer {slot['relayer']} (nonce {slot['nonce']})"
