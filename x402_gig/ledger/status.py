"""How much is not final; every query here reads a partial index of what is under way."""

import time

from msgspec import Struct
from sqlalchemy import Connection, func, select

from x402_gig.ledger.deposits import is_free
from x402_gig.ledger.payments import is_flagged
from x402_gig.ledger.tables import deposits, movements, payments, slots

MOST = 1000


class Status(Struct, frozen=True):
    """`counts` by what it is, deposits up to `MOST`.

    `oldest_s`: the age of the oldest payment that is not final, 0 without one.
    """

    counts: dict[str, int]
    oldest_s: int


def status(connection: Connection) -> Status:
    is_open = payments.c.state == "open"
    count = select(func.count())
    counts = {
        "payments_open": count.select_from(payments).where(is_open),
        "payments_flagged": count.select_from(payments).where(is_flagged()),
        "slots_open": count.select_from(slots).where(slots.c.state == "open"),
        # Anybody can make more of them, for nothing but gas.
        "deposits_unclaimed": count.select_from(select(deposits.c.id).where(*is_free()).limit(MOST).subquery()),
        **{
            f"{kind}s_due": count.select_from(movements).where(movements.c.state == "due", movements.c.kind == kind)
            for kind in ("reward", "commission", "refund")
        },
    }
    oldest = connection.execute(select(func.min(payments.c.created_at)).where(is_open)).scalar_one()
    return Status(
        {name: connection.execute(query).scalar_one() for name, query in counts.items()},
        int(time.time()) - oldest if oldest is not None else 0,
    )
