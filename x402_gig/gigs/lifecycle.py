"""When a gig runs. All times are aware datetimes."""

from datetime import datetime, timedelta
from typing import Literal, TypeVar

from x402_gig.gigs.catalogue import DURATION_S, Duration

Status = Literal["scheduled", "active", "ended"]
# Or Unix seconds, which lists have of each gig.
Moment = TypeVar("Moment", datetime, float)


def schedule(start_time: datetime, duration: Duration, now: datetime) -> tuple[datetime, datetime]:
    """Start and end. A start in the past becomes now and the end moves with it: nobody loses time that was paid for."""
    start = max(start_time, now)
    return start, start + timedelta(seconds=DURATION_S[duration])


def status(start: Moment, end: Moment, now: Moment) -> Status:
    """The start belongs to the gig, the end does not."""
    if now < start:
        return "scheduled"
    return "active" if now < end else "ended"
