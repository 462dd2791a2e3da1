"""`x402-gig audit`: does the chain say what the ledger says? Nothing is written, and a live server is not disturbed."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec import Struct

from x402_gig.audit.comparison import Comparison, Difference
from x402_gig.audit.gig_wallets import GigWallets
from x402_gig.audit.totals import Totals
from x402_gig.chainsync.history import History, insist
from x402_gig.errors import ChainUnavailable
from x402_gig.evm.node import Block, Node
from x402_gig.ledger.audit import Books, read_books
from x402_gig.operator.opening import Office
from x402_gig.operator.words import usdc

# A row may be written, and a block replaced, between the look at the one side and at the other.
LOOKS = 4
PAUSE_S = 1.0


class Report(Struct, frozen=True):
    """What was found up to `block`. `notes`: what else a person should know.

    `keyed_gigs`: how many are live that were created with a key.
    """

    network: str
    intake: str
    begin: int
    block: Block
    totals: Totals
    keyed_gigs: int
    differences: list[Difference]
    notes: list[str]

    @property
    def adds_up(self) -> bool:
        return not self.differences


@dataclass
class Audit:
    """`expect` is told how many blocks there are to read, `progress` how many were."""

    office: Office
    node: Node
    expect: Callable[[int], None] = lambda _: None
    progress: Callable[[int], None] = lambda _: None
    notes: list[str] = field(default_factory=list)
    _history: History | None = field(default=None, init=False)

    async def run(self) -> Report:
        """Look until nothing differs, or the same differs twice. Raises Unavailable."""
        seen: set[str] = set()
        doubted: set[int] = set()
        for look in range(LOOKS):
            report = await self._look(doubted)
            subjects = {difference.subject for difference in report.differences}
            if subjects <= seen or look == LOOKS - 1:
                break
            seen = subjects
            doubted = {d.block_number for d in report.differences if d.block_number is not None}
            await asyncio.sleep(PAUSE_S)
        return report

    async def _look(self, doubted: set[int]) -> Report:
        """Compare all; the blocks in which something differed are read again, by themselves."""
        books, block = await insist(self._books)
        history = self._history_of(books)
        # What is not final may have been replaced since the last look.
        depth = self.office.settings.reorg_depth
        history.forget_after(block.number - depth)
        self.expect(block.number - history.begin)
        await history.read_to(block.number)
        for number in sorted(doubted):
            if history.begin < number <= history.last:
                await history.read_block(number)
        money = await self._money(books, history)
        rows = Comparison(books, history, self.office.wallets).differences()
        halted = [Difference("server", f"is halted: {books.halt}")] if books.halt else []
        keyed = await GigWallets(self.node, books, self.office.wallets, block, depth).differences()
        return Report(
            network=self.office.settings.network,
            intake=history.intake,
            begin=history.begin,
            block=block,
            totals=Totals.of(books, history, await history.balance()),
            keyed_gigs=sum(gig.state == "live" for gig in books.keyed.values()),
            differences=[*money, *rows, *keyed, *halted],
            notes=list(dict.fromkeys([*self.notes, *map(str, books.skips)])),
        )

    async def _books(self) -> tuple[Books, Block]:
        """The ledger, and the block up to which it has read the chain. ChainUnavailable in a reorganisation."""
        books = await self.office.ledger.read(read_books)
        block = await self.node.block(books.cursor.number)
        if block is None or block.hash != books.cursor.hash:
            raise ChainUnavailable(
                f"block {books.cursor.number}, up to which the ledger has read, is not on chain: the node is behind, "
                "or the block was replaced and the server has to read on"
            )
        return books, block

    def _history_of(self, books: Books) -> History:
        if self._history is None or self._history.begin != books.begin:
            self._history = History(self.node, self.office.wallets.intake.address, books.begin, self.progress)
        return self._history

    async def _money(self, books: Books, history: History) -> list[Difference]:
        """Start + received - sent is what the intake holds, or there is more to it than the logs say."""
        if not Totals.of(books, history, await history.balance()).gap:
            return []
        await self._read_singly(history)
        gap = Totals.of(books, history, await history.balance()).gap
        return await self._unexplained(books, history, gap) if gap else []

    async def _read_singly(self, history: History) -> None:
        doubtful = [number for number in await history.doubtful() if number not in history.singly]
        if doubtful:
            where = f"{len(doubtful)} from {doubtful[0]} to {doubtful[-1]}"
            self.notes.append(f"The logs did not explain the balance: blocks were read one by one ({where})")
            self.expect(history.last - history.begin + len(doubtful))
        for number in doubtful:
            await history.read_block(number)
            self.progress(1)

    async def _unexplained(self, books: Books, history: History, gap: int) -> list[Difference]:
        held, begin, found = await history.balance_at(history.begin), history.begin, []
        if held is not None and held != books.start_balance:
            said = f"{usdc(books.start_balance)} in the ledger and {usdc(held)} on chain"
            found.append(Difference("start", f"the intake held {said} in block {begin}, where the ledger begins"))
            gap -= held - books.start_balance
        if gap:
            since = min(await history.doubtful(), default=history.last)
            how = f"{usdc(abs(gap))} {'more' if gap > 0 else 'less'} than its logs explain"
            found.append(Difference("intake", f"holds {how}, since block {since}"))
        return found
