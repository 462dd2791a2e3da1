from datetime import UTC, datetime, timedelta

import pytest

from x402_gig.gigs.catalogue import DURATION_S, Duration
from x402_gig.gigs.lifecycle import schedule, status

NOW = datetime(2025, 10, 1, 15, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.mark.parametrize("start_time", [NOW - timedelta(days=400), NOW - SECOND, NOW])
def test_a_start_in_the_past_becomes_now_and_takes_the_end_along(start_time: datetime) -> None:
    assert schedule(start_time, Duration.THREE_DAYS, NOW) == (NOW, NOW + timedelta(hours=72))


def test_a_start_in_the_future_stays() -> None:
    start = NOW + SECOND
    assert schedule(start, Duration.ONE_DAY, NOW) == (start, start + timedelta(hours=24))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (NOW - SECOND, "scheduled"),
        (NOW, "active"),
        (NOW + timedelta(days=1) - SECOND, "active"),
        (NOW + timedelta(days=1), "ended"),
        (NOW + timedelta(days=900), "ended"),
    ],
)
def test_the_start_belongs_to_the_gig_and_the_end_does_not(now: datetime, expected: str) -> None:
    assert status(NOW, NOW + timedelta(days=1), now) == expected


def test_each_duration_has_its_days() -> None:
    days = {"1day": 1, "3days": 3, "1week": 7, "2weeks": 14, "3months": 90, "6months": 180}
    assert {str(name): seconds / 86_400 for name, seconds in DURATION_S.items()} == days
