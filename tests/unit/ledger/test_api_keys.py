import hmac
import re
import time
from datetime import timedelta
from hashlib import sha256

import pytest
from sqlalchemy import Connection, select, update

from x402_gig.ledger import api_keys
from x402_gig.ledger.tables import api_keys as table

KEY = re.compile(r"gig_[0-9a-f]{8}_[A-Za-z0-9_-]{43}")
HOUR_S = int(timedelta(hours=1).total_seconds())


def now() -> int:
    return int(time.time())


def test_a_key_is_known_by_its_prefix_and_kept_as_a_hash(db: Connection) -> None:
    row, key = api_keys.create(db, "A creator", None)
    assert KEY.fullmatch(key)
    assert key.startswith(row.prefix)
    stored = db.execute(select(table)).one()
    assert stored.hash == sha256(key.encode()).hexdigest()
    assert key[len(row.prefix) + 1 :] not in repr(stored)


def test_every_key_is_another(db: Connection) -> None:
    made = [api_keys.create(db, "The same name", None) for _ in range(50)]
    assert len({key for _, key in made}) == len({row.prefix for row, _ in made}) == 50
    assert [row for row, _ in made] == api_keys.listed(db)


def test_it_is_found_as_a_whole_only(db: Connection) -> None:
    row, key = api_keys.create(db, "A creator", None)
    assert api_keys.find(db, key) == row
    other = "B" if key[-1] == "A" else "A"
    for wrong in ("", key[:-1], key + "A", key[:-1] + other, key.upper(), row.prefix, f" {key}", key.replace("_", "é")):
        assert api_keys.find(db, wrong) is None


@pytest.mark.parametrize("wrong", ["gig_00000000_" + "A" * 43, "gig_" + "A" * 10**6, "\0" * 56, "gig_%", "é" * 56])
def test_what_is_no_key_finds_nothing(db: Connection, wrong: str) -> None:
    api_keys.create(db, "A creator", None)
    assert api_keys.find(db, wrong) is None


def test_a_hash_is_compared_also_for_a_prefix_that_nobody_has(db: Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: str, other: str) -> bool:
        compared.append((one, other))
        return False

    monkeypatch.setattr(hmac, "compare_digest", compare)
    assert api_keys.find(db, "gig_00000000_" + "A" * 43) is None
    [(one, other)] = compared
    assert len(one) == len(other) == 64


def test_the_same_prefix_with_another_secret_is_another_key(db: Connection) -> None:
    row, _ = api_keys.create(db, "A creator", None)
    assert api_keys.find(db, f"{row.prefix}_{'A' * 43}") is None


def test_an_expired_key_is_refused(db: Connection) -> None:
    row, key = api_keys.create(db, "A creator", now() + HOUR_S)
    assert api_keys.find(db, key) == row
    db.execute(update(table).values(expires_at=now()))
    assert api_keys.find(db, key) is None
    assert [one.state(now()) for one in api_keys.listed(db)] == ["expired"]


def test_a_revoked_key_is_refused_and_the_others_are_not(db: Connection) -> None:
    row, key = api_keys.create(db, "A creator", None)
    other, its_key = api_keys.create(db, "Another", None)
    assert api_keys.revoke(db, row)
    assert api_keys.find(db, key) is None
    assert api_keys.find(db, its_key) == other
    assert [one.state(now()) for one in api_keys.listed(db)] == ["revoked", "active"]


def test_a_key_is_revoked_once(db: Connection) -> None:
    row, _ = api_keys.create(db, "A creator", None)
    db.execute(update(table).values(revoked_at=5))
    assert not api_keys.revoke(db, row)
    assert [one.revoked_at for one in api_keys.listed(db)] == [5]


def test_of_many_uses_at_once_one_is_written(db: Connection) -> None:
    row, _ = api_keys.create(db, "A creator", None)
    assert row.is_used_newly(now())
    db.execute(update(table).values(last_used_at=now() - 5))
    api_keys.used(db, row)
    [after] = api_keys.listed(db)
    assert after.last_used_at == pytest.approx(now() - 5, abs=2)
    assert not after.is_used_newly(now())
    assert after.is_used_newly(now() + api_keys.USED_EVERY_S)
