import time

import pytest
from msgspec.structs import replace

from x402_gig.chainsync.clock import ChainClock
from x402_gig.evm.node import Block

HEAD = Block(10, "0xaa", "0xbb", 0, 7, 30_000_000)


def block(number: int, ahead_s: float) -> Block:
    return replace(HEAD, number=number, timestamp=int(time.time() + ahead_s))


@pytest.mark.parametrize("ahead_s", [-3600, 3600])
def test_a_new_block_tells_the_time(ahead_s: int) -> None:
    clock = ChainClock()
    clock.saw(block(10, ahead_s))
    clock.saw(block(11, ahead_s))
    assert abs(clock() - time.time() - ahead_s) < 2
    # A block's time is in whole seconds.
    assert any(f"{seconds} s" in clock.problem for seconds in (3599, 3600, 3601))


def test_a_chain_without_new_blocks_does_not_stop_the_time() -> None:
    clock = ChainClock()
    for _ in range(3):
        clock.saw(block(10, -7200))
    assert abs(clock() - time.time()) < 2
    assert clock.problem == ""


def test_no_block_is_from_the_future() -> None:
    clock = ChainClock()
    clock.saw(block(10, 3600))
    assert clock() > time.time() + 3500


def test_a_small_difference_is_none_and_a_mended_clock_is_noticed() -> None:
    clock = ChainClock()
    for number, ahead_s in ((10, 3600), (11, 3600), (12, 30)):
        clock.saw(block(number, ahead_s))
    assert abs(clock() - time.time()) < 2
