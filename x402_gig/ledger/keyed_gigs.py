"""Gigs that are created with an API key and paid into their own wallets: created, started once, or cancelled."""

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Struct
from sqlalchemy import Connection, bindparam, func, select, update

from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.gigs.records import GigRecord, TokenInfo
from x402_gig.ledger.chain_state import check_charging
from x402_gig.ledger.engine import InsertOrReplace
from x402_gig.ledger.gigs import WalletOf, gig_rows, insert_gig, record
from x402_gig.ledger.movements import FEE, add, due_row
from x402_gig.ledger.tables import api_keys, gig_deposits, gigs, movements


class Draft(Struct, frozen=True):
    """A gig to be created. Amounts in base units, times in Unix seconds; nothing came before `since_block`."""

    key_id: int
    terms: dict[str, Any]
    token: TokenInfo
    reward_units: int
    commission_units: int
    start_at: int
    end_at: int
    since_block: int


class Started(Struct, frozen=True):
    """What was found in a gig's wallet, `deposits` oldest first, and when the gig runs."""

    deposits: Sequence[TokenTransfer]
    surplus_units: int
    start_at: int
    end_at: int

    @property
    def payer(self) -> str:
        """The sender of the most, the earliest of equals: dust makes nobody the payer. Empty where none is known."""
        sent = Counter[str]()
        for deposit in self.deposits:
            sent[deposit.payer] += deposit.value
        return max(sent, key=sent.__getitem__, default="")


class Fee(Struct, frozen=True):
    """The commission that leaves the gig's wallet. `asset` is None for the token that we are paid in."""

    payee: str
    nonce: str
    asset: str | None


def create(connection: Connection, wallet_of: WalletOf, draft: Draft) -> tuple[int, str]:
    """The new gig's id and its wallet. Raises Unavailable in a halted ledger, whose next wallets may be used ones."""
    check_charging(connection)
    values = {
        "key_id": draft.key_id,
        "state": "created",
        "creator": "",
        "reward": draft.reward_units,
        "commission": draft.commission_units,
        "start_at": draft.start_at,
        "end_at": draft.end_at,
        "since_block": draft.since_block,
    }
    return insert_gig(connection, wallet_of, draft.terms, draft.token, values)


def find(connection: Connection, gig_id: int, key_id: int | None = None) -> GigRecord | None:
    """A gig that was created with this key, or with any."""
    mine = gigs.c.key_id.is_not(None) if key_id is None else gigs.c.key_id == key_id
    row = connection.execute(gig_rows().where(gigs.c.id == gig_id, mine)).mappings().first()
    return record(row) if row is not None else None


def newest(connection: Connection, limit: int, state: str | None = None) -> list[tuple[GigRecord, str]]:
    """Gigs that were created with keys, the newest first, each with its key's prefix."""
    query = gig_rows().add_columns(api_keys.c.prefix).join(api_keys, api_keys.c.id == gigs.c.key_id)
    if state is not None:
        query = query.where(gigs.c.state == state)
    rows = connection.execute(query.order_by(gigs.c.id.desc()).limit(limit)).mappings()
    return [(record(row), row["prefix"]) for row in rows]


def wallet_since(connection: Connection, gig_id: int) -> tuple[str, int]:
    """The gig's wallet, and the block before which nothing can have come to it."""
    wallet, since = connection.execute(select(gigs.c.wallet, gigs.c.since_block).where(gigs.c.id == gig_id)).one()
    return wallet, since


def since_block(connection: Connection, gig_id: int) -> int:
    return int(connection.execute(select(gigs.c.since_block).where(gigs.c.id == gig_id)).scalar_one())


# Only one may start a gig at a time. Whoever begins takes a higher number than all before. What is written in the end
# is written under that number or not at all, so a starter who lost his turn while he was busy changes nothing.


def take_turn(connection: Connection, gig_id: int, lease_s: int) -> int | None:
    """The number to start this gig under; None while somebody else has the turn, for `lease_s` seconds at most.

    None also when it is not to be started any more: a live gig keeps the number of its start, see `go_live`.
    """
    now = int(time.time())
    free = update(gigs).where(gigs.c.id == gig_id, gigs.c.state == "created", gigs.c.start_until <= now)
    taken = free.values(start_fence=gigs.c.start_fence + 1, start_until=now + lease_s)
    return connection.execute(taken.returning(gigs.c.start_fence)).scalar_one_or_none()


