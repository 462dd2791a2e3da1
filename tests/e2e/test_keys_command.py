"""`x402-gig keys`: handing keys out and taking them back, beside a running server."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from eth_account import Account

from tests.support.harness import Chain, Json, devnet, serve_settings
from tests.support.operator import Desk, Shop, operated

DAY_S = 24 * 3600
START = "/api/gigs/start"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with devnet() as chain, operated(chain, tmp_path_factory.mktemp("shop")) as running:
        yield running


def status(shop: Shop, key: str) -> int:
    """404 for a key that is good: there is no such gig."""
    return shop.post({"gig_id": 10**6}, {"x-api-key": key}, START).status_code


def listed(desk: Desk, prefix: str) -> Json:
    [row] = [row for row in desk.shown("keys", "list") if row["prefix"] == prefix]
    return dict(row)


def test_a_new_key_works_at_once_and_is_shown_once(shop: Shop) -> None:
    made = shop.desk.start("keys", "create", "Agent 007")
    assert made.returncode == 0
    [key] = made.stdout.splitlines()
    assert key not in made.stderr
    assert "shown this once" in made.stderr
    assert status(shop, key) == 404
    assert status(shop, key[:-1]) == 401
    told = shop.desk.run("keys", "list").stdout + str(shop.desk.shown("keys", "list"))
    assert key[:12] in told
    assert key[13:] not in told


def test_a_list_says_whose_a_key_is_and_when_it_was_used(shop: Shop) -> None:
    made = shop.desk.shown("keys", "create", "A busy one", "--expires", "30d")
    assert made["expires_at"] == pytest.approx(time.time() + 30 * DAY_S, abs=60)
    assert listed(shop.desk, made["prefix"])["last_used_at"] is None
    status(shop, made["key"])
    row = listed(shop.desk, made["prefix"])
    assert row["last_used_at"] == pytest.approx(time.time(), abs=60)
    assert (row["name"], row["state"], row["revoked_at"]) == ("A busy one", "active", None)
    assert {"key", "hash"}.isdisjoint(row)


def test_a_key_may_end_at_a_date(shop: Shop) -> None:
    made = shop.desk.shown("keys", "create", "Until 2040", "--expires", "2040-01-01")
    assert made["expires_at"] == 2208988800
    assert "ends 2040-01-01 00:00:00" in shop.desk.run("keys", "list").stdout


@pytest.mark.parametrize("by", ["prefix", "id"])
def test_a_revoked_key_is_refused_from_the_next_request_on(shop: Shop, by: str) -> None:
    made, other = (shop.desk.shown("keys", "create", name) for name in ("Gone soon", "Stays"))
    assert status(shop, made["key"]) == 404
    done = shop.desk.run("keys", "revoke", str(made[by]), said="y\n")
    assert done.returncode == 0
    assert (status(shop, made["key"]), status(shop, other["key"])) == (401, 404)
    assert listed(shop.desk, made["prefix"])["state"] == "revoked"
    assert shop.desk.run("keys", "revoke", str(made[by]), "--yes").returncode == 2


def test_nothing_is_revoked_without_a_yes(shop: Shop) -> None:
    made = shop.desk.shown("keys", "create", "Doubtful")
    for said in ("n\n", ""):
        assert shop.desk.run("keys", "revoke", made["prefix"], said=said).returncode == 1
    assert status(shop, made["key"]) == 404


@pytest.mark.parametrize("what", ["gig_00000000", "999999", "", "gig_", "'"])
def test_an_unknown_key_is_not_revoked(shop: Shop, what: str) -> None:
    done = shop.desk.run("keys", "revoke", what, "--yes")
    assert (done.returncode, "There is no key" in done.stderr) == (1, True)


@pytest.mark.parametrize(
    "arguments",
    [
        [""],
        ["  "],
        ["x" * 101],
        ["a\nb"],
        ["\x1b[31mred"],
        ["A name", "--expires", "0d"],
        ["A name", "--expires", "-1d"],
        ["A name", "--expires", "3 weeks"],
        ["A name", "--expires", "2020-01-01"],
        ["A name", "--expires", "2030-02-30"],
        ["A name", "--expires", ""],
        ["A name", "--expires", "9999999d"],
    ],
    ids=repr,
)
def test_a_name_or_an_end_that_makes_no_sense_is_refused(shop: Shop, arguments: list[str]) -> None:
    before = shop.desk.rows("select count(*) from api_keys")
    done = shop.desk.run("keys", "create", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert shop.desk.rows("select count(*) from api_keys") == before


def test_before_the_first_start_there_is_no_ledger_to_keep_a_key_in(tmp_path: Path) -> None:
    given = {"seed": Account.create_with_mnemonic()[1], "database_url": f"sqlite:///{tmp_path}/ledger.db"}
    desk = Desk(serve_settings(Chain("http://127.0.0.1:1"), tmp_path, **given), tmp_path)
    done = desk.run("keys", "create", "Too early")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no ledger in that file (`x402-gig serve` makes it)" in done.stderr.replace("\n", " ")
    assert not (tmp_path / "ledger.db").exists()


@pytest.mark.parametrize("command", ["create", "list", "revoke"])
def test_each_command_helps_with_an_example(shop: Shop, command: str) -> None:
    assert f"Example: x402-gig keys {command}" in shop.desk.run("keys", command, "--help").stdout
