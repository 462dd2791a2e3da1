"""Two agent clients that exist, over the list: each reads the fields that it reads, and drops the page without them."""

import json
import re
import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.e2e.test_answers import GIG_TYPES
from tests.support.harness import CREATE, Dev, Json, gig_terms
from tests.support.operator import transfer

ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
DISPLAY = {"icon", "label", "filter_id", "with_input", "how_to_earn", "earning_criteria", "input_placeholder"}
TOKEN = {"id": str, "image_url": str, "symbol": str, "coingecko_id": str, "address": str, "decimals": int}
CHAIN = {"id": str, "name": str, "image_url": str, "chain_id": int}
GIG: dict[str, Any] = {
    "id": int,
    "created_at": str,
    "start_time_ms": int,
    "end_time_ms": int,
    "duration_ms": int,
    "amount": str,
    "payout_interval_ms": int,
    "how_to_earn": str,
    "earning_criteria": str,
    "ticker": str,
    "gigbot_transactions_id": str,
    "platform": str,
    "external_url": str,
    "gig_address": str,
    "total_balance": str,
    "action_params": dict,
    "token": dict,
    "chain": dict,
    "gig_type": dict,
}


@pytest.fixture(scope="module")
def gigs(dev: Dev) -> Iterator[dict[int, str]]:
    """A gig of every type, one on X, and one that was created with a key; the type of each by its id."""
    buyer, made = dev.buyer(), {}
    for gig_type, changes in GIG_TYPES.items():
        made[dev.buy(buyer, gig_terms(**{"gig_type": gig_type, **changes})).json()["gig_id"]] = gig_type
    on_x = {"platform": "x", "url": "https://x.com/alice/status/123?s=20"}
    made[dev.buy(buyer, gig_terms(**on_x)).json()["gig_id"]] = "like"
    headers = {"x-api-key": dev.api_key}
    keyed = dev.post(gig_terms(gig_type="mention", url=None), headers, "/api/gigs/create").json()
    transfer(dev, buyer.address, keyed["gig_wallet_address"], 11_000_000)
    assert dev.post({"gig_id": keyed["gig_id"]}, headers, "/api/gigs/start").status_code == 200
    made[keyed["gig_id"]] = "mention"
    yield made


def page(dev: Dev, key: str, query: str) -> list[Json]:
    answer = dev.http.get(f"{dev.url}/api/gigs?status=active&limit=500{query}")
    assert answer.status_code == 200
    return list(answer.json()[key])


def test_the_client_that_reads_data_finds_every_field_in_every_gig(dev: Dev, gigs: dict[int, str]) -> None:
    found = {gig["id"]: gig for gig in page(dev, "data", "&platforms=x,farcaster,onchain")}
    assert set(gigs) <= set(found)
    for gig in found.values():
        for name, kind in GIG.items():
            assert isinstance(gig[name], kind), (name, gig)
        assert ISO.fullmatch(gig["created_at"])
        assert gig["end_time_ms"] - gig["start_time_ms"] == gig["duration_ms"]
        for block, fields in (("token", TOKEN), ("chain", CHAIN)):
            assert {name: type(gig[block][name]) for name in fields} == fields
        for platform in ("x", "farcaster"):
            display = gig["gig_type"]["display"][platform]
            assert set(display) >= DISPLAY
            assert display["label"]
    assert {gig_id: found[gig_id]["gig_type"]["id"] for gig_id in gigs} == gigs


def test_the_older_client_reads_gigs_and_the_post_from_the_end_of_its_url(dev: Dev, gigs: dict[int, str]) -> None:
    """It drops the whole page when one gig has no label for X."""
    found = page(dev, "gigs", "")
    assert all(gig["gig_type"]["display"]["x"]["label"] for gig in found)
    posts = {gig["id"]: gig["external_url"].rsplit("/", 1)[-1] for gig in found if gig["id"] in gigs}
    assert {post for post in posts.values() if post.isdigit()} == {"123"}
    for gig in found:
        url = urlsplit(gig["external_url"])
        assert not (url.query or url.fragment or gig["external_url"].endswith("/"))
        if "target_cast_hash" in gig["action_params"]:
            assert gig["external_url"].endswith("/" + gig["action_params"]["target_cast_hash"])
        if gig["gig_type"]["id"] == "mention":
            assert gig["action_params"]["tip_query_keyword"]


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        (CREATE, gig_terms(), 402),
        ("/api/gigs/create", gig_terms(), 201),
        ("/api/gigs/start", {"gig_id": 999_999_999}, 404),
    ],
    ids=["create/x402", "create", "start"],
)
@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_post_is_read_as_json_whatever_its_content_type(
    dev: Dev, path: str, body: Json, status: int, content_type: str
) -> None:
    address = urlsplit(dev.url)
    content = json.dumps(body).encode()
    lines = [
        f"POST {path} HTTP/1.1",
        f"Host: {address.netloc}",
        f"x-api-key: {dev.api_key}",
        f"Content-Length: {len(content)}",
        "Connection: close",
        *([f"Content-Type: {content_type}"] if content_type else []),
    ]
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + content)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer
