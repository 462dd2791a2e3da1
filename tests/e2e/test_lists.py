"""The lists that agents read: what is in them, page by page, and gigs that begin and end by the chain's clock."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account.signers.local import LocalAccount

from tests.support.crashes import victim
from tests.support.faults import rpc_proxy
from tests.support.harness import USDC, Dev, Json, devnet, gig_terms, payment_header, until

LIST = "/api/gigs"
DAY_S = 24 * 60 * 60


def asked(dev: Dev, query: str = "") -> httpx.Response:
    return dev.http.get(f"{dev.url}{LIST}{query}")


def listed(dev: Dev, **query: Any) -> list[Json]:
    answer = asked(dev, "?" + "&".join(f"{name}={value}" for name, value in query.items()))
    assert answer.status_code == 200, answer.text
    assert answer.json()["data"] == answer.json()["gigs"]
    return list(answer.json()["data"])


def ids(gigs: list[Json]) -> list[int]:
    return [gig["id"] for gig in gigs]


@pytest.fixture(scope="module")
def creator(dev: Dev) -> LocalAccount:
    return dev.buyer()


@pytest.fixture(scope="module")
def bought(dev: Dev, creator: LocalAccount) -> Iterator[list[int]]:
    """Gigs of one creator: three on Farcaster, one on X, one on chain, one for tomorrow."""
    tomorrow = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + DAY_S))
    changes: list[Json] = [
        {"gig_type": "mention", "url": None},
        {},
        {"gig_type": "follow", "url": "https://farcaster.xyz/dwr"},
        {"platform": "x", "url": "https://x.com/alice/status/12"},
        {"gig_type": "hold_erc20", "url": None, "token_contract": USDC, "token_amount_needed": 1},
        {"start_time": tomorrow},
    ]
    yield [dev.buy(creator, gig_terms(**change)).json()["gig_id"] for change in changes]


def test_the_newest_come_first_and_each_filter_says_which(dev: Dev, creator: LocalAccount, bought: list[int]) -> None:
    by = {"creator": creator.address}
    *now, later = bought
    assert ids(listed(dev, **by)) == now[::-1]
    assert ids(listed(dev, **by, status="all")) == bought[::-1]
    assert ids(listed(dev, **by, status="scheduled")) == [later]
    assert ids(listed(dev, **by, status="ended")) == []
    assert ids(listed(dev, **by, platforms="x,onchain")) == [now[4], now[3]]
    assert ids(listed(dev, **by, gig_type="like", platforms="farcaster")) == [now[1]]
    assert ids(listed(dev, **by, token=USDC.upper().replace("0X", "0x"))) == now[::-1]
    assert ids(listed(dev, **by, token="0x" + "12" * 20)) == []


def test_pages_follow_each_other_by_their_link_also_while_gigs_are_made(
    dev: Dev, creator: LocalAccount, bought: list[int]
) -> None:
    first = asked(dev, f"?status=all&limit=2&creator={creator.address}")
    assert first.headers["Link"] == f'<{first.json()["next"]}>; rel="next"'
    dev.buy(dev.buyer())
    found, answer = ids(first.json()["data"]), first
    while (url := answer.json()["next"]) is not None:
        assert url.startswith(dev.url)
        assert answer.headers["Link"] == f'<{url}>; rel="next"'
        answer = dev.http.get(url)
        found += ids(answer.json()["data"])
    assert "Link" not in answer.headers
    assert found == bought[::-1]


def test_every_problem_of_a_query_is_listed(dev: Dev) -> None:
    answer = asked(dev, "?status=activ&platforms=x,myspace&limit=0&cursor=-1&token=usdc&colour=red&limit=5")
    assert answer.status_code == 400
    assert answer.json() == {
        "error": "Validation failed",
        "details": [
            "Invalid status",
            "Invalid platforms",
            "Invalid token",
            "Invalid limit",
            "Invalid cursor",
            "Unknown parameter: colour",
        ],
    }


def test_a_gig_that_is_not_started_is_listed_for_its_key_alone_with_what_pays_it(dev: Dev) -> None:
    header = {"x-api-key": dev.api_key}
    made = dev.post(gig_terms(), header, "/api/gigs/create").json()
    assert made["gig_id"] not in ids(listed(dev, status="all", limit=500))
    refused = asked(dev, "?status=created")
    assert (refused.status_code, refused.json()) == (401, {"error": "Invalid API key"})
    answer = dev.http.get(f"{dev.url}{LIST}?status=created&limit=1", headers=header).json()["data"]
    assert {name: answer[0][name] for name in ("total_amount", "tx_data")} == {
        name: made[name] for name in ("total_amount", "tx_data")
    }
    assert (answer[0]["id"], answer[0]["status"]) == (made["gig_id"], "created")


def test_what_a_gig_asks_for_on_chain_is_in_it(dev: Dev) -> None:
    asks = {"token_contract": "0x" + "12" * 20, "token_amount_needed": "0.5", "verifier": "mine"}
    bought = dev.buy(dev.buyer(), gig_terms(gig_type="hold_erc20", url=None, **asks)).json()
    assert dev.gig(bought["gig_id"])["action_params"] == asks


def test_the_types_are_those_that_can_be_made(dev: Dev) -> None:
    answer = dev.http.get(f"{dev.url}/api/gigs/types")
    assert (answer.status_code, len(answer.json()["data"])) == (200, 8)


def test_a_head_is_answered_like_a_get(dev: Dev) -> None:
    assert dev.http.head(f"{dev.url}{LIST}").status_code == 200


def test_gigs_begin_and_end_by_themselves_also_while_the_server_is_down(tmp_path: Path) -> None:
    with devnet() as chain, rpc_proxy(chain) as proxy, victim(chain, proxy, tmp_path) as shop:
        tomorrow = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(shop.now() + DAY_S))
        terms = gig_terms(start_time=tomorrow)
        answer = shop.post(terms, payment_header(shop.buyer(), shop.quote(terms)))
        gig_id = answer.json()["gig_id"]
        assert (answer.json()["status"], ids(listed(shop))) == ("scheduled", [])

        _pass(shop, DAY_S + 1)
        until(lambda: ids(listed(shop)) == [gig_id])
        assert shop.gig(gig_id)["status"] == "active"

        shop.stop()
        _pass(shop, DAY_S)
        shop.start()
        assert (ids(listed(shop)), ids(listed(shop, status="ended"))) == ([], [gig_id])
        assert shop.gig(gig_id)["status"] == "ended"


def _pass(shop: Dev, seconds: int) -> None:
    shop.rpc("evm_increaseTime", seconds)
    shop.rpc("evm_mine")
