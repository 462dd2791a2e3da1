"""The settings that all servers of a ledger share: who they are, and their prices as dated rule sets.

A rule set is in force `LEAD_S` after it is written down, and a server quotes by nothing that it has not read within
`FRESH_S`. So each server knows a rule set before another one quotes by it, and takes what was quoted there. One that
is followed by another before it is in force never is.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, func, insert, select, update

from x402_gig.gigs.rules import RuleSet
from x402_gig.ledger.tables import ledger, rule_sets
from x402_gig.ledger.transactions import clock_s

LEAD_S = 10
# What a commit may take and whole seconds leave out.
MARGIN_S = 2
FRESH_S = LEAD_S - MARGIN_S

# By the names of their settings; amounts in base units.
IDENTITY = ("network", "wallet_account", "commission_address")
PRICES = ("commission_bps", "minimum_reward", "maximum_reward")
NAMES = (*IDENTITY, *PRICES)

_IDENTITY = select(*(ledger.c[name] for name in IDENTITY)).where(ledger.c.network.is_not(None))
_COMMISSION_ADDRESS = select(ledger.c.commission_address)
_COLUMNS = [rule_sets.c[name] for name in ("id", "valid_from", *PRICES)]
_HISTORY = select(*_COLUMNS).order_by(rule_sets.c.id.desc())
_BEFORE = select(func.coalesce(func.max(rule_sets.c.id), 0)).where(rule_sets.c.valid_from <= bindparam("then"))
_SINCE = _HISTORY.where(rule_sets.c.id >= _BEFORE.scalar_subquery())
# One that was in force before the clock went back is not among them: what was quoted by it is to be taken.
_PUT_OFF = (
    update(rule_sets)
    .where(rule_sets.c.created_at <= bindparam("now"), rule_sets.c.valid_from > bindparam("now") + MARGIN_S)
    .values(valid_from=bindparam("until"))
)


def settings(connection: Connection) -> dict[str, Any]:
    """By name, prices as the newest rule set has them; empty before the first start with settings in the ledger."""
    row = connection.execute(_IDENTITY).mappings().first()
    if row is None:
        return {}
    newest = history(connection)[0]
    return {**row, **{name: getattr(newest, name) for name in PRICES}}


def keep(connection: Connection, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Write these down in a ledger that has none; those that it has then."""
    if not (found := settings(connection)):
        connection.execute(update(ledger).values({name: wanted[name] for name in IDENTITY}))
        _add(connection, wanted, clock_s(connection))
    return found or settings(connection)


def change_commission_address(connection: Connection, address: str) -> None:
    """For all commissions that are not written down as movements yet."""
    connection.execute(update(ledger).values(commission_address=address))


def commission_address(connection: Connection) -> str:
    return str(connection.execute(_COMMISSION_ADDRESS).scalar_one())


def change_prices(connection: Connection, changes: Mapping[str, Any]) -> RuleSet:
    """Write the next rule set down: the newest with these changes, in force in `LEAD_S`.

    It follows the newest also where that one was dated by a clock that was ahead: of two, the later number counts. One
    that no server can have quoted by yet is put off until this one is in force, and so never is itself.
    """
    newest, now = history(connection)[0], clock_s(connection)
    values = {name: changes.get(name, getattr(newest, name)) for name in PRICES}
    connection.execute(_PUT_OFF, {"now": now, "until": now + LEAD_S})
    _add(connection, values, now + LEAD_S)
    return history(connection)[0]


def _add(connection: Connection, values: Mapping[str, Any], valid_from: int) -> None:
    row = {name: values[name] for name in PRICES} | {"valid_from": valid_from, "created_at": clock_s(connection)}
    connection.execute(insert(rule_sets), row)


def history(connection: Connection) -> Sequence[RuleSet]:
    """All of them, the newest first."""
    return [RuleSet(*row) for row in connection.execute(_HISTORY)]


def least_price(connection: Connection) -> int:
    """The least that anything has ever cost, in base units: a deposit of less was never a price, and is dust."""
    return min((rules.minimum_price_units for rules in history(connection)), default=0)


def in_force(connection: Connection, offer_s: int) -> tuple[RuleSet, list[tuple[RuleSet, int]]]:
    """The rule set in force, and the others that a price of the last `offer_s` seconds may have been quoted by.

    Those are what was in force then, by what a server had read before that, and what a server may quote by soon: each
    with the seconds until a server may, less `MARGIN_S`.
    """
    now = clock_s(connection)
    sets = [RuleSet(*row) for row in connection.execute(_SINCE, {"then": now - offer_s - LEAD_S})]
    current = next((rules for rules in sets if rules.valid_from <= now), sets[-1])
    # Of several that come into force at once, the last one does.
    others = {rules.valid_from: rules for rules in reversed(sets)}.values()
    return current, [(rules, _waits_s(rules, current, now)) for rules in others if rules is not current]


def _waits_s(rules: RuleSet, current: RuleSet, now: int) -> int:
    """Nothing for one that came before; it may be dated by a clock that was ahead."""
    return max(0, rules.valid_from - now - MARGIN_S) if rules.set_id > current.set_id else 0
