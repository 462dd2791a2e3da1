"""Gigs in the ledger. One that was bought is written in the transaction that settles its payment, so none is unpaid."""

import json
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Integer,
    RowMapping,
    ScalarSelect,
    Select,
    bindparam,
    func,
    insert,
    literal_column,
    or_,
    select,
)

from x402_gig.errors import Unavailable
from x402_gig.gigs.listing import GigQuery, Page
from x402_gig.gigs.pricing import USDC_DECIMALS, USDC_SYMBOL
from x402_gig.gigs.records import GigRecord, TokenInfo
from x402_gig.ledger import gig_ids
from x402_gig.ledger.movements import FEE, REWARD, Row, add_all, due_row
from x402_gig.ledger.tables import commissions, gig_deposits, gigs, movements, payments
from x402_gig.payments.order import Purchase

# A page is looked for among so many ids first, right below where it begins: mostly they fill it.
NEAR = 1000
# And then among so many: a filter that matches nothing must not read the whole ledger. The next page goes on below.
MOST = 10_000

WalletOf = Callable[[int], str]
NonceOf = Callable[[int], str]


class GigShelf:
    """Where gigs are put, inside a settling transaction: see `open_shelf`."""

    def __init__(self, connection: Connection, most: int, wallet_of: WalletOf, reward_nonce_of: NonceOf) -> None:
        self._connection = connection
        self._wallet_of = wallet_of
        self._reward_nonce_of = reward_nonce_of
        ids = gig_ids.standing(connection)
        self._ids, self._looked_to = deque(range(ids.next, ids.next + most)), ids.looked_to
        self._gigs: list[Row] = []
        self._rewards: list[Row] = []

    def add(
        self, purchase: Purchase, *, reward_units: int, commission_units: int, start_at: int, end_at: int
    ) -> tuple[int, str]:
        """Make the gig and note that its reward is due; its id and its wallet's address. Raises Unavailable."""
        gig_id = self._ids.popleft()
        if gig_id > self._looked_to:
            raise Unavailable(gig_ids.NOT_LOOKED_AT)
        wallet = self._wallet_of(gig_id)
        usdc = TokenInfo(purchase.terms.get("token_address", ""), USDC_SYMBOL, USDC_DECIMALS)
        values = {
            "id": gig_id,
            "wallet": wallet,
            "payment_id": purchase.payment_id,
            "creator": purchase.payer,
            "reward": reward_units,
            "commission": commission_units,
            "start_at": start_at,
            "end_at": end_at,
        }
        self._gigs.append(_row(purchase.terms, usdc, values))
        self._rewards.append(due_row(REWARD, gig_id, wallet, reward_units, self._reward_nonce_of(gig_id)))
        return gig_id, wallet

    def write(self) -> None:
        if self._gigs:
            gig_ids.take(self._connection, self._gigs[-1]["id"])
            self._connection.execute(_INSERT, self._gigs)
            add_all(self._connection, self._rewards)


@contextmanager
def open_shelf(connection: Connection, most: int, wallet_of: WalletOf, reward_nonce_of: NonceOf) -> Iterator[GigShelf]:
    """For so many gigs at most. What is put on it is written at the end, together."""
    shelf = GigShelf(connection, most, wallet_of, reward_nonce_of)
    yield shelf
    shelf.write()


_INSERT = insert(gigs)


def insert_gig(
    connection: Connection, wallet_of: WalletOf, terms: Mapping[str, Any], token: TokenInfo, values: Mapping[str, Any]
) -> tuple[int, str]:
    """The new gig's id and its wallet. Raises Unavailable when all ids that may be given out are reserved."""
    ids = gig_ids.standing(connection)
    if not ids.room:
        raise Unavailable(gig_ids.NOT_LOOKED_AT)
    gig_id = ids.next
    gig_ids.take(connection, gig_id)
    wallet = wallet_of(gig_id)
    connection.execute(_INSERT, _row(terms, token, {**values, "id": gig_id, "wallet": wallet}))
    return gig_id, wallet


def _row(terms: Mapping[str, Any], token: TokenInfo, values: Mapping[str, Any]) -> Row:
    return {
        "terms": json.dumps(terms),
        "gig_type": terms.get("gig_type", ""),
        "platform": terms.get("platform", ""),
        "token": token.address,
        "symbol": token.symbol,
        "decimals": token.decimals,
        "created_at": int(time.time()),
        **values,
    }


def find_gig(connection: Connection, gig_id: int, key_id: int | None = None) -> GigRecord | None:
    """None also when it is not live and the key that asks is not the one that created it."""
    row = connection.execute(_FIND, {"gig_id": gig_id, "asked_by": key_id}).mappings().first()
    return record(row) if row is not None else None


_NEWEST = select(func.max(gigs.c.id))


def list_gigs(connection: Connection, wanted: GigQuery, now: int, key_id: int | None = None) -> Page:
    """Live gigs whose deposit is on chain, at the Unix second `now`; or those that this key has yet to start.

    The newest first, by id: a page goes on where the last one ended, whatever has begun and ended since. One may have
    fewer gigs than its limit, or none, and not be the last.
    """
    below = wanted.cursor or (connection.execute(_NEWEST).scalar_one() or 0) + 1
    conditions = [gigs.c.id < below, *_wanted(wanted, now, key_id)]
    rows = _rows(connection, wanted, [gigs.c.id >= below - NEAR, *conditions])
    end = None
    if len(rows) <= wanted.limit and below > NEAR:
        among, end = _among(connection, wanted, _examined(wanted, now, key_id, below))
        rows = _rows(connection, wanted, [*among, *conditions])
    page = [record(row) for row in rows[: wanted.limit]]
    return Page(page, page[-1].gig_id if len(rows) > wanted.limit else end)


