"""Creators who go on in a soak: each creates gigs in a token other than USDC, funds them and starts them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property

import httpx

from tests.support.creators import CREATE, START, Creator
from tests.support.harness import Json, NotTrue, gig_terms, until
from tests.support.invariants import TRANSFER_TOPIC, Findings
from tests.support.tokens import Erc20, call_data

LIVE = {"error": "Gig is already live"}
DECIMALS = call_data("decimals()")
# How long a transfer is waited for, which may be dropped from the pool.
ARRIVES_S = 3


@dataclass
class Starters:
    """All with one key. Gigs that are given up, since the answer to their order was lost, are funded by nobody."""

    creator: Creator
    token: Erc20
    made: list[Json] = field(default_factory=list)

    @cached_property
    def fee(self) -> int:
        """A tenth of the reward of ten tokens, in base units."""
        decimals = int(self.token.chain.rpc("eth_call", {"to": self.token.address, "data": DECIMALS}, "latest"), 16)
        return int(10**decimals)

    def start_one(self, strangers: Iterator[str], patience_s: float) -> None:
        """Funded by strangers, who have gas and the token."""
        made = until(self._created, patience_s, pause_s=0.1)
        self.made.append(made)
        until(lambda: self._is_started(made, strangers), patience_s, pause_s=0.1)

    def _created(self) -> Json | None:
        with suppress(httpx.TransportError):
            answer = self.creator.post(CREATE, gig_terms(token_address=self.token.address))
            return dict(answer.json()) if answer.status_code == 201 else None
        return None

    def _is_started(self, made: Json, strangers: Iterator[str]) -> bool:
        self._fund(made, strangers)
        with suppress(httpx.TransportError):
            answer = self.creator.post(START, {"gig_id": made["gig_id"]})
            return answer.status_code == 200 or answer.json() == LIVE
        return False

    def fund_again(self, strangers: Iterator[str]) -> None:
        """Transfers that a reorganisation took away; the chain is to be whole again."""
        for made in self.made:
            self._fund(made, strangers)

    def _fund(self, made: Json, strangers: Iterator[str]) -> None:
        """Unless all of it is there."""
        chain, wallet = self.token.chain, made["gig_wallet_address"]
        if not self._is_funded(wallet):
            chain.rpc(
                "eth_sendTransaction", {"from": next(strangers), "to": self.token.address, "data": made["tx_data"]}
            )
            with suppress(NotTrue):
                until(lambda: self._is_funded(wallet), ARRIVES_S)

    def _is_funded(self, wallet: str) -> bool:
        return sum(value for _, value in self._moved(None, wallet)) >= 11 * self.fee

    def _moved(self, payer: str | None, payee: str | None) -> list[tuple[str, int]]:
        """Payee and value of each transfer between the two, or of one of them."""
        ends = [end and "0x" + end[2:].lower().rjust(64, "0") for end in (payer, payee)]
        where = {"address": self.token.address, "topics": [TRANSFER_TOPIC, *ends], "fromBlock": "0x0"}
        logs = self.token.chain.rpc("eth_getLogs", where)
        return [("0x" + log["topics"][2][-40:], int(log["data"], 16)) for log in logs]

    def check(self, found: Findings) -> None:
        """Each gig is live, and its commission has left its wallet once and nothing else has."""
        commission = self.creator.shop.commission.lower()
        for made in self.made:
            gig_id, paid = made["gig_id"], self._moved(made["gig_wallet_address"], None)
            if paid != [(commission, self.fee)]:
                kind = found.doubled if len(paid) > 1 else found.lost
                kind.append(f"the wallet of gig {gig_id}, created with a key, has paid {paid}")
            if (status := self.creator.gig(made)["status"]) not in ("active", "scheduled"):
                found.unaccounted.append(f"gig {gig_id}, created with a key, is {status}")
