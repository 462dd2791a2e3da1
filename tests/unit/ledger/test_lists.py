"""Pages of gigs, against a filter that anybody can read."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, update

from tests.support.servers import Postgres
from tests.unit.ledger.conftest import DATABASES, on_sqlite
from tests.unit.ledger.examples import address, plan, reserved, wallet_of
from tests.unit.payments.examples import NOW
from x402_gig.gigs.listing import GigQuery
from x402_gig.gigs.records import TokenInfo
from x402_gig.ledger import gigs
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.gigs import insert_gig, list_gigs
from x402_gig.ledger.tables import api_keys, payments

PLATFORMS, TYPES = ("farcaster", "x", "onchain"), ("like", "boost", "hold_erc20")
STATUSES = ("active", "scheduled", "ended", "all")


@dataclass(frozen=True)
class Sample:
    """A gig; `is_there` unless a reorganisation has taken its deposit. Times are seconds from now."""

    is_bought: bool
    state: str
    is_there: bool
    platform: str
    gig_type: str
    token: str
    creator: str
    start: int
    end: int

    def is_wanted(self, query: GigQuery) -> bool:
        status = "scheduled" if self.start > 0 else "active" if self.end > 0 else "ended"
        return (
            self.state == "live"
            and self.is_there
            and query.status in (status, "all")
            and (not query.platforms or self.platform in query.platforms)
            and query.gig_type in (None, self.gig_type)
            and query.token in (None, self.token)
            and query.creator in (None, self.creator)
        )


def _sample(is_bought: bool, state: str, start: int, duration: int, **values: Any) -> Sample:
    return Sample(is_bought, "live" if is_bought else state, start=start, end=start + duration, **values)


some = st.sampled_from
addresses = some([address(1), address(0xAB)])
samples = st.builds(
    _sample,
    is_bought=st.booleans(),
    state=some(["live", "live", "created", "cancelled"]),
    is_there=some([True, True, False]),
    platform=some(PLATFORMS),
    gig_type=some(TYPES),
    token=addresses,
    creator=addresses,
    start=some([-20, -10, -1, 0, 1, 10]),
    duration=some([1, 10, 20]),
)
queries = st.builds(
    GigQuery,
    status=some(STATUSES),
    platforms=st.lists(some(PLATFORMS), max_size=2).map(tuple),
    gig_type=st.none() | some(TYPES),
    token=st.none() | addresses,
    creator=st.none() | addresses,
    limit=st.integers(1, 4),
)


@pytest.fixture(scope="module", params=DATABASES)
def shelf(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    url = f"sqlite:///{tmp_path_factory.mktemp('lists')}/ledger.db"
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.database()
    opened = Ledger(url)
    yield opened
    opened.close()


def put(db: Connection, key_id: int, number: int, sample: Sample) -> int:
    owner = _bought(db, number, sample) if sample.is_bought else {"key_id": key_id, "is_funded": int(sample.is_there)}
    values = {
        **owner,
        "state": sample.state,
        "creator": sample.creator,
        "reward": 10,
        "commission": 1,
        "start_at": NOW + sample.start,
        "end_at": NOW + sample.end,
    }
    terms = {"gig_type": sample.gig_type, "platform": sample.platform}
    return insert_gig(db, wallet_of, terms, TokenInfo(sample.token, "T", 0), values)[0]


def _bought(db: Connection, number: int, sample: Sample) -> dict[str, int]:
    [payment_id] = reserved(db, number)
    state = "settled" if sample.is_there else "open"
    db.execute(update(payments).where(payments.c.id == payment_id).values(state=state))
    return {"payment_id": payment_id}


@pytest.fixture(params=[(gigs.NEAR, gigs.MOST), (2, gigs.MOST), (0, 3)], ids=["all near", "few near", "few at all"])
def near(request: pytest.FixtureRequest) -> Iterator[None]:
    near, most = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gigs, "NEAR", near)
        patch.setattr(gigs, "MOST", most)
        yield


@pytest.mark.usefixtures("near")
@settings(max_examples=150, deadline=None)
@given(st.lists(samples, max_size=12), st.lists(st.lists(samples, max_size=2), max_size=6), queries)
def test_the_pages_together_are_the_filter_also_while_gigs_are_added(
    shelf: Ledger, first: list[Sample], later: list[list[Sample]], query: GigQuery
) -> None:
    with shelf.transaction() as db:
        key_id = _key(db)
        ids = {put(db, key_id, number, sample): sample for number, sample in enumerate(first)}
        found, cursor = [], None
        for page_number in range(len(first) + 1):
            page = list_gigs(db, query.model_copy(update={"cursor": cursor}), NOW)
            found += [gig.gig_id for gig in page.gigs]
            assert len(page.gigs) == query.limit or page.cursor is None or gigs.MOST == 3
            if (cursor := page.cursor) is None:
                break
            for number, sample in enumerate(later[page_number] if page_number < len(later) else []):
                put(db, key_id, 1000 + 10 * page_number + number, sample)
        db.rollback()
    assert cursor is None
    assert found == [gig_id for gig_id in sorted(ids, reverse=True) if ids[gig_id].is_wanted(query)]


def _key(db: Connection) -> int:
    values = {"name": "k", "prefix": "k", "hash": "h", "created_at": NOW}
    return int(db.execute(insert(api_keys).values(values).returning(api_keys.c.id)).scalar_one())


def test_a_last_page_that_is_full_leads_nowhere(db: Connection) -> None:
    for number in range(4):
        put(
            db,
            0,
            number,
            _sample(True, "live", 0, 10, is_there=True, platform="x", gig_type="like", token="", creator=""),
        )
    first = list_gigs(db, GigQuery(limit=2), NOW)
    last = list_gigs(db, GigQuery(limit=2, cursor=first.cursor), NOW)
    assert (len(first.gigs), first.cursor, len(last.gigs), last.cursor) == (2, first.gigs[-1].gig_id, 2, None)


OTHERS = {"token": "0x" + "11" * 20}, {"gig_type": "boost"}, {"platforms": ("onchain",)}, {"status": "scheduled"}


@pytest.mark.parametrize("filters", OTHERS, ids=lambda filters: next(iter(filters)))
def test_a_filter_that_matches_nothing_does_not_read_the_whole_ledger(
    db: Connection, filters: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a part, and the next page goes on below."""
    monkeypatch.setattr(gigs, "NEAR", 1)
    monkeypatch.setattr(gigs, "MOST", 3)
    described = {"is_there": True, "platform": "x", "gig_type": "like", "token": "", "creator": ""}
    ids = [put(db, 0, number, _sample(True, "live", 0, 10, **described)) for number in range(8)]
    pages = [list_gigs(db, GigQuery(**{"status": "all"} | filters), NOW)]
    while pages[-1].cursor is not None:
        pages.append(list_gigs(db, GigQuery(**{"status": "all"} | filters, cursor=pages[-1].cursor), NOW))
    assert [page.cursor for page in pages] == [ids[5], ids[2], None]
    assert not any(page.gigs for page in pages)


