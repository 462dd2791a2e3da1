"""The endpoint's answers, row by row: each refusal also shows that nothing was charged."""

import secrets
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from tests.support.harness import (
    CREATE,
    Dev,
    Json,
    authorization,
    decode,
    encode,
    gig_terms,
    payload_v2,
    payment_header,
    sign,
)

GIG_TYPES: dict[str, Json] = {
    "mention": {"keyword": "usdc", "url": None},
    "like": {},
    "recast": {},
    "boost": {},
    "custom_bounty": {"how_to_earn": "Draw a cat", "url": None},
    "follow": {"url": "https://farcaster.xyz/dwr"},
    "hold_erc20": {"platform": "onchain", "token_contract": "0x" + "12" * 20, "token_amount_needed": 1, "url": None},
    "buy_erc20": {"platform": "onchain", "token_contract": "0x" + "12" * 20, "token_amount_needed": "0.5", "url": None},
}


@pytest.mark.parametrize("body", [b"", b"  ", b"{}"])
def test_a_probe_gets_the_minimum_price(dev: Dev, body: bytes) -> None:
    answer = dev.post(body)
    assert answer.status_code == 402
    assert decode(answer.headers["PAYMENT-REQUIRED"])["accepts"][0]["amount"] == "11000000"


@pytest.mark.parametrize("amount", [10, "10.5", 10.000001, 1e3])
def test_the_price_is_exact_in_both_versions(dev: Dev, amount: Any) -> None:
    answer = dev.post(gig_terms(amount=amount))

    assert answer.status_code == 402
    assert answer.headers["Cache-Control"] == "no-store"
    v2, v1 = decode(answer.headers["PAYMENT-REQUIRED"]), answer.json()
    assert len(answer.headers["PAYMENT-REQUIRED"]) < 3000
    micro = round(float(amount) * 1_000_000)
    expected = str(micro + -(-micro // 10))
    assert (v2["x402Version"], v1["x402Version"]) == (2, 1)
    [accepted], [accepted_v1] = v2["accepts"], v1["accepts"]
    assert accepted["amount"] == accepted_v1["maxAmountRequired"] == expected
    assert (accepted["network"], accepted_v1["network"]) == ("eip155:8453", "base")
    assert accepted["payTo"] == accepted_v1["payTo"] == dev.intake
    assert accepted["extra"] == {"name": "USD Coin", "version": "2"}
    assert v2["resource"]["url"] == accepted_v1["resource"] == dev.url + CREATE


@pytest.mark.parametrize("gig_type", GIG_TYPES)
def test_every_type_can_be_bought(dev: Dev, gig_type: str) -> None:
    buyer = dev.buyer()
    bought = dev.buy(buyer, gig_terms(**{"gig_type": gig_type, **GIG_TYPES[gig_type]}))
    assert bought.status_code == 200, bought.text
    gig = dev.funded(bought.json()["gig_id"])
    assert gig["gig_type"]["id"] == gig_type
    assert gig["gig_type"]["display"]["x"]["label"]
    assert dev.usdc(gig["gig_wallet_address"]) == 10_000_000


@pytest.mark.parametrize("paid", [False, True])
def test_invalid_terms_list_every_problem_and_charge_nothing(dev: Dev, paid: bool) -> None:
    buyer = dev.buyer()
    header = payment_header(buyer, dev.quote(gig_terms())) if paid else {}
    broken = gig_terms(chain="bitcoin", amount=9, duration="1week", url=None, keywrod="x")

    answer = dev.post(broken, header)

    assert answer.status_code == 400
    assert answer.json() == {
        "error": "Validation failed",
        "details": [
            "Invalid chain",
            "Minimum amount is 10",
            "Invalid duration",
            "URL required for like tasks",
            "Unknown field: keywrod",
        ],
    }
    assert dev.usdc(buyer.address) == 1_000_000_000


def test_a_chain_that_is_not_served_is_not_found(dev: Dev) -> None:
    answer = dev.post(gig_terms(chain="ethereum"))
    assert (answer.status_code, answer.json()) == (404, {"error": "Chain not found"})


MALFORMED: dict[str, Callable[[Json], str]] = {
    "empty": lambda payload: "",
    "not base64": lambda payload: "%%%",
    "url-safe base64": lambda payload: "eyJ_-w==",
    "not JSON": lambda payload: "aGVsbG8=",
    "a list": lambda payload: encode([payload]),
    "version 99": lambda payload: encode(payload | {"x402Version": 99}),
    "version as text": lambda payload: encode(payload | {"x402Version": "2"}),
    "version true": lambda payload: encode(payload | {"x402Version": True}),
    "no payload": lambda payload: encode({k: v for k, v in payload.items() if k != "payload"}),
    "no accepted": lambda payload: encode({k: v for k, v in payload.items() if k != "accepted"}),
    "over 8 KB": lambda payload: encode(payload | {"extensions": {"x": "y" * 8192}}),
    "value as a number": lambda payload: encode(_with(payload, value=11_000_000)),
    "value with a leading zero": lambda payload: encode(_with(payload, value="011000000")),
    "value too large": lambda payload: encode(_with(payload, value="9" * 78)),
    "short nonce": lambda payload: encode(_with(payload, nonce="0x12")),
    "short address": lambda payload: encode(_with(payload, to="0x12")),
    "deep": lambda payload: encode(payload | {"extensions": {"x": eval("[" * 60 + "]" * 60)}}),
}


def _with(payload: Json, **changes: Any) -> Json:
    inner = payload["payload"]
    return payload | {"payload": inner | {"authorization": inner["authorization"] | changes}}


@pytest.mark.parametrize("shape", MALFORMED)
def test_a_malformed_header_says_what_is_wrong(dev: Dev, shape: str) -> None:
    terms, buyer = gig_terms(), dev.buyer()
    payload = payload_v2(buyer, dev.quote(terms))

    answer = dev.post(terms, {"PAYMENT-SIGNATURE": MALFORMED[shape](payload)})

    assert answer.status_code == 400, answer.text
    assert answer.json()["error"].startswith("PAYMENT-SIGNATURE") or "uint256" in answer.json()["error"]
    assert dev.usdc(buyer.address) == 1_000_000_000


def _accepted(**changes: Any) -> Callable[[Dev, LocalAccount, Json], Json]:
    def build(dev: Dev, buyer: LocalAccount, requirements: Json) -> Json:
        return payload_v2(buyer, requirements) | {"accepted": requirements | changes}

    return build


def _signed(**changes: Any) -> Callable[[Dev, LocalAccount, Json], Json]:
    def build(dev: Dev, buyer: LocalAccount, requirements: Json) -> Json:
        fields = {name: value() if callable(value) else value for name, value in changes.items()}
        return payload_v2(buyer, requirements, **fields)

    return build


def _in(seconds: int) -> Callable[[], str]:
    return lambda: str(int(time.time()) + seconds)


def _wrong_signer(dev: Dev, buyer: LocalAccount, requirements: Json) -> Json:
    payload = payload_v2(buyer, requirements)
    payload["payload"]["signature"] = sign(dev.buyer(0), requirements, payload["payload"]["authorization"])
    return payload


def _high_s(dev: Dev, buyer: LocalAccount, requirements: Json) -> Json:
    payload = payload_v2(buyer, requirements)
    raw = bytes.fromhex(payload["payload"]["signature"][2:])
    order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
    s = order - int.from_bytes(raw[32:64])
    payload["payload"]["signature"] = "0x" + (raw[:32] + s.to_bytes(32) + bytes([55 - raw[64]])).hex()
    return payload


def _erc6492(dev: Dev, buyer: LocalAccount, requirements: Json) -> Json:
    payload = payload_v2(buyer, requirements)
    payload["payload"]["signature"] += "6492" * 16
    return payload


def _poor(dev: Dev, buyer: LocalAccount, requirements: Json) -> Json:
    return payload_v2(dev.buyer(int(requirements["amount"]) - 1), requirements)


def _cancelled(dev: Dev, buyer: LocalAccount, requirements: Json) -> Json:
    payload = payload_v2(buyer, requirements)
    nonce = payload["payload"]["authorization"]["nonce"]
    signed = buyer.sign_typed_data(
        {**requirements["extra"], "chainId": 8453, "verifyingContract": requirements["asset"]},
        {"CancelAuthorization": [{"name": "authorizer", "type": "address"}, {"name": "nonce", "type": "bytes32"}]},
        {"authorizer": buyer.address, "nonce": bytes.fromhex(nonce[2:])},
    )
    # cancelAuthorization(address,bytes32,uint8,bytes32,bytes32)
    data = f"0x5a049a70{buyer.address[2:]:0>64}{nonce[2:]}{signed.v:064x}{signed.r:064x}{signed.s:064x}"
    assert dev.send(buyer.address, requirements["asset"], data)["status"] == "0x1"
    return payload


PREFIX = "invalid_exact_evm_payload"
REFUSED: dict[str, tuple[Callable[[Dev, LocalAccount, Json], Json], str]] = {
    "wrong network": (_accepted(network="eip155:1"), "invalid_network"),
    "version 1 network name": (_accepted(network="base"), "invalid_network"),
    "wrong scheme": (_accepted(scheme="upto"), "unsupported_scheme"),
    "wrong asset": (_accepted(asset="0x" + "11" * 20), "invalid_payment_requirements"),
    "wrong payTo": (_accepted(payTo="0x" + "11" * 20), f"{PREFIX}_recipient_mismatch"),
    "signed for another": (_signed(to="0x" + "11" * 20), f"{PREFIX}_recipient_mismatch"),
    "accepted less": (_accepted(amount="1"), f"{PREFIX}_authorization_value_mismatch"),
    "signed less": (_signed(value="10999999"), f"{PREFIX}_authorization_value_mismatch"),
    "signed more": (_signed(value="11000001"), f"{PREFIX}_authorization_value_mismatch"),
    "expired": (_signed(validBefore=_in(-1)), f"{PREFIX}_authorization_valid_before"),
    "under 6 s left": (_signed(validBefore=_in(5)), f"{PREFIX}_authorization_valid_before"),
    "over two hours": (_signed(validBefore=_in(7300)), f"{PREFIX}_authorization_valid_before"),
    "for ever": (_signed(validBefore=str(2**256 - 1)), f"{PREFIX}_authorization_valid_before"),
    "not yet valid": (_signed(validAfter=_in(30)), f"{PREFIX}_authorization_valid_after"),
    "wrong signer": (_wrong_signer, f"{PREFIX}_signature"),
    "malleated signature": (_high_s, f"{PREFIX}_signature"),
    "ERC-6492": (_erc6492, f"{PREFIX}_signature"),
    "balance too low": (_poor, "insufficient_funds"),
    "cancelled nonce": (_cancelled, "invalid_exact_evm_nonce_already_used"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_payment_that_is_not_ours_is_refused_with_its_reason(dev: Dev, case: str) -> None:
    build, reason = REFUSED[case]
    terms, buyer = gig_terms(), dev.buyer(50_000_000)

    answer = dev.post(terms, {"PAYMENT-SIGNATURE": encode(build(dev, buyer, dev.quote(terms)))})

    assert answer.status_code == 402, answer.text
    assert answer.json()["error"] == reason
    assert answer.json()["detail"]
    assert decode(answer.headers["PAYMENT-REQUIRED"])["accepts"][0]["amount"] == "11000000"
    receipt = decode(answer.headers["PAYMENT-RESPONSE"])
    assert (receipt["success"], receipt["errorReason"], receipt["transaction"]) == (False, reason, "")
    assert dev.usdc(buyer.address) == 50_000_000


def test_a_payment_refused_before_it_was_sent_works_once_the_payer_has_funds(dev: Dev) -> None:
    terms, buyer = gig_terms(), dev.buyer(1)
    header = payment_header(buyer, dev.quote(terms))
    assert dev.post(terms, header).json()["error"] == "insufficient_funds"
    dev.give_usdc(buyer.address, 11_000_000)
    assert dev.post(terms, header).status_code == 200


def test_a_nonce_used_for_something_else_is_refused(dev: Dev) -> None:
    terms, buyer = gig_terms(), dev.buyer()
    requirements = dev.quote(terms)
    nonce = "0x" + secrets.token_hex(32)
    elsewhere = authorization(buyer, requirements, to="0x" + "22" * 20, nonce=nonce)
    broadcast(dev, elsewhere, sign(buyer, requirements, elsewhere))

    answer = dev.post(terms, payment_header(buyer, requirements, nonce=nonce))

    assert (answer.status_code, answer.json()["error"]) == (402, "invalid_exact_evm_nonce_already_used")


def test_a_payment_that_a_stranger_broadcast_first_is_a_gig(dev: Dev) -> None:
    terms, buyer = gig_terms(), dev.buyer(11_000_000)
    payload = payload_v2(buyer, dev.quote(terms))
    broadcast(dev, payload["payload"]["authorization"], payload["payload"]["signature"])

    answer = dev.post(terms, {"PAYMENT-SIGNATURE": encode(payload)})

    assert answer.status_code == 200, answer.text
    assert dev.usdc(dev.funded(answer.json()["gig_id"])["gig_wallet_address"]) == 10_000_000


def broadcast(dev: Dev, message: Json, signature: str) -> None:
    """Execute an authorization as anybody could: transferWithAuthorization(…, uint8, bytes32, bytes32)."""
    raw = signature[2:]
    words = [message["from"][2:], message["to"][2:]]
    words += [f"{int(message[name]):064x}" for name in ("value", "validAfter", "validBefore")]
    words += [message["nonce"][2:], raw[128:], raw[:64], raw[64:128]]
    data = "0xe3ee160e" + "".join(word.lower().rjust(64, "0") for word in words)
    assert dev.send(dev.buyers[9]["address"], dev.quote(gig_terms())["asset"], data)["status"] == "0x1"


def test_fifty_at_once_with_the_same_payment_are_one_gig(dev: Dev) -> None:
    terms, buyer = gig_terms(), dev.buyer(100_000_000)
    header = payment_header(buyer, dev.quote(terms))

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(lambda _: dev.post(terms, header), range(50)))

    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.text for answer in answers}) == 1
    assert dev.usdc(buyer.address) == 89_000_000


def test_letter_case_version_and_signature_spelling_do_not_make_another_payment(dev: Dev) -> None:
    terms, buyer = gig_terms(), dev.buyer(100_000_000)
    payload = payload_v2(buyer, dev.quote(terms))
    first = dev.post(terms, {"PAYMENT-SIGNATURE": encode(payload)})
    authorization_, signature = payload["payload"]["authorization"], payload["payload"]["signature"]
    respelled = _with(
        payload, **{"from": authorization_["from"].lower(), "nonce": authorization_["nonce"].upper().replace("X", "x")}
    )
    respelled["payload"]["signature"] = signature[:-2] + f"{int(signature[-2:], 16) - 27:02x}"
    v1 = {"x402Version": 1, "scheme": "exact", "network": "base", "payload": respelled["payload"]}

    again = dev.post(dict(reversed(terms.items())), {"PAYMENT-SIGNATURE": encode(respelled)})
    in_v1 = dev.post(terms, {"X-PAYMENT": encode(v1)})

    assert first.status_code == again.status_code == in_v1.status_code == 200
    assert first.json() == again.json() == in_v1.json()
    assert dev.usdc(buyer.address) == 89_000_000


def test_the_same_payment_for_other_terms_is_a_conflict(dev: Dev) -> None:
    buyer, terms = dev.buyer(), gig_terms()
    header = payment_header(buyer, dev.quote(terms))
    assert dev.post(terms, header).status_code == 200
    for other in (gig_terms(), gig_terms(amount=20), gig_terms(amount=2_000)):
        answer = dev.post(other, header)
        assert answer.status_code == 409, answer.text
    assert dev.usdc(buyer.address) == 989_000_000


def test_a_replay_must_carry_a_valid_signature(dev: Dev) -> None:
    terms, buyer = gig_terms(), dev.buyer()
    payload = payload_v2(buyer, dev.quote(terms))
    assert dev.post(terms, {"PAYMENT-SIGNATURE": encode(payload)}).status_code == 200
    payload["payload"]["signature"] = "0x" + "11" * 65
    answer = dev.post(terms, {"PAYMENT-SIGNATURE": encode(payload)})
    assert (answer.status_code, answer.json()["error"]) == (402, f"{PREFIX}_signature")


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"a":"' + b"x" * 70_000 + b'"}', 413),
        (b'{"chain":"ba\x00se"}', 400),
        (b'{"chain":"base\\u0000"}', 400),
        (b"[1]", 400),
        (b"{", 400),
        (b'{"amount":NaN}', 400),
        (b'{"amount":1e9999999999999999999}', 400),
        (b'{"amount":1' + b"0" * 5000 + b"}", 400),
        (b"\xff\xfe", 400),
        (b'{"chain":' + b"[" * 1000 + b"]" * 1000 + b"}", 400),
    ],
)
def test_a_bad_body_is_refused_as_json(dev: Dev, body: bytes, status: int) -> None:
    answer = dev.post(body)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "status", "error"),
    [
        ("GET", CREATE, 405, "Method not allowed"),
        ("DELETE", CREATE, 405, "Method not allowed"),
        ("GET", "/nowhere", 404, "Not found"),
        ("GET", "/api/gigs/999999", 404, "Gig with id 999999 not found"),
        ("GET", "/api/gigs/99999999999999999999999", 404, "Gig with id 99999999999999999999999 not found"),
        ("GET", "/api/gigs/0", 404, "Gig with id 0 not found"),
        ("GET", "/api/gigs/-1", 404, "Not found"),
    ],
)
def test_wrong_methods_and_paths(dev: Dev, method: str, path: str, status: int, error: str) -> None:
    answer = dev.http.request(method, dev.url + path)
    assert (answer.status_code, answer.json()) == (status, {"error": error})


