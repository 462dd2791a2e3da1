"""The sums of an audit, in base units: what moved by the chain's logs, and whose the rest is by the ledger."""

from collections import Counter
from collections.abc import Iterator

from msgspec import Struct

from x402_gig.chainsync.history import History
from x402_gig.ledger.audit import Books, DepositRow
from x402_gig.ledger.movements import COMMISSION, REFUND, REWARD

UNSIGNED = "unsigned"
UNCLAIMED = "unclaimed"


class Totals(Struct, frozen=True):
    """`start` is what the intake held before the ledger began; `unsigned` what left it without the ledger.

    The rest are debts, and `unclaimed` deposits; `counts` has how many transfers make up a sum.
    """

    start: int
    received: int
    rewards: int
    commissions: int
    refunds: int
    unsigned: int
    intake_balance: int
    rewards_due: int
    commissions_due: int
    refunds_due: int
    unclaimed: int
    counts: dict[str, int]
    commission_wallets: dict[str, int]

    @classmethod
    def of(cls, books: Books, history: History, balance: int) -> "Totals":
        received, sent = history.received, list(_kinds(books, history))
        moved, due = _sums((kind, value) for kind, _, value in sent), _sums(_debts(books, history.last))
        return cls(
            start=books.start_balance,
            received=sum(transfer.value for transfer in received),
            rewards=moved[REWARD],
            commissions=moved[COMMISSION],
            refunds=moved[REFUND],
            unsigned=moved[UNSIGNED],
            intake_balance=balance,
            rewards_due=due[REWARD],
            commissions_due=due[COMMISSION],
            refunds_due=due[REFUND],
            unclaimed=due[UNCLAIMED],
            counts={"received": len(received), **Counter(kind for kind, _, _ in sent)},
            commission_wallets=dict(_sums((payee, value) for kind, payee, value in sent if kind == COMMISSION)),
        )

    @property
    def gap(self) -> int:
        """What the intake holds beyond what the logs explain; less than nothing when it holds less."""
        sent = self.rewards + self.commissions + self.refunds + self.unsigned
        return self.intake_balance - (self.start + self.received - sent)

    @property
    def owed(self) -> int:
        return self.rewards_due + self.commissions_due + self.refunds_due + self.unclaimed


def _sums(amounts: Iterator[tuple[str, int]]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for name, value in amounts:
        sums[name] += value
    return sums


def _kinds(books: Books, history: History) -> Iterator[tuple[str, str, int]]:
    """Kind, payee and value of all that left the intake; what it sent to itself is still there."""
    kinds = {row.nonce: row.kind for row in books.movements.values() if row.id in books.signed}
    for transfer in history.sent:
        if transfer.payee != history.intake:
            yield kinds.get(transfer.nonce or "", UNSIGNED), transfer.payee, transfer.value


def _debts(books: Books, block_number: int) -> Iterator[tuple[str, int]]:
    """What is due, and to whom, of the deposits up to a block."""
    done = {row.id for row in books.movements.values() if row.is_done_by(block_number)}
    unpaid = {row.subject: row.value for row in books.movements.values() if row.kind == REWARD and row.id not in done}
    gigs = {gig.payment_id: gig.id for gig in books.gigs.values()}
    collected = {payment_id for payment_id, movement_id in books.commissions if movement_id in done}
    for deposit in books.deposits.values():
        if not deposit.on_chain or deposit.block_number > block_number:
            continue
        if deposit.payment_id is not None:
            yield REWARD, unpaid.get(gigs.get(deposit.payment_id, 0), 0)
            if deposit.payment_id not in collected:
                yield COMMISSION, _commission(books, deposit)
        elif deposit.refund_id not in done:
            yield (UNCLAIMED if deposit.refund_id is None else REFUND), deposit.value


def _commission(books: Books, deposit: DepositRow) -> int:
    payment = books.payments.get(deposit.payment_id or 0)
    return payment.commission if payment is not None else 0