@on_sqlite
def test_what_is_read_of_the_ledger_is_a_range_of_it(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gigs, "NEAR", 0)
    found_by = plan(db, lambda: list_gigs(db, GigQuery(status="all", gig_type="boost"), NOW))
    assert found_by[0] == "SEARCH gigs USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"


@on_sqlite
@pytest.mark.parametrize("status", ["active", "scheduled"])
def test_a_page_that_its_neighbours_do_not_fill_does_not_walk_through_what_has_ended(
    db: Connection, status: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gigs, "NEAR", 0)
    found_by = plan(db, lambda: list_gigs(db, GigQuery(status=status), NOW))
    assert any("ix_gigs_live (end_at>?)" in step for step in found_by), found_by
    assert not any(step.startswith("SCAN gigs") for step in found_by), found_by


@pytest.mark.parametrize(
    ("start", "end", "status"), [(0, 10, "active"), (-10, 1, "active"), (-10, 0, "ended"), (1, 10, "scheduled")]
)
def test_the_start_belongs_to_a_gig_and_its_end_does_not(db: Connection, start: int, end: int, status: str) -> None:
    described = {"is_there": True, "platform": "x", "gig_type": "like", "token": "", "creator": ""}
    put(db, 0, 0, _sample(True, "live", start, end - start, **described))
    shown = [name for name in STATUSES if list_gigs(db, GigQuery.model_validate({"status": name}), NOW).gigs]
    assert shown == [status, "all"]
