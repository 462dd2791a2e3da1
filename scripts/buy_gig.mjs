// Buy a gig with the official SDK (`npm install @x402/fetch @x402/evm viem`):
//
//     node scripts/buy_gig.mjs http://127.0.0.1:4021
//
// BUYER_KEY holds the payer's key; without it, and only on this machine, Foundry's first account pays.
import { setTimeout } from "node:timers/promises";

import { ExactEvmScheme } from "@x402/evm";
import { decodePaymentResponseHeader, wrapFetchWithPaymentFromConfig } from "@x402/fetch";
import { privateKeyToAccount } from "viem/accounts";

const url = process.argv[2] ?? "http://127.0.0.1:4021";
const everybodysKey = "0xac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80";
const key = process.env.BUYER_KEY || (url.includes("//127.0.0.1:") && everybodysKey);
if (!key) throw new Error("BUYER_KEY is not set");

const terms = {
  chain: "base",
  token_address: "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913",
  amount: 10,
  start_time: "2025-10-01T15:00:00Z", // in the past: starts now, and the terms stay the same from try to try
  duration: "1day",
  gig_type: "like",
  url: "https://farcaster.xyz/dwr/0x1a2b3c4d",
};

// The SDK signs once for each call. What it has signed is sent until there is an answer: the next call's signature
// could be a second payment.
async function insist(request) {
  for (;;) {
    // Be patient: whoever gives up early has paid all the same.
    const sent = fetch(request.clone(), { signal: AbortSignal.timeout(90_000) });
    if (!request.headers.has("PAYMENT-SIGNATURE")) return sent;
    const answer = await sent.catch(() => null);
    if (answer && ![429, 500, 502, 503, 504].includes(answer.status)) return answer;
    await setTimeout(1000 * Number(answer?.headers.get("Retry-After") ?? 2));
  }
}

const pay = wrapFetchWithPaymentFromConfig(insist, {
  schemes: [{ network: "eip155:8453", client: new ExactEvmScheme(privateKeyToAccount(key)) }],
  // Without this the SDK refuses to pay more than $1. This gig costs $11: its reward and 10 % commission.
  spendControls: { maxAmountPerPayment: "$11" },
});

const answer = await pay(`${url}/api/gigs/create/x402`, {
  method: "POST",
  body: JSON.stringify(terms),
  headers: { "Content-Type": "application/json" },
});
console.log(answer.status, await answer.text());
if (!answer.ok) process.exit(1);
console.log("settlement", decodePaymentResponseHeader(answer.headers.get("PAYMENT-RESPONSE")));
