"""What a ledger belongs to: one chain (id and genesis) and one intake; and how far it has read that chain."""

import time

from msgspec import Struct
from msgspec.structs import asdict
from sqlalchemy import Connection, insert, select, update

from x402_gig.errors import Unavailable
from x402_gig.ledger.tables import ledger

_HALT = select(ledger.c.funding_halt)
NOT_SELLING = "This server does not sell at the moment: its operator must look into its ledger"


class Binding(Struct, frozen=True):
    chain_id: int
    genesis: str
    intake: str


class Cursor(Struct, frozen=True):
    """Every deposit up to this block is in the ledger."""

    number: int
    hash: str


def bind(connection: Connection, binding: Binding, cursor: Cursor, balance: int) -> None:
    """Make a fresh ledger this chain's and this intake's, read up to `cursor`, where the intake holds `balance`."""
    values = {
        **asdict(binding),
        "cursor_number": cursor.number,
        "cursor_hash": cursor.hash,
        "start_number": cursor.number,
        "start_balance": balance,
        "base_balance": balance,
    }
    connection.execute(insert(ledger).values(id=1, created_at=int(time.time()), funding_halt="", **values))


def bound_to(connection: Connection) -> Binding | None:
    row = connection.execute(select(ledger.c.chain_id, ledger.c.genesis, ledger.c.intake)).first()
    return Binding(*row) if row is not None else None


def cursor(connection: Connection) -> Cursor:
    row = connection.execute(select(ledger.c.cursor_number, ledger.c.cursor_hash)).one()
    return Cursor(*row)


def start_number(connection: Connection) -> int:
    """The block after which all that moved is in the ledger."""
    return int(connection.execute(select(ledger.c.start_number)).scalar_one())


def move_cursor(connection: Connection, to: Cursor) -> None:
    connection.execute(update(ledger).values(cursor_number=to.number, cursor_hash=to.hash))


def doubts(connection: Connection) -> int:
    """As long as this stays the same, nobody has undone what another server has read."""
    return connection.execute(select(ledger.c.doubts)).scalar() or 0


def doubt(connection: Connection) -> int:
    """Have all servers read the blocks of late again; the new number of `doubts`."""
    grown = update(ledger).values(doubts=ledger.c.doubts + 1)
    return connection.execute(grown.returning(ledger.c.doubts)).scalar() or 0


def halt_funding(connection: Connection, reason: str) -> None:
    """Sign nothing of ours any more until a person has looked."""
    connection.execute(update(ledger).where(ledger.c.funding_halt == "").values(funding_halt=reason))


def check_charging(connection: Connection) -> None:
    """Raises Unavailable in a halted ledger: nobody may be charged any more, and a server may not know of it yet."""
    if funding_halt(connection):
        raise Unavailable(NOT_SELLING)


def funding_halt(connection: Connection) -> str:
    """Why nothing is signed any more; empty while all is well, and in a ledger that is not bound yet."""
    return connection.execute(_HALT).scalar() or ""
