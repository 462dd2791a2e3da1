"""Creators of gigs with an API key, and what they do with them."""

from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.harness import Dev, Json, gig_terms, until
from tests.support.operator import Desk
from tests.support.tokens import Erc20

CREATE, START = "/api/gigs/create", "/api/gigs/start"


@dataclass
class Creator:
    """Holds an API key of a shop, whose operator has made it."""

    shop: Dev
    desk: Desk
    key: str = field(init=False)

    def __post_init__(self) -> None:
        self.key = self.desk.run("keys", "create", "A creator").stdout.strip()

    def post(self, path: str, body: Any) -> httpx.Response:
        return self.shop.post(body, {"x-api-key": self.key}, path)

    def create(self, token: str, **changes: Any) -> Json:
        answer = self.post(CREATE, gig_terms(token_address=token, **changes))
        assert answer.status_code == 201, answer.text
        return dict(answer.json())

    def funded(self, token: Erc20, extra: int = 0, **changes: Any) -> Json:
        """A gig whose `tx_data` was sent as it is, and so many base units more."""
        made = self.create(token.address, **changes)
        payer = token.holder(10**30)
        assert self.shop.send(payer, made["gig_token_address"], made["tx_data"])["status"] == "0x1"
        if extra:
            token.send(payer, made["gig_wallet_address"], extra)
        return made

    def start(self, made: Json) -> httpx.Response:
        return self.post(START, {"gig_id": made["gig_id"]})

    def started(self, token: Erc20, extra: int = 0, **changes: Any) -> Json:
        made = self.funded(token, extra, **changes)
        answer = self.start(made)
        assert (answer.status_code, answer.json()) == (
            200,
            {"data": {"message": "Gig started successfully", "gig_id": made["gig_id"]}},
        )
        return made

    def gig(self, made: Json) -> Json:
        answer = self.shop.http.get(f"{self.shop.url}/api/gigs/{made['gig_id']}", headers={"x-api-key": self.key})
        assert answer.status_code == 200, answer.text
        return dict(answer.json()["data"])

    def paid_up(self, made: Json, timeout_s: float = 30) -> Json:
        """The gig, once its commission is on chain."""
        return dict(until(lambda: (gig := self.gig(made))["funding"]["commission_transaction"] and gig, timeout_s))
