"""A ledger of an older version keeps every row when a newer one opens it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, MetaData, create_engine, insert, select, text

from tests.support.servers import Postgres
from tests.unit.ledger.conftest import DATABASES
from tests.unit.ledger.examples import ASSET, COMMISSION, REWARD, address, key, word
from tests.unit.payments.examples import NOW, PRICE
from x402_gig.ledger import chain_state, deposits, engine, gig_ids, movements, payments, shared_settings, slots, tables
from x402_gig.ledger.engine import Ledger
from x402_gig.ledger.gig_ids import Standing
from x402_gig.payments.outcome import Rejected, Settled

on_sqlite = pytest.mark.parametrize("old", ["sqlite"], indirect=True)
MIGRATIONS = Path(engine.__file__).parent / "migrations"
Rows = dict[str, list[dict[str, Any]]]


def payment(number: int, state: str, **changes: Any) -> dict[str, Any]:
    row = {
        **key(number)._asdict(),
        "payee": address(0x17),
        "value": PRICE,
        "valid_after": 0,
        "valid_before": NOW + 60,
        "signature": "00",
        "product": "thing",
        "terms": '{"size": 1}',
        "fingerprint": word(0xF0 + number),
        "state": state,
        "reason": "",
        "detail": "",
        "answer": None,
        "commission": 0,
        "transaction": None,
        "broadcasts": 1,
        "abandoned": 0,
        "created_at": NOW + number,
        "final_at": None,
        "id": number,
    }
    return row | changes


def movement(number: int, kind: str, value: int, **changes: Any) -> dict[str, Any]:
    row = {"id": number, "kind": kind, "subject": 1, "payee": address(7), "value": value, "nonce": word(0xA00 + number)}
    nowhere = {"transaction": None, "block_number": None, "block_hash": None, "done_at": None}
    return row | nowhere | {"state": "due", "created_at": NOW} | changes


DONE = {"state": "done", "transaction": word(0xD0), "block_number": 12, "block_hash": word(0xD1), "done_at": NOW + 9}
# One sale whose reward is paid and whose commission is due, one payment that was rejected and one that is open.
OLD: Rows = {
    "ledger": [
        {
            "id": 1,
            "chain_id": 8453,
            "genesis": word(1),
            "intake": address(0x17),
            "cursor_number": 41,
            "cursor_hash": word(41),
            "funding_halt": "",
            "created_at": NOW,
        }
    ],
    "payments": [
        payment(
            1, "settled", answer='{"gig_id": 1}', commission=COMMISSION, transaction=word(0xD2), final_at=NOW + 8
        ),
        payment(2, "rejected", reason="expired", detail="In words", final_at=NOW + 80),
        payment(5, "open", abandoned=1),
    ],
    "movements": [movement(1, "reward", REWARD, **DONE), movement(2, "commission", COMMISSION)],
    "deposits": [
        {
            "id": number,
            "asset": ASSET,
            "payer": address(number),
            "nonce": word(number),
            "value": PRICE,
            "transaction": word(0xD2),
            "log_index": 2 * number,
            "block_number": 10,
            "block_hash": word(0xD3),
            "payment_id": owner,
            "created_at": NOW,
        }
        for number, owner in ((1, 1), (9, None))
    ],
    "gigs": [
        {
            "id": 1,
            "payment_id": 1,
            "wallet": address(0xA001),
            "creator": address(1),
            "terms": '{"gig_type": "like", "platform": "x", "token_address": "0x83"}',
            "reward": REWARD,
            "commission": COMMISSION,
            "start_at": NOW,
            "end_at": NOW + 60,
            "created_at": NOW,
        }
    ],
    "slots": [
        {
            "id": number,
            "relayer": address(9),
            "nonce": number,
            "purpose": "deposit",
            "state": state,
            "transaction": word(0xD2) if state == "mined" else None,
            "block_number": 10 if state == "mined" else None,
            "gas_used": 80_000 if state == "mined" else None,
            "created_at": NOW,
            "closed_at": NOW + 1 if state == "mined" else None,
        }
        for number, state in ((1, "mined"), (2, "lost"), (3, "open"))
    ],
    "attempts": [
        {
            "id": 1,
            "slot_id": 3,
            "hash": word(0xE0),
            "raw": "0x02",
            "max_fee": 9,
            "priority_fee": 1,
            "created_at": NOW,
        }
    ],
    "slot_payments": [{"slot_id": 1, "payment_id": 1}, {"slot_id": 3, "payment_id": 5}],
    "slot_movements": [{"slot_id": 2, "movement_id": 1, "valid_before": NOW + 600}],
    "commissions": [{"payment_id": 1, "movement_id": 2}],
    "aliases": [{**key(6)._asdict(), "signature": "00", "payment_id": 5, "created_at": NOW}],
}  # fmt: skip
NO_SETTINGS = {"network": None, "wallet_account": None, "commission_address": None}
NEW_COLUMNS: dict[str, dict[str, Any]] = {
    "ledger": {"start_number": 41, "start_balance": 0, "base_number": 0, "base_balance": 0, "doubts": 0, **NO_SETTINGS},
    "payments": {"resend": 0, "failed": 0},
    "deposits": {"on_chain": 1, "refund_id": None},
    "slots": {"block_hash": None},
    "attempts": {"gas": 0, "is_empty": 0},
    "commissions": {"is_void": 0},
    "movements": {"source_gig": None, "asset": None},
    "gigs": {
        "key_id": None,
        "state": "live",
        "gig_type": "like",
        "platform": "x",
        "token": "0x83",
        "symbol": "USDC",
        "decimals": 6,
        "since_block": 0,
        "surplus": 0,
        "is_funded": 1,
        "start_fence": 0,
        "start_until": 0,
    },
}


@pytest.fixture(scope="module", params=DATABASES)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a ledger as the first version made it, with rows of every kind."""
    url = f"sqlite:///{tmp_path_factory.mktemp('old')}/ledger.db"
    if request.param == "postgresql":
        postgres: Postgres = request.getfixturevalue("postgres")
        url = postgres.database()
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    first_version = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with first_version.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        schema = MetaData()
        schema.reflect(connection)
        assert set(schema.tables) == {*OLD, "alembic_version"}
        for name, rows in OLD.items():
            connection.execute(insert(schema.tables[name]), rows)
            if request.param == "postgresql" and "id" in schema.tables[name].columns:
                # The rows above name their ids themselves, and then its sequence does not go on.
                connection.execute(text(f"select setval('{name}_id_seq', (select max(id) from {name}))"))
    first_version.dispose()
    return url


