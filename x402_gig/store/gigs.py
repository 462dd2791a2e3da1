"""Gigs in the ledger. A gig is written in the transaction that settles its payment, so none is unpaid."""

import json
import time
from collections.abc import Callable

from sqlalchemy import Connection, RowMapping, insert, select, update

from x402_gig.gigs.pricing import USDC_DECIMALS, USDC_SYMBOL
from x402_gig.gigs.records import GigRecord
from x402_gig.payments.order import Purchase
from x402_gig.store import funding
from x402_gig.store.tables import commissions, gigs, movements, payments

WalletOf = Callable[[int], str]
NonceOf = Callable[[int], str]


class GigShelf:
    """Where a gig is put, inside a settling transaction."""

    def __init__(self, connection: Connection, wallet_of: WalletOf, reward_nonce_of: NonceOf) -> None:
        self._connection = connection
        self._wallet_of = wallet_of
        self._reward_nonce_of = reward_nonce_of

    def add(
        self, purchase: Purchase, *, reward_units: int, commission_units: int, start_at: int, end_at: int
    ) -> tuple[int, str]:
        """Make the gig and note that its reward is due; its id and its wallet's address."""
        now = int(time.time())
        terms = purchase.terms
        values = {
            "payment_id": purchase.payment_id,
            "wallet": "",
            "creator": purchase.payer,
            "terms": json.dumps(terms),
            "gig_type": terms.get("gig_type", ""),
            "platform": terms.get("platform", ""),
            "token": terms.get("token_address", ""),
            "symbol": USDC_SYMBOL,
            "decimals": USDC_DECIMALS,
            "reward": reward_units,
            "commission": commission_units,
            "start_at": start_at,
            "end_at": end_at,
            "created_at": now,
        }
        gig_id = self._connection.execute(insert(gigs).values(values).returning(gigs.c.id)).scalar_one()
        wallet = self._wallet_of(gig_id)
        self._connection.execute(update(gigs).where(gigs.c.id == gig_id).values(wallet=wallet))
        nonce = self._reward_nonce_of(gig_id)
        funding.add(self._connection, funding.REWARD, gig_id, wallet, reward_units, nonce)
        return gig_id, wallet


def find_gig(connection: Connection, gig_id: int) -> GigRecord | None:
    reward = movements.alias("reward_movement")
    commission = movements.alias("commission_movement")
    query = (
        select(
            gigs,
            payments.c.payer,
            payments.c.network,
            payments.c.state.label("payment_state"),
            payments.c.transaction.label("deposit"),
            reward.c.transaction.label("reward_transaction"),
            commission.c.transaction.label("commission_transaction"),
        )
        .join(payments, payments.c.id == gigs.c.payment_id)
        .join(reward, (reward.c.kind == "reward") & (reward.c.subject == gigs.c.id))
        .outerjoin(commissions, commissions.c.payment_id == payments.c.id)
        .outerjoin(commission, commission.c.id == commissions.c.movement_id)
        # A commission that was given up is followed by the one that takes its place.
        .order_by(commissions.c.movement_id.desc())
        .where(gigs.c.id == gig_id)
    )
    row = connection.execute(query).mappings().first()
    return _record(row) if row is not None else None


def _record(row: RowMapping) -> GigRecord:
    return GigRecord(
        gig_id=row["id"],
        wallet=row["wallet"],
        creator=row["creator"],
        terms=json.loads(row["terms"]),
        reward_units=row["reward"],
        commission_units=row["commission"],
        start_at=row["start_at"],
        end_at=row["end_at"],
        created_at=row["created_at"],
        suspended=row["payment_state"] != "settled",
        payer=row["payer"],
        network=row["network"],
        deposit_transaction=row["deposit"],
        reward_transaction=row["reward_transaction"],
        commission_transaction=row["commission_transaction"],
    )
