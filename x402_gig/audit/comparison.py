"""The ledger beside the chain, and beside itself, row by row. Every difference is named; none is repaired."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from msgspec import Struct

from x402_gig.chainsync.history import History
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.wallets import MAX_GIG_ID, Wallets
from x402_gig.ledger.audit import Books, DepositRow, GigRow, MovementRow, PaymentRow
from x402_gig.ledger.movements import COMMISSION, REFUND, REWARD
from x402_gig.operator.words import usdc


class Difference(Struct, frozen=True):
    """`subject` is what differs, `problem` how. `block_number`: the block to look at again."""

    subject: str
    problem: str
    block_number: int | None = None

    def __str__(self) -> str:
        return f"{self.subject}: {self.problem}"


@dataclass
class Comparison:
    """Of the ledger's `books` with the chain's `history`, up to its last block: what is above is left out."""

    books: Books
    history: History
    wallets: Wallets
    owned: Mapping[int, DepositRow] = field(init=False)

    def __post_init__(self) -> None:
        # By payment; a deposit has one owner.
        self.owned = {d.payment_id: d for d in self.books.deposits.values() if d.payment_id is not None}

    def differences(self) -> list[Difference]:
        return [
            *self._deposits_on_chain(),
            *self._sent_on_chain(),
            *self._owners(),
            *self._payments(),
            *self._gigs(),
            *self._movements(),
            *self._commissions(),
            *self._refunds(),
        ]

    # The chain

    def _deposits_on_chain(self) -> Iterator[Difference]:
        rows = {d.source: d for d in self.books.deposits.values() if d.on_chain}
        for transfer in self.history.received:
            row = rows.pop(_source(transfer), None)
            if row is None:
                who = f"deposit of {usdc(transfer.value)} by {transfer.payer} in {transfer.transaction}"
                yield Difference(who, "is on chain and not in the ledger", transfer.block_number)
            else:
                yield from _unlike(f"deposit {row.id}", transfer, row)
        for row in rows.values():
            if row.block_number <= self.history.last:
                who = f"deposit {row.id} of {usdc(row.value)} by {row.payer}"
                yield Difference(who, "is in the ledger and not on chain", row.block_number)

    def _sent_on_chain(self) -> Iterator[Difference]:
        rows = {m.nonce: m for m in self.books.movements.values()}
        done = {m.nonce: m for m in rows.values() if m.is_done_by(self.history.last)}
        for transfer in self.history.sent:
            row = rows.get(transfer.nonce or "")
            if row is None or row.id not in self.books.signed:
                what = f"{usdc(transfer.value)} to {transfer.payee} in {transfer.transaction}"
                yield Difference(what, "left the intake and this ledger did not sign that", transfer.block_number)
                continue
            yield from _unlike(_name(row), transfer, row)
            if transfer.payee != row.payee:
                problem = f"went to {transfer.payee} on chain and to {row.payee} in the ledger"
                yield Difference(_name(row), problem, transfer.block_number)
            if done.pop(row.nonce, None) is None:
                problem = f"is on chain and {row.state} in the ledger"
                yield Difference(_name(row), problem, transfer.block_number)
        for row in done.values():
            yield Difference(_name(row), "is done in the ledger and not on chain", row.block_number)

    # What belongs together in the ledger

    def _owners(self) -> Iterator[Difference]:
        for deposit in self.books.deposits.values():
            if deposit.payment_id is not None:
                yield from self._owner(deposit, self.books.payments.get(deposit.payment_id))

    def _owner(self, deposit: DepositRow, payment: PaymentRow | None) -> Iterator[Difference]:
        subject = f"deposit {deposit.id}"
        if payment is None:
            yield Difference(subject, f"belongs to payment {deposit.payment_id}, which does not exist")
            return
        if not deposit.on_chain or payment.state != "settled":
            yield Difference(subject, f"belongs to payment {payment.id}, which is {payment.state}")
        for name in ("payer", "nonce", "value", "transaction"):
            if getattr(deposit, name) != getattr(payment, name):
                yield Difference(subject, f"has another {name} than payment {payment.id}, which owns it")

    def _payments(self) -> Iterator[Difference]:
        gigs: dict[int | None, list[GigRow]] = defaultdict(list)
        for gig in self.books.gigs.values():
            gigs[gig.payment_id].append(gig)
        for payment in self.books.payments.values():
            subject = f"payment {payment.id}"
            if payment.id in self.books.unlike_journal:
                yield Difference(subject, f"is {payment.state}, and its journal says otherwise")
            if payment.state != "settled":
                continue
            if payment.id not in self.owned:
                yield Difference(subject, "is settled without a deposit")
            bought = payment.commission + sum(gig.reward for gig in gigs[payment.id])
            if bought != payment.value:
                problem = f"is {usdc(payment.value)}, and its gig and commission are {usdc(bought)}"
                yield Difference(subject, problem)

    def _gigs(self) -> Iterator[Difference]:
        rewards = {m.subject: m for m in self.books.movements.values() if m.kind == REWARD}
        for gig in self.books.gigs.values():
            yield from self._gig(gig, rewards.pop(gig.id, None))
        for row in rewards.values():
            yield Difference(_name(row), "has no gig")

    def _gig(self, gig: GigRow, reward: MovementRow | None) -> Iterator[Difference]:
        subject = f"gig {gig.id}"
        payment = self.books.payments.get(gig.payment_id or 0)
        if payment is None:
            yield Difference(subject, "has no payment")
        elif payment.state == "settled" and payment.commission != gig.commission:
            yield Difference(subject, f"has another commission than payment {payment.id}")
        if not 0 < gig.id <= MAX_GIG_ID or gig.wallet != self.wallets.gig_address(gig.id):
            yield Difference(subject, f"has a wallet that is not its own: {gig.wallet}")
        if reward is None:
            yield Difference(subject, "has no reward")
        elif (reward.payee, reward.value) != (gig.wallet, gig.reward):
            problem = f"is {usdc(gig.reward)} in {gig.wallet}, its reward {usdc(reward.value)} to {reward.payee}"
            yield Difference(subject, problem)
        elif payment is not None and not _agree(payment, reward):
            yield Difference(subject, f"has a reward that is {reward.state}, and its payment is {payment.state}")

    def _movements(self) -> Iterator[Difference]:
        for row in self.books.movements.values():
            if row.nonce != self._nonce(row):
                yield Difference(_name(row), "has a nonce that is not its own")

    def _nonce(self, row: MovementRow) -> str | None:
        if row.kind == REWARD:
            return self.wallets.reward_nonce(row.subject)
        if row.kind == COMMISSION:
            return self.wallets.commission_nonce(row.subject)
        deposit = self.books.deposits.get(row.subject)
        return self.wallets.refund_nonce(deposit.asset, *deposit.source) if deposit is not None else None

    def _commissions(self) -> Iterator[Difference]:
        carried: dict[int, list[PaymentRow]] = defaultdict(list)
        for payment_id, movement_id in self.books.commissions:
            if payment_id in self.books.payments:
                carried[movement_id].append(self.books.payments[payment_id])
        for row in self.books.movements.values():
            if row.kind != COMMISSION:
                continue
            value = row.value if row.state != "void" else 0
            total = sum(payment.commission for payment in carried[row.id])
            if value != total:
                yield Difference(_name(row), f"is {usdc(value)}, and that of its payments {usdc(total)}")
            for payment in carried[row.id]:
                if row.state == "done" and payment.state != "settled":
                    yield Difference(_name(row), f"was paid, and payment {payment.id} in it is {payment.state}")

    def _refunds(self) -> Iterator[Difference]:
        rows = {m.id: m for m in self.books.movements.values() if m.kind == REFUND}
        for deposit in self.books.deposits.values():
            if deposit.refund_id is None:
                continue
            subject, refund = f"deposit {deposit.id}", rows.pop(deposit.refund_id, None)
            if refund is None or refund.subject != deposit.id or refund.value != deposit.value:
                yield Difference(subject, "has a refund that is not its own")
            elif deposit.nonce is not None and refund.payee != deposit.payer:
                yield Difference(subject, f"is refunded to {refund.payee} and {deposit.payer} paid it")
            elif refund.state == "done" and not deposit.on_chain:
                yield Difference(subject, "was refunded and is not on chain")
        for row in rows.values():
            yield Difference(_name(row), "has no deposit")


def _source(transfer: TokenTransfer) -> tuple[str | int, ...]:
    return (
        (transfer.payer, transfer.nonce) if transfer.nonce is not None else (transfer.transaction, transfer.log_index)
    )


def _unlike(subject: str, transfer: TokenTransfer, row: DepositRow | MovementRow) -> Iterator[Difference]:
    """A row that is due or off the chain has no place yet."""
    if transfer.value != row.value:
        problem = f"is {usdc(transfer.value)} on chain and {usdc(row.value)} in the ledger"
        yield Difference(subject, problem, transfer.block_number)
    if row.transaction is not None and transfer.transaction != row.transaction:
        problem = f"is in transaction {transfer.transaction} on chain and in {row.transaction} in the ledger"
        yield Difference(subject, problem, transfer.block_number)
    if row.block_number is not None and transfer.block_number != row.block_number:
        problem = f"is in block {transfer.block_number} on chain and in {row.block_number} in the ledger"
        yield Difference(subject, problem, transfer.block_number)


def _agree(payment: PaymentRow, reward: MovementRow) -> bool:
    """Nothing is paid on a deposit that is not there, and nothing is given up on one that is."""
    return reward.state == "due" or (payment.state == "settled") == (reward.state == "done")


def _name(row: MovementRow) -> str:
    of = {REWARD: "reward of gig", REFUND: "refund of deposit"}.get(row.kind, row.kind)
    return f"{of} {row.subject}"
