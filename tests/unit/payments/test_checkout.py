"""What happens to a payment before and after its settlement, with a ledger and a facilitator in memory."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest
from msgspec.structs import replace

from tests.unit.payments.examples import KEY, NOW, PAYER, PRICE, SELLER, SIGNATURE, payment
from x402_gig.errors import (
    ChainUnavailable,
    CommitUnknown,
    GigError,
    LedgerUnavailable,
    PaymentConflict,
    ValidationFailed,
)
from x402_gig.metrics import Metrics
from x402_gig.payments.checkout import Checkout, Known
from x402_gig.payments.order import Order
from x402_gig.payments.outcome import Outcome, Rejected, Settled, Unknown
from x402_gig.payments.payment import Authorization, Payment, PaymentKey

ORDER = Order("joke", {"about": "rain"}, PRICE)
OTHER_TERMS = replace(ORDER, terms={"about": "snow"})
BROKEN = replace(ORDER, problems=("No jokes today",))
SETTLED = Settled(1, PAYER.lower(), "0x" + "ee" * 32, {"joke": 1})
LATER = Settled(2, PAYER.lower(), "0x" + "ff" * 32, {"joke": 2})
REJECTED = Rejected("invalid_exact_evm_nonce_already_used", "Cancelled")
MISMATCH = "invalid_exact_evm_payload_authorization_value_mismatch"
UNSIGNED = b"not the payer's"
SECOND_NONCE = "0x" + "dd" * 32


def word(number: int) -> str:
    return f"0x{number:064x}"


@dataclass
class MemoryBook:
    """A ledger of payments by key; marks can be taken once."""

    known: dict[PaymentKey, Known] = field(default_factory=dict)
    marks: list[int] = field(default_factory=list)
    paid: set[PaymentKey] = field(default_factory=set)
    lost_race: bool = False
    now_s: int | None = None

    async def find_payment(self, key: PaymentKey) -> Known | None:
        return self.known.get(key)

    async def is_paid(self, key: PaymentKey) -> bool:
        return key in self.paid

    async def look_up(self, key: PaymentKey, order: Order, now_s: int) -> tuple[Known | None, int | None]:
        self.now_s = now_s
        ours = [k for k in self.known.values() if k.payment_id in self.marks and k.fingerprint == order.fingerprint]
        return self.known.get(key), ours[0].payment_id if ours else None

    async def take_abandoned(self, key: PaymentKey, payment_id: int, signature: bytes) -> bool:
        if self.lost_race or payment_id not in self.marks:
            return False
        self.marks.remove(payment_id)
        first = next(k for k in self.known.values() if k.payment_id == payment_id)
        self.known[key] = replace(first, signature=signature, abandoned=False)
        return True

    async def forget_abandoned(self, payment_id: int) -> None:
        self.marks.remove(payment_id)


@dataclass
class MemoryFacilitator:
    """Settles everything at once, or as told; `calls` are what it was asked to do."""

    book: MemoryBook
    outcome: Outcome | GigError | None = SETTLED
    calls: list[str] = field(default_factory=list)
    cancelled: bool = False

    async def settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        self.calls.append(f"settle {key.nonce}")
        outcome = await self._end()
        if isinstance(outcome, Settled):
            self.book.known[key] = Known(outcome.payment_id, order.fingerprint, payment.signature, outcome, False)
        return outcome

    async def resume(self, payment_id: int) -> Outcome:
        self.calls.append(f"resume {payment_id}")
        return await self._end()

    async def abandon(self, payment_id: int) -> None:
        self.book.marks.append(payment_id)

    async def _end(self) -> Outcome:
        try:
            if self.outcome is None:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        if isinstance(self.outcome, GigError):
            raise self.outcome
        assert self.outcome is not None
        return self.outcome


@dataclass
class MemoryProver:
    """Everything but `UNSIGNED` is the payer's; all or none `are_used`."""

    are_used: bool = False

    def recovers(self, authorization: Authorization, signature: bytes) -> bool:
        return signature != UNSIGNED

    async def proves(self, authorization: Authorization, signature: bytes) -> bool:
        return self.recovers(authorization, signature)

    async def is_used(self, authorization: Authorization) -> bool:
        return self.are_used


@dataclass
class Till:
    """A checkout and what is behind it."""

    book: MemoryBook = field(default_factory=MemoryBook)
    now_s: int = NOW
    hold_s: float = 5

    def __post_init__(self) -> None:
        self.facilitator = MemoryFacilitator(self.book)
        self.prover = MemoryProver()

    def pay(self, paid: Payment, order: Order = ORDER) -> Outcome:
        checkout = Checkout(
            seller=SELLER,
            book=self.book,
            facilitator=self.facilitator,
            prover=self.prover,
            hold_s=self.hold_s,
            clock=lambda: self.now_s,
            observer=Metrics(),
        )
        return asyncio.run(checkout.pay(paid, order))

    def knows(self, outcome: Settled | Rejected | None, *, abandoned: bool = False) -> None:
        """Payment 1 is in the ledger."""
        self.book.known[KEY] = Known(1, ORDER.fingerprint, SIGNATURE, outcome, abandoned)
        self.book.marks += [1] if abandoned else []

    @property
    def calls(self) -> list[str]:
        return self.facilitator.calls


