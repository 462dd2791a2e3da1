"""What became of each payment and when; rows are only added."""

import time
from collections.abc import Iterable, Mapping

from sqlalchemy import Connection, insert

from x402_gig.store.tables import journal

_ADD = insert(journal)


def note(connection: Connection, payment_ids: Iterable[int], state: str, reason: str = "") -> None:
    note_all(connection, [{"payment_id": i, "transaction": None} for i in payment_ids], state, reason)


def note_all(connection: Connection, rows: Iterable[Mapping[str, object]], state: str, reason: str = "") -> None:
    """The same, for rows of `payment_id` and `transaction`."""
    now = int(time.time())
    full = [{**row, "state": state, "reason": reason, "at": now} for row in rows]
    if full:
        connection.execute(_ADD, full)
