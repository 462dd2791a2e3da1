"""Create, fund and start a gig with an API key: API_KEY=gig_… python scripts/create_gig.py http://127.0.0.1:4021 http://127.0.0.1:8545

The second URL is the chain's JSON-RPC endpoint; a third argument is the number of a funded gig that is only to be
started. FUNDER_KEY holds the key of whoever pays reward, commission and gas; without it, and only on this machine,
Foundry's first account does."""

import os
import sys
import time

import httpx
from eth_account import Account
from web3 import Web3

SERVER, RPC = sys.argv[1:3] if len(sys.argv) > 2 else ("http://127.0.0.1:4021", "http://127.0.0.1:8545")
EVERYBODYS_KEY = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"
KEY = os.environ.get("FUNDER_KEY") or (EVERYBODYS_KEY if "//127.0.0.1:" in RPC else sys.exit("FUNDER_KEY is not set"))
HEADERS = {"x-api-key": os.environ.get("API_KEY") or sys.exit("API_KEY is not set: x402-gig keys create NAME")}
TERMS = {
    "chain": "base",
    "token_address": "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",  # or any other ERC-20
    "amount": 10,
    "start_time": "2025-10-01T15:00:00Z",
    "duration": "1week",
    "gig_type": "mention",
    "keyword": "x402",
}

chain, funder = Web3(Web3.HTTPProvider(RPC)), Account.from_key(KEY)
if not chain.is_connected():
    sys.exit(f"no chain at {RPC}")


def create() -> int:
    """The gig's number, once the transfer that funds it is on chain."""
    answer = httpx.post(f"{SERVER}/api/gigs/create", json=TERMS, headers=HEADERS, timeout=30)
    if answer.status_code != 201:
        sys.exit(f"not created: {answer.status_code} {answer.text}")
    gig = answer.json()
    print(f"created gig {gig['gig_id']}, wallet {gig['gig_wallet_address']}", file=sys.stderr)
    call = {"from": funder.address, "to": Web3.to_checksum_address(gig["gig_token_address"]), "data": gig["tx_data"]}
    tip = chain.eth.max_priority_fee
    transaction = call | {
        "chainId": gig["gig_chain_id"],
        "nonce": chain.eth.get_transaction_count(funder.address),
        "gas": chain.eth.estimate_gas(call),
        "maxFeePerGas": 2 * chain.eth.get_block("latest")["baseFeePerGas"] + tip,
        "maxPriorityFeePerGas": tip,
    }
    sent = chain.eth.send_raw_transaction(funder.sign_transaction(transaction).raw_transaction)
    chain.eth.wait_for_transaction_receipt(sent)
    print(f"funded in 0x{sent.hex().removeprefix('0x')}", file=sys.stderr)
    return int(gig["gig_id"])


gig_id = int(sys.argv[3]) if len(sys.argv) > 3 else create()
# Not funded yet where the server wants more confirmations; asking again is always safe.
for _ in range(30):
    answer = httpx.post(f"{SERVER}/api/gigs/start", json={"gig_id": gig_id}, headers=HEADERS, timeout=30)
    if "is not funded" not in answer.text and answer.status_code not in (409, 429, 503):
        break
    time.sleep(2)
print(answer.status_code, answer.text)
if answer.status_code != 200:
    sys.exit(f"gig {gig_id} is not started: python scripts/create_gig.py {SERVER} {RPC} {gig_id}")