def test_a_body_counts_whatever_its_content_type_says(dev: Dev) -> None:
    assert dev.post(gig_terms(), {"Content-Type": "text/plain"}).status_code == 402


@pytest.mark.parametrize("path", [CREATE, "/nowhere"])
def test_browsers_may_read_every_header(dev: Dev, path: str) -> None:
    answer = dev.post(gig_terms(), {"Origin": "https://shop.example"}, path=path)
    assert answer.headers["Access-Control-Allow-Origin"] == "*"
    exposed = {name.strip() for name in answer.headers["Access-Control-Expose-Headers"].split(",")}
    names = {"PAYMENT-REQUIRED", "PAYMENT-SIGNATURE", "PAYMENT-RESPONSE", "X-PAYMENT", "X-PAYMENT-RESPONSE"}
    assert names <= exposed


def test_a_preflight_is_free(dev: Dev) -> None:
    headers = {
        "Origin": "https://shop.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type, payment-signature",
    }
    answer = dev.http.options(dev.url + CREATE, headers=headers)
    assert answer.status_code == 200
    assert "payment-signature" in answer.headers["Access-Control-Allow-Headers"].lower()


def test_a_healthy_server_lives_and_is_ready(dev: Dev) -> None:
    assert dev.http.get(dev.url + "/healthz").json() == {"status": "ok"}
    ready = dev.http.get(dev.url + "/readyz")
    assert (ready.status_code, ready.json()["status"]) == (200, "ready")
