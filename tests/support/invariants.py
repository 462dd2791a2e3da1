"""Is every unit of USDC where it belongs, and nothing lost or doubled? Seen from outside: the token's logs, and what
the server shows. The ledger is only asked which gigs there are and whether anything is still under way."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from eth_utils.crypto import keccak

from tests.support.crashes import Buyer, Victim
from tests.support.harness import USDC, Chain, Json, NotTrue, until
from tests.support.ledgers import reading

TRANSFER_TOPIC = "0x" + keccak(text="Transfer(address,address,uint256)").hex()
USED_TOPIC = "0x" + keccak(text="AuthorizationUsed(address,bytes32)").hex()
UNDER_WAY = {
    "payments": "select id from payments where state = 'open'",
    "slots": "select id from slots where state = 'open'",
    "movements": "select id from movements where state = 'due'",
    "settled payments without a commission on its way": (
        "select id from payments where state = 'settled' and commission > 0 and id not in "
        "(select payment_id from commissions join movements on movements.id = movement_id where state = 'done')"
    ),
}


@dataclass(frozen=True)
class Paid:
    """A transfer of the token; `nonce` is that of the authorization that made it, if one did."""

    payer: str
    payee: str
    value: int
    nonce: str | None
    transaction: str


@dataclass
class Findings:
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unaccounted: list[str] = field(default_factory=list)
    # Honest buyers with money. Only a soak knows who they are.
    refused: list[str] = field(default_factory=list)
    # Whoever signs anew for the same terms after an answer got lost on the way buys again: two gigs for two payments.
    twice: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        names = ("lost", "doubled", "unaccounted", "refused")
        return ", ".join(f"{name} {len(getattr(self, name))}" for name in names)

    @property
    def all(self) -> list[str]:
        return [*self.lost, *self.doubled, *self.unaccounted, *self.refused]


def transfers(chain: Chain) -> list[Paid]:
    """All transfers of the token, each with the authorization whose log comes right before its own."""
    logs = chain.rpc("eth_getLogs", {"address": USDC, "fromBlock": "0x0", "toBlock": "latest"})
    return [_paid(log, logs[i - 1] if i else None) for i, log in enumerate(logs) if log["topics"][0] == TRANSFER_TOPIC]


def _paid(log: Json, previous: Json | None) -> Paid:
    payer, payee = ("0x" + topic[-40:] for topic in log["topics"][1:3])
    nonce = previous["topics"][2] if previous is not None and _is_pair(previous, log) else None
    return Paid(payer, payee, int(log["data"], 16), nonce, log["transactionHash"])


def _is_pair(used: Json, transfer: Json) -> bool:
    return (
        used["topics"][0] == USED_TOPIC
        and used["topics"][1] == transfer["topics"][1]
        and used["transactionHash"] == transfer["transactionHash"]
        and int(used["logIndex"], 16) + 1 == int(transfer["logIndex"], 16)
    )


def under_way(ledger: str) -> list[str]:
    """What the ledger has not finished."""
    with reading(ledger) as connection:
        rows = {name: connection.execute(query).fetchall() for name, query in UNDER_WAY.items()}
    return [f"{name}: {[row[0] for row in found]}" for name, found in rows.items() if found]


def gig_ids(ledger: str) -> list[int]:
    """Of those that were bought."""
    with reading(ledger) as connection:
        return [row[0] for row in connection.execute("select id from gigs where payment_id is not null order by id")]


class Books:
    """What the chain says was received and paid out, held against the server's gigs and its buyers."""

    def __init__(self, shop: Victim) -> None:
        self.shop = shop
        self.found = Findings()
        self.intake, self.commission = shop.intake.lower(), shop.commission.lower()
        self.moved = moved = transfers(shop)
        self.received = [paid for paid in moved if paid.payee == self.intake]
        self.paid_out = [paid for paid in moved if paid.payer == self.intake]
        self.gigs = {gig_id: shop.gig(gig_id) for gig_id in gig_ids(shop.ledger)}
        self.live = {i: gig for i, gig in self.gigs.items() if gig["funding"]["state"] != "missing"}

    def rewards_of(self, wallet: str) -> list[Paid]:
        return [paid for paid in self.paid_out if paid.payee == wallet]

    def check(self, buyers: Sequence[Buyer]) -> Findings:
        self._check_charges()
        self._check_wallets()
        self._check_sums()
        for buyer in buyers:
            self._check_buyer(buyer)
        self.found.unaccounted += under_way(self.shop.ledger)
        return self.found

    def _check_charges(self) -> None:
        """Each deposit has one gig, and each gig has its deposit."""
        charges = Counter((paid.payer, paid.transaction) for paid in self.received)
        gigs = Counter((gig["payment"]["payer"].lower(), gig["payment"]["transaction"]) for gig in self.live.values())
        for key in charges | gigs:
            if charges[key] > gigs[key]:
                self.found.lost.append(f"{key[0]} was charged {charges[key]} times in {key[1]}: {gigs[key]} gigs")
            if charges[key] < gigs[key]:
                self.found.doubled.append(f"{key[0]} was charged {charges[key]} times in {key[1]}: {gigs[key]} gigs")
        self.found.unaccounted += [f"no authorization: {paid}" for paid in self.received if paid.nonce is None]

    def _check_wallets(self) -> None:
        for gig_id, gig in self.live.items():
            self._check_gig(gig_id, gig)
        wallets = {gig["gig_wallet_address"].lower() for gig in self.live.values()}
        if len(wallets) != len(self.live):
            self.found.doubled.append("two gigs share a wallet")
        strangers = {paid.payee for paid in self.paid_out} - wallets - {self.commission}
        self.found.unaccounted += [f"the intake paid {stranger}: {self.rewards_of(stranger)}" for stranger in strangers]
        others = [paid for paid in self.moved if paid.payer != self.intake and {paid.payer, paid.payee} & wallets]
        self.found.unaccounted += [f"a gig's wallet is in {paid}" for paid in others]

    def _check_gig(self, gig_id: int, gig: Json) -> None:
        """Its wallet got its reward, once."""
        values = [paid.value for paid in self.rewards_of(gig["gig_wallet_address"].lower())]
        if len(values) > 1:
            self.found.doubled.append(f"gig {gig_id} was funded: {values}")
        elif values != [int(gig["amount"]) * 10**6]:
            self.found.lost.append(f"gig {gig_id} was funded: {values}")
        if gig["funding"]["state"] != "funded":
            self.found.unaccounted.append(f"gig {gig_id} is {gig['funding']}")

    def _check_sums(self) -> None:
        received, paid_out = (sum(paid.value for paid in side) for side in (self.received, self.paid_out))
        rewards = sum(int(gig["amount"]) * 10**6 for gig in self.live.values())
        commissions = sum(paid.value for paid in self.paid_out if paid.payee == self.commission)
        balance = self.shop.usdc(self.intake)
        sums = {
            "received - paid out - balance": received - paid_out - balance,
            "received - rewards - commissions - balance": received - rewards - commissions - balance,
            "balance of the intake": balance,
            "commission wallet - commissions": self.shop.usdc(self.commission) - commissions,
            "outside of authorizations": sum(paid.value for paid in self.paid_out if paid.nonce is None),
        }
        self.found.unaccounted += [f"{name}: {units} base units" for name, units in sums.items() if units]

    def _check_buyer(self, buyer: Buyer) -> None:
        """Their last answer is the truth."""
        charged = [paid for paid in self.received if paid.nonce in buyer.nonces]
        if len(charged) > 1:
            self.found.twice.append(f"{buyer.account.address}: {charged}")
        answer = buyer.answer
        if answer is None or answer.status_code not in (200, 402):
            self.found.lost.append(
                f"{buyer.account.address}, {buyer.nonces}, has no final answer: {answer and answer.text}"
            )
        elif answer.status_code == 402 and charged:
            self.found.lost.append(f"{buyer.account.address} was told {answer.text} and charged: {charged}")
        elif answer.status_code == 200 and not charged and answer.json()["gig_id"] in self.live:
            self.found.unaccounted.append(f"{buyer.account.address} has gig {answer.json()['gig_id']} for nothing")
        elif answer.status_code == 200 and answer.json()["gig_id"] not in self.gigs:
            self.found.lost.append(f"{buyer.account.address} has the answer of no gig: {answer.text}")


def examine(shop: Victim, buyers: Sequence[Buyer], timeout_s: float = 30) -> Findings:
    """Wait until nothing is under way, for so long at most, and look at everything."""
    with suppress(NotTrue):  # then it is among the findings
        until(lambda: not under_way(shop.ledger) and shop.usdc(shop.intake) == 0, timeout_s)
    return Books(shop).check(buyers)


def assert_all_accounted_for(shop: Victim, buyers: Sequence[Buyer]) -> None:
    """Every charged payer has one live gig, every gig was charged and funded, and no unit is anywhere else."""
    found = examine(shop, buyers)
    assert not found.all, "\n".join([str(found), *found.all])
