"""API keys: shown once, kept as a hash, found by their prefix.

A key is 256 random bits, so one round of SHA-256 hides it as well as a slow hash would.
"""

import hmac
import secrets
import time
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from msgspec import Struct
from sqlalchemy import Column, Connection, insert, select, update

from x402_gig.ledger.tables import api_keys

PREFIX_CHARS = 12
MAX_KEY_CHARS = 100
USED_EVERY_S = 60
_NO_HASH = sha256().hexdigest()


class ApiKey(Struct, frozen=True):
    """Times in Unix seconds. `prefix` is the readable beginning of the key."""

    id: int
    name: str
    prefix: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    last_used_at: int | None

    def state(self, now_s: int) -> str:
        if self.revoked_at is not None:
            return "revoked"
        return "expired" if self.expires_at is not None and self.expires_at <= now_s else "active"

    def is_used_newly(self, now_s: int) -> bool:
        """Is it time to write its use down?"""
        return self.last_used_at is None or self.last_used_at <= now_s - USED_EVERY_S


def create(connection: Connection, name: str, expires_at: int | None) -> tuple[ApiKey, str]:
    """The new key's row, and the key itself, which nobody can tell again."""
    prefix = f"gig_{secrets.token_hex(4)}"
    key = f"{prefix}_{secrets.token_urlsafe(32)}"
    values = {
        "name": name,
        "prefix": prefix,
        "hash": _hash(key),
        "created_at": int(time.time()),
        "expires_at": expires_at,
    }
    row = connection.execute(insert(api_keys).values(values).returning(*_columns())).one()
    return ApiKey(*row), key


def find(connection: Connection, key: str) -> ApiKey | None:
    """The row of a key that may be used now."""
    if len(key) > MAX_KEY_CHARS or not (key.isascii() and key.isprintable()):
        return None
    query = select(*_columns(), api_keys.c.hash).where(api_keys.c.prefix == key[:PREFIX_CHARS])
    row = connection.execute(query).first()
    # Compared also when there is no such prefix: the time tells nothing.
    is_right = hmac.compare_digest(_hash(key), row.hash if row is not None else _NO_HASH)
    if row is None or not is_right:
        return None
    found = ApiKey(*row[:-1])
    return found if found.state(int(time.time())) == "active" else None


def used(connection: Connection, key: ApiKey) -> None:
    """Of many at once only the first is written."""
    as_it_was = update(api_keys).where(
        api_keys.c.id == key.id, api_keys.c.last_used_at.is_not_distinct_from(key.last_used_at)
    )
    connection.execute(as_it_was.values(last_used_at=int(time.time())))


def listed(connection: Connection) -> Sequence[ApiKey]:
    """All of them, oldest first."""
    return [ApiKey(*row) for row in connection.execute(select(*_columns()).order_by(api_keys.c.id))]


def revoke(connection: Connection, key: ApiKey) -> bool:
    """From now on it is refused. False when it was already."""
    still = update(api_keys).where(api_keys.c.id == key.id, api_keys.c.revoked_at.is_(None))
    return connection.execute(still.values(revoked_at=int(time.time()))).rowcount == 1


def _hash(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def _columns() -> list[Column[Any]]:
    return [api_keys.c[name] for name in ApiKey.__struct_fields__]
