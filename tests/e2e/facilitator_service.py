"""The official SDK's facilitator as a service of its own, with its own key: `python facilitator_service.py RPC_URL`."""

import asyncio
import selectors
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from eth_account import Account
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from web3 import HTTPProvider
from web3.types import RPCEndpoint
from x402 import x402FacilitatorSync
from x402.mechanisms.evm import FacilitatorWeb3Signer
from x402.mechanisms.evm.exact import register_exact_evm_facilitator
from x402.schemas.responses import SettleRequest, VerifyRequest

NETWORK = "eip155:8453"
START_TIMEOUT_S = 60
PLENTY_WEI = 10**21


def service(rpc_url: str) -> Starlette:
    """The three endpoints of the facilitator API, settling on `rpc_url` with a fresh key that has gas."""
    account = Account.create()
    HTTPProvider(rpc_url).make_request(RPCEndpoint("anvil_setBalance"), [account.address, hex(PLENTY_WEI)])
    signer = FacilitatorWeb3Signer(bytes(account.key).hex(), rpc_url)
    facilitator = register_exact_evm_facilitator(x402FacilitatorSync(), signer, NETWORK)

    # In threads: the SDK blocks.
    async def verify(request: Request) -> Response:
        asked = VerifyRequest.model_validate_json(await request.body())
        return _json(await asyncio.to_thread(facilitator.verify, asked.payment_payload, asked.payment_requirements))

    async def settle(request: Request) -> Response:
        asked = SettleRequest.model_validate_json(await request.body())
        return _json(await asyncio.to_thread(facilitator.settle, asked.payment_payload, asked.payment_requirements))

    async def supported(request: Request) -> Response:
        return _json(facilitator.get_supported())

    return Starlette(
        routes=[
            Route("/verify", verify, methods=["POST"]),
            Route("/settle", settle, methods=["POST"]),
            Route("/supported", supported),
        ]
    )


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(by_alias=True, exclude_none=True), media_type="application/json")


@contextmanager
def official_facilitator(rpc_url: str) -> Iterator[str]:
    """The service in its own process; its URL."""
    with subprocess.Popen([sys.executable, __file__, rpc_url], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield _url(process)
        finally:
            process.terminate()


def _url(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        line = process.stdout.readline() if selector.select(START_TIMEOUT_S) else ""
    assert line, "the facilitator service did not start"
    return line.split()[-1]


def main(rpc_url: str) -> None:
    app = service(rpc_url)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"ready http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level="warning")).run([listener])


if __name__ == "__main__":
    main(sys.argv[1])
