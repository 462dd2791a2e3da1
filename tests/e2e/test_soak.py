"""A short soak on either database; `scripts/soak` runs longer ones."""

from pathlib import Path

import pytest

from tests.soak.soak import Options, soak

# On both databases: only PostgreSQL is behind a connection that loses answers.
pytestmark = pytest.mark.usefixtures("database")


def test_nothing_is_lost_doubled_or_unaccounted_for_in_a_soak(tmp_path: Path) -> None:
    with soak(Options(minutes=0.3, payments=40, seed=1), tmp_path) as it:
        report = it.run()
    assert report.is_good, str(report)
    assert report.counts["kills"] >= 3
    assert report.counts["gigs"] >= 40
    assert it.starters.made
