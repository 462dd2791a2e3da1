"""A gig's wallet that stands still: a nonce of it was used by a transaction that has no receipt here.

What the ledger knows of it, and what is written when the operator lets it go on.
"""

import time
from collections.abc import Collection, Mapping, Sequence

from msgspec import Struct
from sqlalchemy import Connection, insert, select, update

from x402_gig.evm.eip3009 import TokenTransfer
from x402_gig.ledger import slots, states
from x402_gig.ledger.movements import Movement, due_from
from x402_gig.ledger.slots import PAYOUT, End, Slot
from x402_gig.ledger.tables import movements
from x402_gig.ledger.tables import slots as slot_rows


class Sent(Struct, frozen=True):
    """What one wallet has sent, by the ledger: its open slots, with the hashes of their transactions, and the nonces
    of the others; what is due; and the transactions that have paid what is done.
    """

    open: Sequence[tuple[Slot, frozenset[str]]]
    closed: frozenset[int]
    due: Sequence[Movement]
    paid_in: frozenset[str]


def read(connection: Connection, gig_id: int, wallet: str) -> Sent:
    closed = select(slot_rows.c.nonce).where(slot_rows.c.relayer == wallet, slot_rows.c.state != "open")
    paid = select(movements.c.transaction).where(movements.c.source_gig == gig_id, movements.c.state == "done")
    return Sent(
        open=[
            (slot, frozenset(a.transaction.hash for a in slots.attempts_of(connection, slot)))
            for slot in slots.open_slots(connection, wallet)
        ],
        closed=frozenset(connection.execute(closed).scalars()),
        due=due_from(connection, gig_id, in_token=True),
        paid_in=frozenset(connection.execute(paid).scalars()),
    )


def go_on(
    connection: Connection, wallet: str, used: Collection[int], paid: Mapping[Movement, TokenTransfer], end: End
) -> None:
    """Close the wallet's slots of these nonces, which are used in the block of `end`, and note what was `paid`.

    A slot is made for a nonce that has none. What was in one of them and is not paid is due again.
    """
    for move, transfer in paid.items():
        _complete(connection, move, transfer)
    transactions = {transfer.transaction: transfer for transfer in paid.values()}
    is_open = {slot.nonce: slot for slot in slots.open_slots(connection, wallet)}
    for nonce in used:
        slot = is_open.get(nonce)
        if slot is None:
            connection.execute(insert(slot_rows), _lost(wallet, nonce, end))
            continue
        hashes = {attempt.transaction.hash for attempt in slots.attempts_of(connection, slot)}
        if ours := hashes & transactions.keys():
            transfer = transactions[ours.pop()]
            slots.close(connection, slot, "mined", _end(transfer))
        else:
            slots.close(connection, slot, "lost", end)


def _complete(connection: Connection, move: Movement, transfer: TokenTransfer) -> None:
    end = _end(transfer)
    place = {"transaction": end.transaction, "block_number": end.block_number, "block_hash": end.block_hash}
    may_be_done = movements.c.state.in_(states.before("movement", "done"))
    done = update(movements).where(movements.c.id == move.movement_id, may_be_done)
    connection.execute(done.values(state="done", **place, done_at=int(time.time())))


def _end(transfer: TokenTransfer) -> End:
    return End(transfer.block_number, transfer.block_hash, transfer.transaction)


def _lost(wallet: str, nonce: int, end: End) -> dict[str, object]:
    now = int(time.time())
    place = {"block_number": end.block_number, "block_hash": end.block_hash, "created_at": now, "closed_at": now}
    return {"relayer": wallet, "nonce": nonce, "purpose": PAYOUT, "state": "lost", **place}
