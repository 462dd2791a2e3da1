"""The settings that the ledger keeps for all its servers: what they are, and how the operator changes them."""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from x402_gig.errors import Refused
from x402_gig.gigs.rules import RuleSet
from x402_gig.ledger import shared_settings
from x402_gig.ledger.engine import Connection
from x402_gig.operator.opening import Office
from x402_gig.operator.words import clock
from x402_gig.server.preflight import whose
from x402_gig.settings import PREFIX, written

NONE = "The ledger keeps no settings yet: a server that starts on it writes them down"


class Shared(Struct, frozen=True):
    """`identity` by the names of the settings; rule sets are the newest first, and `current` is in force."""

    identity: Mapping[str, Any]
    rule_sets: Sequence[RuleSet]
    current: RuleSet


def shared(connection: Connection) -> Shared:
    """Raises Refused when there are none."""
    if not (found := shared_settings.settings(connection)):
        raise Refused(NONE)
    current, _ = shared_settings.in_force(connection, 0)
    return Shared(
        {name: found[name] for name in shared_settings.IDENTITY}, shared_settings.history(connection), current
    )


def planned(connection: Connection, office: Office, wanted: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What these would change: before and after, as the settings are written. Raises Refused."""
    if not (found := shared_settings.settings(connection)):
        raise Refused(NONE)
    after = {**found, **wanted}
    if after["maximum_reward"] < after["minimum_reward"]:
        raise Refused("The maximum reward would be less than the minimum")
    relayers = [office.wallets.relayer(index) for index in range(office.settings.relayers)]
    token = office.settings.preset.token.address
    if ours := whose(after["commission_address"], token, office.wallets, relayers):
        raise Refused(f"The commission address would be {ours}: it must be an address of your own")
    return {
        name: (written(name, found[name]), written(name, after[name])) for name in wanted if after[name] != found[name]
    }


def change(connection: Connection, office: Office, wanted: Mapping[str, Any]) -> Shared:
    """Write them down for all servers; what there is then. Raises Refused."""
    changed = planned(connection, office, wanted)
    if "commission_address" in changed:
        shared_settings.change_commission_address(connection, wanted["commission_address"])
    if any(name in changed for name in shared_settings.PRICES):
        shared_settings.change_prices(connection, wanted)
    return shared(connection)


def as_json(found: Shared) -> dict[str, Any]:
    """Amounts in base units, times in Unix seconds."""
    sets = [
        {"id": s.set_id, "valid_from": s.valid_from, "in_force": s == found.current}
        | {name: getattr(s, name) for name in shared_settings.PRICES}
        for s in found.rule_sets
    ]
    return {**found.identity, "rule_sets": sets}


def told(found: Shared) -> str:
    lines = [f"{name:<18}  {value}" for name, value in found.identity.items()]
    for rules in found.rule_sets:
        prices = "  ".join(f"{name} {written(name, getattr(rules, name))}" for name in shared_settings.PRICES)
        mark = "  in force" if rules == found.current else ""
        lines.append(f"rule set {rules.set_id:<9}  from {clock(rules.valid_from)} UTC  {prices}{mark}")
    return "\n".join(lines)


def when(found: Shared) -> str:
    """When the newest prices count."""
    newest = found.rule_sets[0]
    if newest == found.current:
        return "its prices are in force"
    return f"its prices change at {clock(newest.valid_from)} UTC"


def warnings(connection: Connection, office: Office) -> list[str]:
    """What no server starts with: settings of this environment that are not the ledger's."""
    return [
        f"{PREFIX}{name.upper()} is {ours} here and {its} in the ledger: leave it out, or the next start is refused"
        for name, (ours, its) in office.environment.differing(shared_settings.settings(connection)).items()
    ]
