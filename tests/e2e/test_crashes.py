"""SIGKILL at each point of the way, alone and in a batch: what was begun is finished, once."""

from collections.abc import Iterator

import pytest

from tests.crashes import (
    ASKS,
    POINTS,
    Buyer,
    Point,
    Together,
    Trap,
    Victim,
    buyers,
    shopping,
    victim,
)
from tests.faults import RpcProxy, rpc_proxy
from tests.harness import devnet
from tests.invariants import assert_all_accounted_for

CROWD = 20


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Victim, RpcProxy]]:
    """One server for all: each test kills it, and finds it started again and with nothing left to do."""
    folder = tmp_path_factory.mktemp("shop")
    # One relayer, so that a crowd can be kept waiting for it.
    with devnet() as chain, rpc_proxy(chain) as proxy, victim(chain, proxy, folder, relayers=1) as shop:
        yield shop, proxy


def carriers(proxy: RpcProxy, buyer: Buyer) -> list[str]:
    """The transactions, as often as they were sent, that carry the buyer's authorization."""
    return [raw for raw in proxy.sent if buyer.nonces[0][2:] in raw]


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_payment_survives_a_crash(place: tuple[Victim, RpcProxy], point: Point) -> None:
    shop, proxy = place
    trap, crowd = Trap(shop, point, 1), buyers(shop, 1)
    with proxy.broken(trap.rule, *ASKS), shopping(crowd) as answers:
        assert trap.sprung.wait(30)
        shop.start()
        assert [answer.result().status_code for answer in answers] == [200]

    assert_all_accounted_for(shop, crowd)
    assert len(set(carriers(proxy, crowd[0]))) == 1


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_batch_of_twenty_survives_a_crash(place: tuple[Victim, RpcProxy], point: Point) -> None:
    shop, proxy = place
    trap, crowd = Trap(shop, point, CROWD), buyers(shop, CROWD)
    together = Together(shop, CROWD, trap.rule)
    with proxy.broken(together.rule, *ASKS), together.shopping(crowd) as answers:
        assert trap.sprung.wait(30)
        shop.start()
        assert [answer.result().status_code for answer in answers] == [200] * (CROWD + 1)

    assert_all_accounted_for(shop, crowd)
    assert {len(set(carriers(proxy, buyer))) for buyer in crowd} == {1}
