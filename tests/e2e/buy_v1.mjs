// A version 1 buyer, as released: BUYER_KEY=0x… node tests/e2e/buy_v1.mjs URL 'TERMS AS JSON'
import { createSigner, decodeXPaymentResponse, wrapFetchWithPayment } from "x402-fetch";

const [url, terms] = process.argv.slice(2);
const signer = await createSigner("base", process.env.BUYER_KEY);
const pay = wrapFetchWithPayment(fetch, signer, 11_000_000n);

const answer = await pay(url, { method: "POST", body: terms, headers: { "Content-Type": "application/json" } });
if (!answer.ok) throw new Error(`${answer.status} ${await answer.text()}`);
const receipt = decodeXPaymentResponse(answer.headers.get("X-PAYMENT-RESPONSE"));
console.log(JSON.stringify({ gig: await answer.json(), receipt }));
