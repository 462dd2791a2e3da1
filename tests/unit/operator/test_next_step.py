"""What comes next, for every place in which a payment can be."""

from typing import Any

import pytest
from msgspec.structs import replace

from x402_gig.ledger.payment_queries import Row, Story
from x402_gig.operator.next_step import Circumstances, next_step

NOW = 1_800_000_000
HERE = Circumstances(NOW)
PAYMENT: Row = {"id": 12, "state": "open", "value": 11, "valid_before": NOW + 60, "resend": 0, "commission": 0}
OPEN = Story(PAYMENT, False, (), (), None, (), None, None, ())
SLOT: Row = {"state": "open", "relayer": "0xab", "nonce": 7}
DEPOSIT: Row = {"id": 3, "value": 11, "on_chain": 1, "refund_id": None}


def story(of: Story = OPEN, payment: Row | None = None, **changes: Any) -> Story:
    return replace(of, payment={**of.payment, **(payment or {})}, **changes)


def movement(state: str, *sends: Row) -> Row:
    return {"state": state, "sends": sends}


SETTLED = story(payment={"state": "settled", "commission": 1}, reward=movement("done"))
REJECTED = story(payment={"state": "rejected"})


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (OPEN, "waits for validBefore 2027-01-15 08:01:00 UTC, then it is rejected and nothing was charged"),
        (story(sends=(SLOT,)), "relayer 0xab (nonce 7) sends it until a block has it"),
        (story(payment={"resend": 1}), "the reconciler sends it again"),
        (story(payment={"resend": 1}, deposit=DEPOSIT), "its money is here (deposit 3)"),
        (story(deposit={**DEPOSIT, "value": 10}), "waits for validBefore"),
        (story(deposit={**DEPOSIT, "on_chain": 0}), "waits for validBefore"),
        (story(payment={"valid_before": NOW}), "it is past validBefore"),
        (story(is_flagged=True), "flagged: broadcast 3 times without success; run x402-gig payments retry 12"),
        (REJECTED, "nothing: nothing was charged"),
        (story(REJECTED, deposit=DEPOSIT), "its money came after all: deposit 3"),
        (story(REJECTED, deposit={**DEPOSIT, "refund_id": 9}), "the refund of deposit 3"),
        (story(SETTLED, commissions=(movement("done"),)), "nothing: done"),
        (story(SETTLED, commissions=(movement("void"),)), "the server sends the commission with its next batch"),
        (SETTLED, "the server sends the commission with its next batch"),
        (story(SETTLED, reward=movement("due")), "the server sends the reward with its next batch"),
        (story(SETTLED, reward=movement("due", SLOT)), "relayer 0xab (nonce 7) sends the reward until a block has it"),
        (story(SETTLED, payment={"commission": 0}), "nothing: done"),
    ],
)
def test_the_next_step_and_who_does_it(case: Story, said: str) -> None:
    assert said in next_step(case, HERE)


def test_a_facilitators_payment_waits_for_it() -> None:
    assert "waits for the facilitator" in next_step(OPEN, replace(HERE, is_remote=True))


def test_a_halted_server_does_nothing() -> None:
    halted = replace(HERE, halt="an old backup")
    assert next_step(SETTLED, halted).startswith("nothing, the server is halted: an old backup")
    assert next_step(REJECTED, halted) == "nothing: nothing was charged"
