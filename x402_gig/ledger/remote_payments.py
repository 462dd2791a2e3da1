"""Payments that a remote facilitator executes: how often it was asked, and whether it only failed the last time."""

from msgspec import Struct
from sqlalchemy import ColumnElement, Connection, select, update

from x402_gig.ledger import chain_state, journal
from x402_gig.ledger.payments import MAX_BROADCASTS, Reservation, find_open
from x402_gig.ledger.tables import payments


class Failed(Struct, frozen=True):
    """An open payment for which the facilitator's last answer was a failure. `may_be_asked`: not too often yet."""

    wanted: Reservation
    may_be_asked: bool


def find_failed(connection: Connection, payment_id: int) -> Failed | None:
    """None when the payment is final, or what became of the last question is not known."""
    asked = select(payments.c.broadcasts).where(payments.c.id == payment_id, payments.c.failed == 1)
    if (broadcasts := connection.execute(asked).scalar()) is None:
        return None
    wanted = find_open(connection, payment_id)
    return Failed(wanted, broadcasts < MAX_BROADCASTS) if wanted is not None else None


def note_failure(connection: Connection, payment_id: int) -> bool:
    """The facilitator says that it failed, and names no transaction. May it be asked again?"""
    failed = update(payments).where(payments.c.id == payment_id, payments.c.state == "open").values(failed=1)
    broadcasts = connection.execute(failed.returning(payments.c.broadcasts)).scalar()
    if broadcasts is None:
        return False
    journal.note(connection, [payment_id], "open", "the facilitator failed to settle it")
    return bool(broadcasts < MAX_BROADCASTS)


def ask_again(connection: Connection, payment_id: int) -> bool:
    """Count another question after a failure; False when another request was quicker, or it was asked too often."""
    may_be_asked = (payments.c.state == "open", payments.c.failed == 1, payments.c.broadcasts < MAX_BROADCASTS)
    if not _count_question(connection, payment_id, *may_be_asked):
        return False
    journal.note(connection, [payment_id], "open", "the facilitator is asked again")
    return True


def take_resend(connection: Connection, payment_id: int) -> bool:
    """Take the order to ask again, whatever the last answer was; False when somebody else has taken it."""
    return _count_question(connection, payment_id, payments.c.resend == 1)


def _count_question(connection: Connection, payment_id: int, *conditions: ColumnElement[bool]) -> bool:
    """Raises Unavailable in a halted ledger."""
    chain_state.check_charging(connection)
    asked = update(payments).where(payments.c.id == payment_id, *conditions)
    values = {"broadcasts": payments.c.broadcasts + 1, "failed": 0, "resend": 0}
    return connection.execute(asked.values(values)).rowcount == 1
