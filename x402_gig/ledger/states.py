"""Every change of state that the ledger may make. docs/payment-states.md shows the same table; a test compares them.

A change that is not here cannot be made: the ledger asks `before` which states a row may come from.
"""

from typing import NamedTuple


class Transition(NamedTuple):
    """`thing` goes from `before` to `after`; `by` does it, on `evidence`. `before` is empty for a new row."""

    thing: str
    before: str
    after: str
    by: str
    evidence: str


TRANSITIONS = (
    Transition("payment", "", "open", "facilitator, claims", "it passed every check and the simulation"),
    Transition("payment", "open", "settled", "relayer, watcher", "its log pair is on chain"),
    Transition(
        "payment", "open", "rejected", "reconciler, claims", "a read block shows its nonce used without a deposit"
    ),
    Transition("payment", "open", "rejected", "reconciler", "a read block is past validBefore, the nonce unused"),
    Transition("payment", "settled", "open", "watcher", "the block of its deposit was replaced"),
    Transition("movement", "", "due", "settling, funding, refunds", "the deposit that it spends is on chain"),
    Transition("movement", "due", "done", "relayer, watcher", "its log pair is on chain"),
    Transition("movement", "due", "done", "operator", "the token's logs show it, and there is no receipt"),
    Transition("movement", "done", "due", "watcher", "the block of its log pair was replaced"),
    Transition("movement", "due", "void", "reconciler", "its deposit never came back and its signatures expired"),
    Transition(
        "movement", "due", "void", "reconciler", "its commission address was changed and its signatures expired"
    ),
    Transition("movement", "void", "done", "relayer, watcher", "its log pair is on chain after all"),
    Transition("slot", "", "open", "relayer", "a signed transaction is written down"),
    Transition("slot", "", "lost", "operator", "its gig's wallet has used the nonce, and the ledger did not sign that"),
    Transition("slot", "open", "mined", "relayer", "the receipt of one of its transactions, successful"),
    Transition("slot", "open", "reverted", "relayer", "the receipt of one of its transactions, failed"),
    Transition("slot", "open", "filled", "relayer", "the receipt of its empty transaction"),
    Transition("slot", "open", "lost", "relayer", "the block that used its nonce has none of its transactions"),
    Transition("slot", "open", "lost", "relayer", "its nonce is used REORG_DEPTH deep, and there is still no receipt"),
    Transition("slot", "open", "lost", "operator", "the token's logs show that its gig's wallet has not paid"),
    Transition("slot", "open", "mined", "operator", "the token's logs show one of its transactions"),
    Transition("slot", "mined", "open", "watcher", "the block of its receipt was replaced"),
    Transition("slot", "reverted", "open", "watcher", "the block of its receipt was replaced"),
    Transition("slot", "filled", "open", "watcher", "the block of its receipt was replaced"),
    Transition("slot", "lost", "open", "watcher", "the block in which its nonce was seen used was replaced"),
)


def before(thing: str, after: str) -> list[str]:
    """The states from which a row may go to `after`."""
    return sorted({t.before for t in TRANSITIONS if (t.thing, t.after) == (thing, after)} - {""})
