"""Something else than gigs behind the same paywall, on a real chain."""

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.support import ledgers
from tests.support.harness import Chain, decode, payment_header, until
from x402_gig.devnet.anvil import DevnetOptions, devnet
from x402_gig.devnet.run import DEV_COMMISSION, own_seed
from x402_gig.payments.gate import PaymentGate
from x402_gig.payments.order import Fulfilled, Order, Purchase
from x402_gig.server.http import bind, listening, url_of
from x402_gig.server.lifecycle import open_server
from x402_gig.settings import Settings


class Joke:
    name = "joke"

    def order(self, body: Mapping[str, Any]) -> Order:
        return Order(self.name, {}, price_units=10_000, description="One joke")

    def fulfil(self, book: Any, purchase: Purchase) -> Fulfilled:
        return Fulfilled({"joke": "It is on you."}, commission_units=purchase.value_units)


async def tell(request: Request) -> JSONResponse:
    return JSONResponse(request.state.purchase.answer)


async def _buy_twice(listener: socket.socket, rpc_url: str) -> tuple[list[httpx.Response], int]:
    chain, url = Chain(rpc_url), url_of(listener)
    buyer = chain.buyer(20_000)
    async with httpx.AsyncClient(timeout=90) as http:
        quote = decode((await http.post(f"{url}/joke")).headers["PAYMENT-REQUIRED"])["accepts"][0]
        header = payment_header(buyer, quote)
        answers = [await http.post(f"{url}/joke", headers=header) for _ in range(2)]
    earned = await asyncio.to_thread(until, lambda: chain.usdc(DEV_COMMISSION))
    return answers, earned


def test_a_second_paid_route_in_ten_lines(tmp_path: Any) -> None:
    async def main() -> tuple[list[httpx.Response], int]:
        with bind("127.0.0.1", 0) as listener:
            async with devnet(DevnetOptions(port=0)) as chain:
                settings = Settings(
                    network="devnet",
                    rpc_url=chain.rpc_url,
                    seed_file=own_seed(tmp_path / "ledger.db"),
                    commission_address=DEV_COMMISSION,
                    public_url=url_of(listener),
                    database_url=ledgers.new(tmp_path),
                )
                async with open_server(settings, (Joke(),)) as server:
                    paywall = Middleware(
                        PaymentGate, product=Joke(), checkout=server.checkout, public_url=url_of(listener)
                    )
                    app = Starlette(routes=[Route("/joke", tell, methods=["POST"], middleware=[paywall])])
                    async with listening(app, listener):
                        return await _buy_twice(listener, chain.rpc_url)

    answers, earned = asyncio.run(main())

    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[0].json() == answers[1].json() == {"joke": "It is on you."}
    assert decode(answers[0].headers["PAYMENT-RESPONSE"])["success"] is True
    assert earned == 10_000