def end_turn(connection: Connection, gig_id: int, fence: int) -> None:
    connection.execute(update(gigs).where(gigs.c.id == gig_id, gigs.c.start_fence == fence).values(start_until=0))


def go_live(connection: Connection, gig: GigRecord, fence: int, started: Started, fee: Fee) -> bool:
    """Make it live, once, and note that its commission is due; False when somebody else's turn came meanwhile.

    True also when this turn has made it live before: the answer to that commit was lost.
    """
    mine = update(gigs).where(gigs.c.id == gig.gig_id, gigs.c.state == "created", gigs.c.start_fence == fence)
    values = {
        "state": "live",
        "creator": started.payer,
        "surplus": started.surplus_units,
        "start_at": started.start_at,
        "end_at": started.end_at,
        "start_until": 0,
    }
    if connection.execute(mine.values(values)).rowcount != 1:
        before = select(gigs.c.id).where(gigs.c.id == gig.gig_id, gigs.c.state == "live", gigs.c.start_fence == fence)
        return connection.execute(before).first() is not None
    record_deposits(connection, gig.gig_id, started.deposits)
    if gig.commission_units:
        number, units = gig.gig_id, gig.commission_units
        due = due_row(FEE, number, fee.payee, units, fee.nonce, source_gig=number, asset=fee.asset)
        add(connection, due)
    return True


_PUT = InsertOrReplace(gig_deposits, ["gig_id", "transaction", "log_index"], ["block_number", "block_hash", "on_chain"])


def record_deposits(connection: Connection, gig_id: int, transfers: Iterable[TokenTransfer]) -> None:
    rows = [
        {
            "gig_id": gig_id,
            "payer": t.payer,
            "value": t.value,
            "transaction": t.transaction,
            "log_index": t.log_index,
            "block_number": t.block_number,
            "block_hash": t.block_hash,
            "on_chain": 1,
            "created_at": int(time.time()),
        }
        for t in transfers
    ]
    if rows:
        _PUT(connection, rows)


def forget_block(connection: Connection, number: int, block_hash: str) -> None:
    """What came in another block of this height is not on chain: its gig is suspended until it is there again."""
    replaced = update(gig_deposits).where(
        gig_deposits.c.block_number == number, gig_deposits.c.block_hash != block_hash, gig_deposits.c.on_chain == 1
    )
    ids = connection.execute(replaced.values(on_chain=0).returning(gig_deposits.c.gig_id)).scalars().all()
    connection.execute(update(gigs).where(gigs.c.id.in_(ids)).values(is_funded=0))


def doubt(connection: Connection, gig_id: int) -> None:
    """Its funding may have been taken away: it is looked at again."""
    connection.execute(update(gigs).where(gigs.c.id == gig_id).values(is_funded=0))


_SUSPENDED = (
    gig_rows()
    .where(gigs.c.key_id.is_not(None), gigs.c.state == "live", gigs.c.is_funded == 0, gigs.c.id > bindparam("after"))
    .order_by(gigs.c.id)
    .limit(bindparam("limit"))
)


def suspended(connection: Connection, limit: int, after: int = 0) -> list[GigRecord]:
    """Live gigs whose funding a reorganisation took away, the oldest first; those with higher numbers than `after`."""
    rows = connection.execute(_SUSPENDED, {"limit": limit, "after": after}).mappings()
    return [record(row) for row in rows]


def funded_again(connection: Connection, gig_id: int, transfers: Iterable[TokenTransfer]) -> None:
    record_deposits(connection, gig_id, transfers)
    connection.execute(update(gigs).where(gigs.c.id == gig_id).values(is_funded=1))


def newest_payout_block(connection: Connection, gig_id: int) -> int:
    """The highest block in which something left the gig's wallet; 0 when nothing did."""
    query = select(func.max(movements.c.block_number)).where(movements.c.source_gig == gig_id)
    return connection.execute(query).scalar_one() or 0


def give_back(connection: Connection, gig: GigRecord, units: int) -> None:
    """So much of its surplus is spoken for; a gig that is not live is cancelled by that."""
    left = {"surplus": max(0, gig.surplus_units - units)} if gig.state == "live" else {"state": "cancelled"}
    connection.execute(update(gigs).where(gigs.c.id == gig.gig_id).values(left))