def _rows(connection: Connection, wanted: GigQuery, conditions: Iterable[ColumnElement[bool]]) -> Sequence[RowMapping]:
    query = gig_rows().where(*conditions).order_by(gigs.c.id.desc()).limit(wanted.limit + 1)
    return connection.execute(query).mappings().all()


def _examined(wanted: GigQuery, now: int, key_id: int | None, below: int) -> Select[Any]:
    """The ids among which a page is looked for, newest first: those that an index leads to, `MOST` of them at most."""
    query = select(gigs.c.id).where(gigs.c.id < below).limit(MOST)
    if wanted.creator is not None:
        query = query.where(gigs.c.creator == wanted.creator)
    if wanted.status == "created":
        query = query.where(gigs.c.key_id == key_id)
    if wanted.status not in RUNNING:
        return query.order_by(gigs.c.id.desc())
    # Written out: with a parameter instead, a database does not know that the partial index will do. Ordered by an
    # expression: by the bare column, a database would rather walk through all that ever ended.
    live = gigs.c.state == literal_column("'live'")
    return query.where(live, gigs.c.end_at > now).order_by((gigs.c.id + 0).desc())


def _among(
    connection: Connection, wanted: GigQuery, examined: Select[Any]
) -> tuple[list[ColumnElement[bool]], int | None]:
    """The condition to be one of these ids, and the one below which the next page goes on; None without such a page."""
    ids = examined.subquery()
    count, oldest = connection.execute(select(func.count(), func.min(ids.c.id))).one()
    # A range: of the ids themselves, PostgreSQL makes no bound.
    among = [gigs.c.id >= (oldest or 0), *([gigs.c.id.in_(examined)] if wanted.status in RUNNING else [])]
    return among, oldest if count == MOST else None


def _wanted(wanted: GigQuery, now: int, key_id: int | None) -> Iterator[ColumnElement[bool]]:
    if wanted.status == "created":
        yield gigs.c.state == "created"
        yield gigs.c.key_id == key_id
    else:
        yield gigs.c.state == "live"
        yield or_(payments.c.state == "settled", gigs.c.payment_id.is_(None) & (gigs.c.is_funded == 1))
        yield from _STATUS[wanted.status](now)
    if wanted.platforms:
        yield gigs.c.platform.in_(wanted.platforms)
    for column in (gigs.c.gig_type, gigs.c.token, gigs.c.creator):
        if (value := getattr(wanted, column.name)) is not None:
            yield column == value


def _not_ended(now: int) -> ColumnElement[bool]:
    """Not the bare column, whose index leads to all of them: which ids are looked at is settled already."""
    return func.coalesce(gigs.c.end_at, 0) > now


RUNNING = ("active", "scheduled")
# The start belongs to the gig, the end does not.
_STATUS: Mapping[str, Callable[[int], tuple[ColumnElement[bool], ...]]] = {
    "active": lambda now: (_not_ended(now), gigs.c.start_at <= now),
    "scheduled": lambda now: (_not_ended(now), gigs.c.start_at > now),
    "ended": lambda now: (gigs.c.end_at <= now,),
    "all": lambda now: (),
}


def gig_rows() -> Select[Any]:
    """Gigs with their money; `record` reads what it selects."""
    reward, commission, fee = (movements.alias(name) for name in ("reward", "commission", "fee"))
    paid_by = _largest_deposit(gig_deposits.c.payer == gigs.c.creator)
    return (
        select(
            gigs,
            payments.c.state.label("payment_state"),
            func.coalesce(payments.c.transaction, paid_by, _largest_deposit()).label("deposit"),
            reward.c.transaction.label("reward_transaction"),
            func.coalesce(commission.c.transaction, fee.c.transaction).label("commission_transaction"),
        )
        .outerjoin(payments, payments.c.id == gigs.c.payment_id)
        .outerjoin(reward, (reward.c.kind == REWARD) & (reward.c.subject == gigs.c.id))
        .outerjoin(fee, (fee.c.kind == FEE) & (fee.c.subject == gigs.c.id))
        .outerjoin(commissions, (commissions.c.payment_id == payments.c.id) & (commissions.c.is_void == 0))
        .outerjoin(commission, commission.c.id == commissions.c.movement_id)
    )


def _largest_deposit(*conditions: ColumnElement[bool]) -> ScalarSelect[str]:
    """Its transaction, of a gig that was created with a key."""
    found = select(gig_deposits.c.transaction).where(gig_deposits.c.gig_id == gigs.c.id, gig_deposits.c.on_chain == 1)
    # Amounts are digits: of two the longer one is more.
    size = func.length(gig_deposits.c.value)
    found = found.where(*conditions).order_by(size.desc(), gig_deposits.c.value.desc(), gig_deposits.c.id)
    return found.limit(1).scalar_subquery()


_FIND = gig_rows().where(
    gigs.c.id == bindparam("gig_id"), or_(gigs.c.state == "live", gigs.c.key_id == bindparam("asked_by", type_=Integer))
)


def record(row: RowMapping) -> GigRecord:
    bought = row["payment_id"] is not None
    return GigRecord(
        gig_id=row["id"],
        key_id=row["key_id"],
        state=row["state"],
        wallet=row["wallet"],
        creator=row["creator"],
        terms=json.loads(row["terms"]),
        token=TokenInfo(row["token"], row["symbol"], row["decimals"]),
        reward_units=row["reward"],
        commission_units=row["commission"],
        surplus_units=row["surplus"],
        start_at=row["start_at"],
        end_at=row["end_at"],
        created_at=row["created_at"],
        suspended=row["payment_state"] != "settled" if bought else not row["is_funded"],
        deposit_transaction=row["deposit"],
        reward_transaction=row["reward_transaction"],
        commission_transaction=row["commission_transaction"],
    )
