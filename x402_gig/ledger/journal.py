"""What became of each payment and when; rows are only added."""

import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from sqlalchemy import Connection, insert, select

from x402_gig.ledger.tables import journal

_ADD = insert(journal)


def note(connection: Connection, payment_ids: Iterable[int], state: str, reason: str = "") -> None:
    note_all(connection, [{"payment_id": i, "transaction": None} for i in payment_ids], state, reason)


def note_all(connection: Connection, rows: Iterable[Mapping[str, object]], state: str, reason: str = "") -> None:
    """The same, for rows of `payment_id` and `transaction`."""
    now = int(time.time())
    full = [{**row, "state": state, "reason": reason, "at": now} for row in rows]
    if full:
        connection.execute(_ADD, full)


class Entry(NamedTuple):
    number: int
    payment_id: int
    reason: str


def newest(connection: Connection, payment_id: int) -> Entry:
    """The last entry of a payment that has one."""
    entries = select(journal.c.id, journal.c.payment_id, journal.c.reason).where(journal.c.payment_id == payment_id)
    return Entry._make(connection.execute(entries.order_by(journal.c.id.desc()).limit(1)).one())


def has(connection: Connection, entry: Entry) -> bool:
    """Was it committed? The number of one that was not may be another entry's."""
    same = (journal.c.id == entry.number, journal.c.payment_id == entry.payment_id, journal.c.reason == entry.reason)
    return connection.execute(select(journal.c.id).where(*same)).first() is not None
