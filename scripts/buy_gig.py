"""Buy a gig with the official SDK (`pip install "x402[httpx,evm]"`): python scripts/buy_gig.py http://127.0.0.1:4021

BUYER_KEY holds the payer's key; without it, and only on this machine, Foundry's first account pays."""

import os
import sys
import time

import httpx
from eth_account import Account
from x402 import x402ClientSync
from x402.http import x402HTTPClientSync
from x402.mechanisms.evm.exact import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner

SERVER = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:4021"
EVERYBODYS_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
KEY = os.environ.get("BUYER_KEY") or (EVERYBODYS_KEY if "//127.0.0.1:" in SERVER else sys.exit("BUYER_KEY is not set"))
TERMS = {
    "chain": "base",
    "token_address": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
    "amount": 10,
    "start_time": "2025-10-01T15:00:00Z",  # in the past: starts now, and the terms stay the same from try to try
    "duration": "1day",
    "gig_type": "like",
    "url": "https://farcaster.xyz/dwr/0x1a2b3c4d",
}
client = register_exact_evm_client(x402ClientSync(), EthAccountSigner(Account.from_key(KEY)))
client.set_spend_controls({"max_amount_per_payment": "$11"})  # $1 unless it is raised; this gig costs 10 and 10 %

url = f"{SERVER}/api/gigs/create/x402"
quote = httpx.post(url, json=TERMS)
if quote.status_code != 402:
    sys.exit(f"no price: {quote.status_code} {quote.text}")
payment, _ = x402HTTPClientSync(client).handle_402_response(dict(quote.headers), quote.content, url)


def send() -> httpx.Response | None:
    """None when the connection broke: the payment may have arrived all the same."""
    try:
        return httpx.post(url, json=TERMS, headers=payment, timeout=90)
    except httpx.TransportError:
        return None


# Signed once and sent until there is an answer: a second signature could be a second payment.
while (answer := send()) is None or answer.status_code in (429, 500, 502, 503, 504):
    time.sleep(2 if answer is None else int(answer.headers.get("Retry-After", 2)))
print(answer.status_code, answer.text)
sys.exit(answer.status_code != 200)