@pytest.fixture
def till() -> Till:
    return Till()


# A payment nobody has seen


@pytest.mark.parametrize("version", [1, 2])
def test_a_new_payment_is_settled_and_then_known(till: Till, version: int) -> None:
    assert till.pay(payment(version)) == SETTLED
    assert till.pay(payment(version)) == SETTLED
    assert till.calls == [f"settle {KEY.nonce}"]


@pytest.mark.parametrize(
    ("paid", "reason"),
    [
        (payment(claims={"scheme": "upto"}), "unsupported_scheme"),
        (payment(value=PRICE + 1), MISMATCH),
        (payment(valid_before=NOW), "invalid_exact_evm_payload_authorization_valid_before"),
    ],
)
def test_what_can_be_refused_offline_is_never_sent(till: Till, paid: Payment, reason: str) -> None:
    refused = till.pay(paid)
    assert isinstance(refused, Rejected)
    assert refused.reason == reason
    assert till.calls == []


def test_an_offer_is_kept_when_its_price_has_changed(till: Till) -> None:
    """Whether the other price was quoted here a moment ago, or at a server that knows the change already."""
    changed = replace(ORDER, price_units=PRICE + 5, alternatives=(replace(ORDER, price_units=PRICE - 5), ORDER))
    for number, value in enumerate((PRICE + 5, PRICE - 5, PRICE)):
        assert till.pay(payment(value=value, claims={"amount": value}, nonce=word(number)), changed) == SETTLED
    refused = till.pay(payment(value=PRICE + 1, claims={"amount": PRICE + 1}, nonce=word(9)), changed)
    assert refused == Rejected(MISMATCH, f"The price is exactly {PRICE + 5} base units")


def test_an_offer_is_kept_when_its_terms_are_refused_since(till: Till) -> None:
    refused_now = replace(BROKEN, price_units=PRICE + 5, alternatives=(ORDER,))
    assert till.pay(payment(), refused_now) == SETTLED
    with pytest.raises(ValidationFailed, match="No jokes today"):
        till.pay(payment(value=PRICE + 5, nonce=word(1)), refused_now)


def test_whom_the_chain_has_charged_in_a_block_that_is_not_read_yet_is_not_told_to_sign_anew(till: Till) -> None:
    till.prover.are_used = True
    assert till.pay(payment(valid_before=NOW)) == SETTLED
    assert till.calls == [f"settle {KEY.nonce}"]


@pytest.mark.parametrize("paid", [payment(), payment(claims={"network": "base"}), payment(value=1)])
def test_broken_terms_are_listed_and_nothing_is_sent(till: Till, paid: Payment) -> None:
    with pytest.raises(ValidationFailed, match="No jokes today"):
        till.pay(paid, BROKEN)
    assert till.calls == []


@pytest.mark.parametrize("error", [ChainUnavailable("no answer"), PaymentConflict("other terms")])
def test_errors_of_the_facilitator_are_the_checkouts(till: Till, error: GigError) -> None:
    till.facilitator.outcome = error
    with pytest.raises(type(error)):
        till.pay(payment())


@pytest.mark.parametrize("outcome", [REJECTED, Unknown("it may be out")])
def test_outcomes_of_the_facilitator_are_the_checkouts(till: Till, outcome: Outcome) -> None:
    till.facilitator.outcome = outcome
    assert till.pay(payment()) == outcome


def test_a_rejection_because_a_twin_came_first_is_the_twins_outcome(till: Till) -> None:
    class Twin(MemoryFacilitator):
        async def settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
            till.knows(SETTLED)
            return REJECTED

    till.facilitator = Twin(till.book)
    assert till.pay(payment()) == SETTLED


# A payment that is known


@pytest.mark.parametrize("outcome", [SETTLED, REJECTED])
@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"order": replace(ORDER, price_units=PRICE * 2)}, id="the price was raised"),
        pytest.param({"order": BROKEN}, id="the terms broke a rule"),
        pytest.param({"now_s": NOW + 3600}, id="an hour later"),
        pytest.param({"paid": payment(valid_before=NOW + 9999)}, id="with other times"),
        pytest.param({"paid": payment(value=1)}, id="with another amount"),
        pytest.param({"paid": payment(1)}, id="in version 1"),
        pytest.param({"paid": payment(signature=b"another valid spelling")}, id="with another good signature"),
    ],
)
def test_a_known_payment_is_answered_before_anything_else(till: Till, outcome: Any, change: dict[str, Any]) -> None:
    till.knows(outcome)
    till.now_s = change.get("now_s", NOW)
    assert till.pay(change.get("paid", payment()), change.get("order", ORDER)) == outcome
    assert till.calls == []


