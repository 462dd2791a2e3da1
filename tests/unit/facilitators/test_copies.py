"""Requests for the same payment share its way and its answer when they are the same altogether."""

import asyncio
from types import SimpleNamespace
from typing import Any

from msgspec.structs import replace

from tests.unit.ledger.examples import ORDER, reservation
from x402_gig.facilitators.local import Item, LocalFacilitator
from x402_gig.ledger.payments import Reservation
from x402_gig.settlement.work import Work

GENUINE = reservation(1)
FORGED = replace(GENUINE, payment=replace(GENUINE.payment, signature=b"forged"))
OTHER_TERMS = replace(GENUINE, order=replace(ORDER, terms={"size": 2}))


def items(*wanted: Reservation) -> list[Item]:
    async def ask() -> list[Item]:
        anything: Any = None
        node: Any = SimpleNamespace(recovers=lambda *_: True)
        facilitator = LocalFacilitator(node, anything, anything, anything, Work(), anything, anything)
        return [facilitator._item(each.key, each.payment, each.order) for each in wanted]

    return asyncio.run(ask())


def test_equal_requests_share_an_item_and_nobody_else_does() -> None:
    genuine, forged, other, again = items(GENUINE, FORGED, OTHER_TERMS, GENUINE)
    assert again is genuine
    assert forged is not genuine
    assert other is not genuine
