"""The wallets of gigs that were created with a key: what came, what left, and what is there, beside the ledger."""

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from x402_gig.audit.comparison import Difference
from x402_gig.chainsync.history import in_ranges, insist
from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.evm.node import Block, Node
from x402_gig.evm.wallets import Wallets
from x402_gig.ledger.audit import Books, GigDepositRow, KeyedRow, MovementRow
from x402_gig.ledger.debts import debt
from x402_gig.ledger.movements import FEE
from x402_gig.treasury.gig_wallet import unreceipted

WALLETS_ASKED = 100


@dataclass
class GigWallets:
    """Of the ledger's `books` up to `block`. Money in other tokens than a gig's own is nobody's here.

    `reorg_depth` blocks below it nothing changes any more.
    """

    node: Node
    books: Books
    wallets: Wallets
    block: Block
    reorg_depth: int
    _came: dict[str, list[TokenTransfer]] = field(default_factory=lambda: defaultdict(list), init=False)
    _left: dict[str, list[TokenTransfer]] = field(default_factory=lambda: defaultdict(list), init=False)
    _held: dict[str, int | None] = field(default_factory=dict, init=False)

    async def differences(self) -> list[Difference]:
        """Raises Unavailable."""
        by_token: dict[str, list[KeyedRow]] = defaultdict(list)
        for gig in self.books.keyed.values():
            if gig.state != "created":
                by_token[gig.token].append(gig)
        for token, gigs in by_token.items():
            for start in range(0, len(gigs), WALLETS_ASKED):
                await self._read(token, gigs[start : start + WALLETS_ASKED])
        compared = [
            found for gig in self.books.keyed.values() if gig.state != "created" for found in self._compare(gig)
        ]
        return compared + [found async for found in self._stuck()]

    async def _stuck(self) -> AsyncIterator[Difference]:
        """What was sent and goes on only when the operator says how."""
        height = max(0, self.block.number - self.reorg_depth)
        for payout in self.books.open_payouts:
            deep = await insist(partial(self.node.existing, height))
            if await insist(partial(self.node.nonce, payout.wallet, deep)) <= payout.nonce:
                continue
            receipts = [await insist(partial(self.node.receipt, hash_)) for hash_ in payout.transactions]
            if not any(receipts):
                yield Difference(f"gig {payout.gig_id}", unreceipted(payout.gig_id, payout.wallet, payout.nonce))

    async def _read(self, token: str, gigs: Sequence[KeyedRow]) -> None:
        accounts = [gig.wallet for gig in gigs]
        first, last = min(gig.since_block for gig in gigs), self.block.number
        for transfer in await in_ranges(partial(self.node.token_deposits, token, accounts), first, last):
            self._came[transfer.payee].append(transfer)
        for transfer in await in_ranges(partial(self.node.token_payments, token, accounts), first, last):
            self._left[transfer.payer].append(transfer)
        held = await insist(lambda: self.node.token_balances(token, accounts, self.block))
        self._held.update(zip(accounts, held, strict=True))

    def _compare(self, gig: KeyedRow) -> Iterator[Difference]:
        subject = f"gig {gig.id}"
        if gig.wallet != self.wallets.gig_address(gig.id):
            yield Difference(subject, f"has a wallet that is not its own: {gig.wallet}")
        deposits = [row for row in self.books.gig_deposits.values() if row.gig_id == gig.id and row.on_chain]
        payouts = [row for row in self.books.payouts.values() if row.source_gig == gig.id]
        yield from self._deposits(subject, gig, deposits)
        yield from self._payouts(subject, gig, payouts)
        if gig.state == "live":
            yield from self._commission(subject, gig, payouts)
        yield from self._money(subject, gig, payouts)

    def _deposits(self, subject: str, gig: KeyedRow, rows: Sequence[GigDepositRow]) -> Iterator[Difference]:
        found = {(t.transaction, t.log_index): t for t in self._came[gig.wallet]}
        for row in rows:
            transfer = found.get((row.transaction, row.log_index))
            if row.block_number <= self.block.number and (transfer is None or transfer.value != row.value):
                problem = f"was funded by {row.value} base units in {row.transaction}, which is not on chain"
                yield Difference(subject, problem)

    def _payouts(self, subject: str, gig: KeyedRow, rows: Sequence[MovementRow]) -> Iterator[Difference]:
        done = {row.transaction or "": row for row in rows if row.is_done_by(self.block.number)}
        sent = {transfer.transaction for transfer in self._left[gig.wallet]}
        signed = {
            hash_ for payout in self.books.open_payouts if payout.gig_id == gig.id for hash_ in payout.transactions
        }
        for transaction in sent - signed - {row.transaction for row in rows}:
            yield Difference(subject, f"its wallet paid in {transaction}, and this ledger did not sign that")
        for transaction in done.keys() - sent:
            yield Difference(_name(done[transaction]), "is done in the ledger and not on chain")
        for row in rows:
            if row.nonce != self._nonce(row):
                yield Difference(_name(row), "has a nonce that is not its own")

    def _nonce(self, row: MovementRow) -> str:
        return (self.wallets.fee_nonce if row.kind == FEE else self.wallets.surplus_nonce)(row.subject)

    def _commission(self, subject: str, gig: KeyedRow, rows: Sequence[MovementRow]) -> Iterator[Difference]:
        fees = [row.value for row in rows if row.kind == FEE]
        if fees != ([gig.commission] if gig.commission else []):
            yield Difference(subject, f"has a commission of {gig.commission} base units, and {fees} leave its wallet")

    def _money(self, subject: str, gig: KeyedRow, rows: Sequence[MovementRow]) -> Iterator[Difference]:
        owed = debt(gig.state, gig.reward, (row.value for row in rows if not row.is_done_by(self.block.number)))
        held = self._held[gig.wallet]
        if gig.is_funded and owed and (held is None or held < owed):
            problem = f"owes {owed} base units of {gig.token}, and its wallet holds {held}"
            yield Difference(subject, problem)


def _name(row: MovementRow) -> str:
    return f"{row.kind} {row.subject}"