@pytest.fixture(scope="module")
def ledger(old: str) -> Iterator[Ledger]:
    opened = Ledger(old)
    yield opened
    opened.close()


@pytest.fixture
def upgraded(ledger: Ledger) -> Iterator[Connection]:
    with ledger.transaction() as connection:
        yield connection
        connection.rollback()


@pytest.mark.parametrize("name", sorted(OLD))
def test_every_row_is_kept_and_new_columns_say_what_is_so(upgraded: Connection, name: str) -> None:
    table = tables.metadata.tables[name]
    rows = upgraded.execute(select(table).order_by(*table.primary_key)).mappings().all()
    expected = [row | NEW_COLUMNS.get(name, {}) for row in OLD[name]]
    if name == "payments":  # the commission of the first is in a row of commissions
        expected = [row | {"collected": int(row["id"] == 1)} for row in expected]
    assert [dict(row) for row in rows] == expected


@on_sqlite
def test_rows_still_refer_to_rows_and_new_ones_must(upgraded: Connection) -> None:
    assert upgraded.execute(text("pragma foreign_keys")).scalar_one() == 1
    assert upgraded.execute(text("pragma foreign_key_check")).all() == []
    assert upgraded.execute(text("pragma integrity_check")).scalar_one() == "ok"
    for table in tables.metadata.sorted_tables:
        targets = {row[2] for row in upgraded.execute(text(f"pragma foreign_key_list({table.name})"))}
        assert targets == {foreign.column.table.name for foreign in table.foreign_keys}


def test_the_journal_begins_with_what_became_of_each_payment(upgraded: Connection) -> None:
    j = tables.journal.c
    rows = upgraded.execute(select(j.payment_id, j.state, j.transaction, j.reason, j.at).order_by(j.payment_id, j.id))
    assert [tuple(row) for row in rows] == [
        (1, "open", None, "", NOW + 1),
        (1, "settled", word(0xD2), "", NOW + 8),
        (2, "open", None, "", NOW + 2),
        (2, "rejected", None, "expired", NOW + 80),
        (5, "open", None, "", NOW + 5),
    ]


def test_the_server_goes_on_with_it(upgraded: Connection) -> None:
    known = [payments.find(upgraded, key(number)) for number in (1, 2, 5, 6)]
    outcomes = [each.outcome for each in known if each is not None]
    settled = Settled(1, address(1), word(0xD2), {"gig_id": 1})
    assert outcomes == [settled, Rejected("expired", "In words"), None, None]
    [due] = movements.due(upgraded, "commission", 10)
    assert due.value == COMMISSION
    assert movements.due(upgraded, "reward", 10) == []
    [slot] = slots.open_slots(upgraded, address(9))
    assert slots.payments_of(upgraded, slot) == [5]
    assert deposits.expected_balance(upgraded, 41) == 2 * PRICE - REWARD
    assert chain_state.start_number(upgraded) == 41
    # A block that is replaced takes its deposits with it.
    assert deposits.forget_block(upgraded, 10, word(0xD4)) == [1]
    assert deposits.expected_balance(upgraded, 41) == -REWARD


def test_the_next_start_writes_its_settings_down_once(upgraded: Connection) -> None:
    assert shared_settings.settings(upgraded) == {}
    wanted = {"network": "base", "wallet_account": 0, "commission_address": address(7), "commission_bps": 500}
    wanted |= {"minimum_reward": 1, "maximum_reward": 10**18}
    assert shared_settings.keep(upgraded, wanted) == wanted
    assert shared_settings.keep(upgraded, wanted | {"commission_bps": 1000}) == wanted


@pytest.mark.parametrize("name", ["payments", "deposits", "movements", "slots", "gigs", "attempts", "journal"])
def test_ids_go_on_after_the_last_one(upgraded: Connection, name: str) -> None:
    """Nonces and wallets are made of them: a table made anew must not begin from its last row."""
    table = tables.metadata.tables[name]
    last = upgraded.execute(select(table.c.id).order_by(table.c.id.desc())).scalars().first()
    is_sqlite = upgraded.dialect.name == "sqlite"
    query = f"select seq from sqlite_sequence where name = '{name}'"
    sequence = text(query if is_sqlite else f"select last_value from {name}_id_seq")
    assert upgraded.execute(sequence).scalar_one() >= last


def test_the_next_gig_goes_on_after_the_last_one_and_only_once_its_wallet_was_looked_at(upgraded: Connection) -> None:
    assert gig_ids.standing(upgraded) == Standing(next=2, looked_to=1, reserved=1)
    assert gig_ids.room(upgraded) == 0
