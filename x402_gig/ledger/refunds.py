"""Money that reached the intake and belongs to no order: paid back, each deposit once."""

from collections.abc import Callable
from typing import Any

from msgspec import Struct
from sqlalchemy import Column, ColumnElement, Connection, exists, func, select, update

from x402_gig.ledger.deposits import is_free
from x402_gig.ledger.movements import REFUND, SURPLUS, add, due_row
from x402_gig.ledger.tables import deposits, movements, payments

NonceOf = Callable[..., str]


class Deposit(Struct, frozen=True):
    """A deposit without an order. `nonce` is None for a plain transfer, whose sender may not be its owner."""

    id: int
    asset: str
    payer: str
    nonce: str | None
    value: int
    transaction: str
    log_index: int
    block_number: int
    created_at: int

    @property
    def source(self) -> tuple[str | int, ...]:
        """What it is known by for ever, and what the nonce of its refund is made of."""
        if self.nonce is None:
            return self.asset, self.transaction, self.log_index
        return self.asset, self.payer, self.nonce


def unclaimed(
    connection: Connection, limit: int, *conditions: ColumnElement[bool], by: Column[Any] = deposits.c.id
) -> list[Deposit]:
    """Deposits on chain that neither an order nor a refund owns, oldest first or in the order of another column."""
    same = (payments.c[name] == deposits.c[name] for name in ("asset", "payer", "nonce", "value"))
    has_order = exists().where(*same, payments.c.state == "open")
    query = select(*(deposits.c[name] for name in Deposit.__struct_fields__)).where(*is_free(), ~has_order, *conditions)
    return [Deposit(*row) for row in connection.execute(query.order_by(by).limit(limit))]


def ripe(connection: Connection, limit: int, *, up_to_block: int, before_s: int, minimum: int) -> list[Deposit]:
    """Those that nobody needs to look at: made by an authorization, final, old enough, and no dust."""
    return unclaimed(
        connection,
        limit,
        deposits.c.nonce.is_not(None),
        deposits.c.value >= minimum,
        deposits.c.block_number <= up_to_block,
        deposits.c.created_at <= before_s,
        # The order of their index: with another one, SQLite walks through all the dust.
        by=deposits.c.value,
    )


def find_unclaimed(connection: Connection, deposit_id: int) -> Deposit | None:
    return next(iter(unclaimed(connection, 1, deposits.c.id == deposit_id)), None)


def write_refund(connection: Connection, deposit: Deposit, payee: str, nonce_of: NonceOf) -> bool:
    """Make a refund the owner of a deposit, to be sent with the next batch; False when it has an owner already."""
    if find_unclaimed(connection, deposit.id) is None:
        return False
    nonce = nonce_of(*deposit.source)
    refund_id = add(connection, due_row(REFUND, deposit.id, payee, deposit.value, nonce))
    owned = update(deposits).where(deposits.c.id == deposit.id, *is_free())
    if connection.execute(owned.values(refund_id=refund_id)).rowcount != 1:
        raise AssertionError(f"deposit {deposit.id} has two owners")
    return True


def newest_due(connection: Connection) -> int:
    """The number of the refund that was written last and is not paid yet; 0 when there is none."""
    kinds = (REFUND, SURPLUS)
    query = select(func.max(movements.c.id)).where(movements.c.state == "due", movements.c.kind.in_(kinds))
    return connection.execute(query).scalar_one() or 0
