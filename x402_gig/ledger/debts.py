"""What the wallet of a gig owes: one answer for all who take something out of it, or look whether all is there."""

from collections.abc import Iterable

from sqlalchemy import Connection, bindparam, select

from x402_gig.ledger.tables import gigs, movements

_GIG = select(gigs.c.state, gigs.c.reward).where(gigs.c.id == bindparam("gig_id"))
_LEAVING = select(movements.c.value).where(movements.c.source_gig == bindparam("gig_id"), movements.c.state == "due")


def debt(state: str, reward: int, leaving: Iterable[int]) -> int:
    """In base units: the reward of a gig that is live, and besides all that is to leave its wallet."""
    return sum(leaving, reward if state == "live" else 0)


def owed(connection: Connection, gig_id: int) -> int:
    """What the gig's wallet owes now, in base units of its token."""
    state, reward = connection.execute(_GIG, {"gig_id": gig_id}).one()
    return debt(state, reward, connection.execute(_LEAVING, {"gig_id": gig_id}).scalars())


def shortage(connection: Connection, gig_id: int, held: int | None) -> str:
    """Why nothing may leave the gig's wallet, which holds so much; empty when it holds all that it owes.

    What is to leave is owed itself, so the rest is covered when it has left.
    """
    units = owed(connection, gig_id)
    if held is not None and held >= units:
        return ""
    return f"the wallet of gig {gig_id} holds {held} base units and owes {units}"
