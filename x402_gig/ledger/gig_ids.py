"""The ids of the next gigs. A gig's wallet and nonces follow from its id, so an id is given out once and in order.

An id is given out only after its wallet was looked at on the chain: a ledger that was restored from an old copy would
give used wallets away. Each open payment has an id in store, for money may have moved already when its gig is made.
"""

import time

from msgspec import Struct
from sqlalchemy import Connection, bindparam, func, insert, literal_column, select, update

from x402_gig.ledger.tables import gig_ids, payments, skipped_ids

NOT_LOOKED_AT = "No gig can be made at the moment: the wallets of the next ones are being looked at"


class Standing(Struct, frozen=True):
    """The next id, the last one whose wallet was looked at, and how many of those between open payments may need."""

    next: int
    looked_to: int
    reserved: int

    @property
    def room(self) -> int:
        """How many more gigs can be sold."""
        return max(0, self.looked_to - self.next + 1 - self.reserved)


class Skip(Struct, frozen=True):
    """The ids from `first` to `last` are given to no gig: `wallet`, that of the last one, was used already."""

    first: int
    last: int
    wallet: str

    def __str__(self) -> str:
        ids = f"gig {self.last} is" if self.first == self.last else f"gigs {self.first} to {self.last} are"
        used = f"the wallet {self.wallet} of gig {self.last}"
        return f"{ids} skipped: {used} was used before this ledger gave it out, so it has forgotten gigs"


_RESERVED = (
    select(func.count()).select_from(payments).where(payments.c.state == literal_column("'open'")).scalar_subquery()
)
_STANDING = select(gig_ids.c.next, gig_ids.c.looked_to, _RESERVED)
_TAKE = update(gig_ids).values(next=bindparam("last") + 1)


def standing(connection: Connection) -> Standing:
    return Standing(*connection.execute(_STANDING).one())


def room(connection: Connection) -> int:
    """How many payments can be written down."""
    return standing(connection).room


def take(connection: Connection, last: int) -> None:
    """All ids up to `last` are given out."""
    connection.execute(_TAKE, {"last": last})


def note_looked(connection: Connection, last: int, skipped_to: int, wallet: str, *, anew: bool) -> Skip | None:
    """The wallets from the next id to `last` were looked at; `wallet` is the last used one, of the id `skipped_to`.

    `anew`: nothing counts that was looked at before. What is skipped, if anything is: a gig may have been made since
    the look, and its wallet be used by now.
    """
    now = standing(connection)
    skip = Skip(now.next, skipped_to, wallet) if skipped_to >= now.next else None
    if skip is not None:
        row = {"first": skip.first, "last": skip.last, "wallet": skip.wallet, "created_at": int(time.time())}
        connection.execute(insert(skipped_ids), row)
    following = max(now.next, skipped_to + 1)
    looked_to = last if anew else max(last, now.looked_to)
    connection.execute(update(gig_ids).values(next=following, looked_to=looked_to))
    return skip


def skips(connection: Connection) -> list[Skip]:
    query = select(skipped_ids.c.first, skipped_ids.c.last, skipped_ids.c.wallet).order_by(skipped_ids.c.first)
    return [Skip(*row) for row in connection.execute(query)]
