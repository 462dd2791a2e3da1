"""Who may use which relayer: processes with a deadline, and leases that name their holder.

A process that has missed its deadline is struck off by whoever renews next. A lease has a number that grows with each
taking, and what is written in its name is written under the number it was taken with, or not at all.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct
from sqlalchemy import Connection, bindparam, delete, insert, select, update

from x402_gig.ledger import chain_state
from x402_gig.ledger.tables import leases, processes
from x402_gig.ledger.transactions import clock_s

# Five renewals, one a second: longer than a database hesitates, and far shorter than a buyer waits.
LEASE_S = 5
# The right to move money on, which one process has at a time.
FUNDING = "funding"
_ALIVE = select(processes.c.id, processes.c.relayers).order_by(processes.c.id)


class Standing(Struct, frozen=True):
    """What a process has: its number, leases with their fences, and its share of the relayers among so many processes.

    `orphaned`: what processes had that were found to be gone just now; None when there were none. `relayers`: how many
    each process knows, the different numbers.
    """

    process_id: int
    held: Mapping[str, int]
    share: int
    processes: int
    orphaned: frozenset[str] | None = None
    relayers: tuple[int, ...] = ()


def renew(
    connection: Connection,
    process_id: int | None,
    relayers: Sequence[str],
    out_of_gas: Collection[str] = (),
    *,
    is_alone: bool = False,
) -> Standing:
    """Push the deadline out, strike off who has missed his, and take what is free, up to the share.

    The share of the relayers is the same for all; what is left over goes to the oldest. Money is moved on by whoever
    has a relayer that is not `out_of_gas`. `is_alone`: there can be no other process.
    """
    now = clock_s(connection)
    orphaned = _strike_off(connection, process_id, now, is_alone)
    me = _push_out(connection, process_id, now, len(relayers))
    counts = {row.id: row.relayers for row in connection.execute(_ALIVE)}
    alive = list(counts)
    share, left_over = divmod(len(relayers), len(alive))
    share += alive.index(me) < left_over
    _take(connection, me, relayers, share, out_of_gas)
    known = tuple(sorted({*counts.values()} - {0}))  # 0: an older version's, which has ended
    return Standing(me, _held(connection, me), share, len(alive), orphaned, known)


def _strike_off(connection: Connection, me: int | None, now: int, is_alone: bool) -> frozenset[str] | None:
    """End the processes past their deadline, or all others; what they had."""
    gone = select(processes.c.id).where(processes.c.id.is_distinct_from(me))
    if not is_alone:
        gone = gone.where(processes.c.ends_at < now)
    ids = list(connection.execute(gone).scalars())
    if not ids:
        return None
    orphaned = connection.execute(select(leases.c.name).where(leases.c.process_id.in_(ids))).scalars().all()
    for process_id in ids:
        leave(connection, process_id)
    return frozenset(orphaned)


def _push_out(connection: Connection, me: int | None, now: int, relayers: int) -> int:
    """A process that was struck off, or is new, gets a new number."""
    values = {"ends_at": now + LEASE_S, "relayers": relayers}
    if me is not None:
        pushed = update(processes).where(processes.c.id == me).values(values)
        if connection.execute(pushed).rowcount == 1:
            return me
    return int(connection.execute(insert(processes).values(values).returning(processes.c.id)).scalar_one())


def _take(connection: Connection, me: int, relayers: Sequence[str], share: int, out_of_gas: Collection[str]) -> None:
    holders = _holders(connection, [*relayers, FUNDING])
    mine = [name for name in relayers if holders[name] == me]
    wanted = [name for name in relayers if holders[name] is None][: max(0, share - len(mine))]
    if not {*mine, *wanted}.difference(out_of_gas):
        give_up(connection, me, FUNDING)
    elif holders[FUNDING] is None:
        wanted.append(FUNDING)
    if wanted:
        taken = update(leases).where(leases.c.name.in_(wanted))
        connection.execute(taken.values(process_id=me, fence=leases.c.fence + 1))


def _holders(connection: Connection, names: Sequence[str]) -> dict[str, int | None]:
    """Who holds each of these; one that nobody ever had gets its row."""
    known = {row.name: row.process_id for row in connection.execute(select(leases.c.name, leases.c.process_id))}
    if new := [{"name": name, "process_id": None, "fence": 0} for name in names if name not in known]:
        connection.execute(insert(leases), new)
    return {name: known.get(name) for name in names}


def _held(connection: Connection, me: int) -> dict[str, int]:
    query = select(leases.c.name, leases.c.fence).where(leases.c.process_id == me)
    return {row.name: row.fence for row in connection.execute(query)}


_IS_HELD = select(leases.c.name).where(
    leases.c.name == bindparam("name"), leases.c.fence == bindparam("fence"), leases.c.process_id.is_not(None)
)


def is_held(connection: Connection, name: str, fence: int) -> bool:
    """Has nobody else had it since it was taken under this number, and was it not given up?"""
    return connection.execute(_IS_HELD, {"name": name, "fence": fence}).first() is not None


def held_now(connection: Connection) -> set[str]:
    """What the processes have that are alive."""
    alive = select(processes.c.id).where(processes.c.ends_at >= clock_s(connection))
    return set(connection.execute(select(leases.c.name).where(leases.c.process_id.in_(alive))).scalars())


def give_up(connection: Connection, process_id: int, name: str) -> None:
    mine = update(leases).where(leases.c.name == name, leases.c.process_id == process_id)
    connection.execute(mine.values(process_id=None))


def leave(connection: Connection, process_id: int) -> None:
    """The process is gone: others may have all that it held.

    What it wrote down last may be of blocks that were replaced, and it will not notice any more.
    """
    chain_state.doubt(connection)
    connection.execute(update(leases).where(leases.c.process_id == process_id).values(process_id=None))
    connection.execute(delete(processes).where(processes.c.id == process_id))