@pytest.mark.parametrize("outcome", [SETTLED, REJECTED, None])
@pytest.mark.parametrize("order", [OTHER_TERMS, replace(ORDER, product="gig"), replace(OTHER_TERMS, price_units=1)])
def test_a_known_payment_buys_nothing_else(till: Till, outcome: Any, order: Order) -> None:
    till.knows(outcome)
    with pytest.raises(PaymentConflict):
        till.pay(payment(), order)
    assert till.calls == []


@pytest.mark.parametrize("order", [ORDER, OTHER_TERMS])
def test_a_replay_without_a_good_signature_learns_nothing(till: Till, order: Order) -> None:
    till.knows(SETTLED, abandoned=True)
    refused = till.pay(payment(signature=UNSIGNED), order)
    assert isinstance(refused, Rejected)
    assert refused.reason == "invalid_exact_evm_payload_signature"
    assert till.book.marks == [1]


def test_an_open_payment_is_waited_for_and_not_sent_as_a_new_one(till: Till) -> None:
    till.knows(None)
    assert till.pay(payment()) == SETTLED
    assert till.calls == ["resume 1"]


def test_who_comes_back_has_the_answer_and_the_mark_is_gone(till: Till) -> None:
    till.knows(SETTLED, abandoned=True)
    assert till.pay(payment()) == SETTLED
    assert till.book.marks == []
    # So a new authorization is a new purchase.
    till.facilitator.outcome = LATER
    assert till.pay(payment(nonce=SECOND_NONCE)) == LATER


def test_a_mark_that_may_be_gone_is_set_again_when_the_answer_is_not_told(till: Till) -> None:
    class LosesAnswers(MemoryBook):
        async def forget_abandoned(self, payment_id: int) -> None:
            self.marks.remove(payment_id)
            raise CommitUnknown("gone")

    till.book = till.facilitator.book = LosesAnswers()
    till.knows(SETTLED, abandoned=True)
    assert isinstance(till.pay(payment()), Unknown)
    assert till.book.marks == [1]


def test_of_a_known_payment_nobody_says_that_nothing_was_sent(till: Till) -> None:
    """Whoever was told so could sign anew."""
    till.knows(None)
    till.facilitator.outcome = LedgerUnavailable("gone")
    assert isinstance(till.pay(payment()), Unknown)


# The same payer and terms with a new authorization


def test_an_abandoned_payment_is_inherited_once(till: Till) -> None:
    till.knows(None, abandoned=True)
    inherited = till.pay(payment(nonce=SECOND_NONCE))
    third = till.pay(payment(nonce="0x" + "01" * 32))

    assert inherited == third == SETTLED
    assert till.calls == ["resume 1", "settle 0x" + "01" * 32]
    assert till.book.now_s == NOW


def test_the_heirs_authorization_is_another_name_of_the_payment(till: Till) -> None:
    till.knows(SETTLED, abandoned=True)
    heir = payment(nonce=SECOND_NONCE, signature=b"heir")
    assert [till.pay(heir) for _ in range(3)] == [SETTLED] * 3
    assert "settle" not in str(till.calls)


@pytest.mark.parametrize(
    ("paid", "order"),
    [
        pytest.param(payment(nonce=SECOND_NONCE, signature=UNSIGNED), ORDER, id="without a good signature"),
        pytest.param(payment(nonce=SECOND_NONCE), OTHER_TERMS, id="for other terms"),
    ],
)
def test_a_mark_is_not_taken(till: Till, paid: Payment, order: Order) -> None:
    till.knows(SETTLED, abandoned=True)
    till.facilitator.outcome = LATER
    assert till.pay(paid, order) == LATER
    assert till.book.marks == [1]


def test_who_loses_the_race_for_a_mark_buys_anew(till: Till) -> None:
    till.knows(SETTLED, abandoned=True)
    till.book.lost_race = True
    till.facilitator.outcome = LATER
    assert till.pay(payment(nonce=SECOND_NONCE)) == LATER


def test_an_heir_who_cannot_be_told_leaves_the_mark_for_the_next_one(till: Till) -> None:
    till.knows(None, abandoned=True)
    till.facilitator.outcome = LedgerUnavailable("gone")
    assert isinstance(till.pay(payment(nonce=SECOND_NONCE)), Unknown)
    assert till.book.marks == [1]


def test_an_heir_pays_the_price_of_today(till: Till) -> None:
    """Inheriting comes after the checks: a payment that would be refused does not take a mark."""
    till.knows(SETTLED, abandoned=True)
    refused = till.pay(payment(nonce=SECOND_NONCE, value=PRICE - 1))
    assert isinstance(refused, Rejected)
    assert till.book.marks == [1]


# Patience


@pytest.mark.parametrize("known", [True, False])
def test_after_the_hold_the_outcome_is_unknown(till: Till, known: bool) -> None:
    till.hold_s = 0.01
    till.facilitator.outcome = None
    if known:
        till.knows(None)
    outcome = till.pay(payment())
    assert isinstance(outcome, Unknown)
    assert "same payment header" in outcome.detail
    assert till.facilitator.cancelled
