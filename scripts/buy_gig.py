"""Buy a gig with the official SDK (`pip install "x402[httpx,evm]"`): python scripts/buy_gig.py http://127.0.0.1:4021

BUYER_KEY holds the payer's key; without it, and only on this machine, Foundry's first account pays."""

import asyncio
import os
import sys

from eth_account import Account
from x402 import SchemeRegistration, x402Client, x402ClientConfig
from x402.http import decode_payment_response_header
from x402.http.clients import x402HttpxClient
from x402.mechanisms.evm.exact import ExactEvmScheme

URL = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:4021"
EVERYBODYS_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
KEY = os.environ.get("BUYER_KEY") or (EVERYBODYS_KEY if "//127.0.0.1:" in URL else sys.exit("BUYER_KEY is not set"))
TERMS = {
    "chain": "base",
    "token_address": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    "amount": 10,
    "start_time": "2025-10-01T15:00:00Z",  # in the past: starts now, and the terms stay the same from try to try
    "duration": "1day",
    "gig_type": "like",
    "url": "https://farcaster.xyz/dwr/0x1a2b3c4d",
}
SCHEME = SchemeRegistration("eip155:8453", ExactEvmScheme(Account.from_key(KEY)))
# Without spend_controls the SDK refuses to pay more than $1. This gig costs $11: its reward and 10 % commission.
BUYER = x402Client.from_config(x402ClientConfig([SCHEME], spend_controls={"max_amount_per_payment": "$11"}))


async def buy() -> None:
    # httpx waits 5 s unless it is told to be patient, and whoever gives up has paid all the same.
    async with x402HttpxClient(BUYER, base_url=URL, timeout=90) as http:
        answer = await http.post("/api/gigs/create/x402", json=TERMS)
    print(answer.status_code, answer.text)
    print("settlement", decode_payment_response_header(answer.raise_for_status().headers["PAYMENT-RESPONSE"]))


asyncio.run(buy())
