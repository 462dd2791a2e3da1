"""Two servers on one ledger, each with a node of its own, and one of these is behind, on another chain, or gone."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen

import pytest
from eth_account import Account

from tests.support import ledgers
from tests.support.faults import Forward, RpcProxy, Rule, rpc_proxy, status
from tests.support.harness import (
    USDC,
    Chain,
    Dev,
    Json,
    calldata,
    decode,
    devnet,
    gig_terms,
    payment_header,
    running,
    serve_settings,
    until,
)
from tests.support.operator import PRICE, REWARD, Desk
from tests.support.servers import Postgres


@dataclass
class Pair:
    """`shop` sees the chain; `other`, which is `process`, sees what `node` says."""

    shop: Dev
    other: Dev
    process: "Popen[str]"
    node: RpcProxy
    desk: Desk

    def ends_at(self, block: Json) -> None:
        """For the other server's node this is the newest block, and it holds nothing of ours."""
        self.node.rules |= {"eth_getBlockByNumber": up_to(block), "eth_getLogs": nothing_in(block)}

    def other_dies(self) -> None:
        self.process.kill()
        self.process.wait()
        # As if the deadline of its lease were past already.
        ledgers.change(self.desk.ledger, "update processes set ends_at = 0")

    def head(self) -> Json:
        return dict(self.shop.rpc("eth_getBlockByNumber", "latest", False))

    def doubts(self) -> int:
        return int(self.desk.rows("select doubts from ledger")[0][0])


def up_to(newest: Json) -> Rule:
    def rule(request: Json, forward: Forward) -> Json:
        which = request["params"][0]
        if which in ("latest", newest["number"]):
            return told(request, newest)
        return told(request, None) if int(which, 16) > int(newest["number"], 16) else forward()

    return rule


def nothing_in(block: Json) -> Rule:
    def rule(request: Json, forward: Forward) -> Json:
        is_meant = request["params"][0].get("blockHash") == block["hash"]
        return told(request, []) if is_meant else forward()

    return rule


def told(request: Json, result: object) -> Json:
    return {"jsonrpc": "2.0", "id": request["id"], "result": result}


@contextmanager
def pair(postgres: Postgres, folder: Path) -> Iterator[Pair]:
    with devnet() as chain, rpc_proxy(chain) as node, ExitStack() as stack:
        env = serve_settings(chain, folder, database_url=postgres.database(), reorg_depth=8)
        chain.rpc("anvil_mine", "0x10")

        def start(seen: Chain) -> tuple["Popen[str]", Dev]:
            settings = {**env, "X402_GIG_RPC_URL": seen.rpc_url}
            process, ready = stack.enter_context(running("serve", env=settings, cwd=folder))
            return process, Dev(chain.rpc_url, url=ready["url"])

        (_, shop), (process, other) = start(chain), start(node.chain)
        servers = Pair(shop, other, process, node, Desk(env, folder))
        until(lambda: servers.desk.rows("select count(distinct process_id) from leases") == [(2,)])
        yield servers


def signed(shop: Dev) -> tuple[Json, Json]:
    """Terms and a payment for them that lives for an hour."""
    terms = gig_terms()
    lifetime = str(int(time.time()) + 3600)
    return terms, payment_header(shop.buyer(PRICE), shop.quote(terms), validBefore=lifetime)


@pytest.mark.parametrize("dies", [False, True], ids=["catches up", "dies"])
def test_what_a_server_on_a_dropped_block_takes_away_is_read_again_and_nobody_who_paid_is_refused(
    postgres: Postgres, tmp_path: Path, dies: bool
) -> None:
    """The payment was executed by a stranger, so no transaction of ours says that it is on chain."""
    with pair(postgres, tmp_path) as servers:
        shop = servers.shop
        servers.ends_at(servers.head())
        shop.rpc("evm_mine")
        dropped = servers.head()
        shop.rpc("anvil_rollback", 1)
        terms, header = signed(shop)
        shop.send(Account.create().address, USDC, calldata(decode(header["PAYMENT-SIGNATURE"])["payload"]))
        gig = shop.post(terms, header).json()
        shop.funded(gig["gig_id"])

        before = servers.doubts()
        servers.ends_at(dropped)
        until(lambda: servers.doubts() > before)
        servers.other_dies() if dies else servers.node.rules.clear()

        answer = until(lambda: (a := shop.post(terms, header)).status_code != 503 and a)
        assert answer.status_code == 200, answer.text
        assert answer.json()["gig_id"] == gig["gig_id"]
        until(lambda: shop.gig(gig["gig_id"])["status"] == "active")
        assert servers.desk.rows("select state from payments") == [("settled",)]
        assert servers.desk.rows("select count(*) from journal where state = 'rejected'") == [(0,)]
        assert servers.desk.audit()["ok"] is True


def test_what_a_server_wrote_down_of_a_dropped_block_before_it_died_is_undone_by_the_others(
    postgres: Postgres, tmp_path: Path
) -> None:
    """The others have read that height already when the receipt is written down."""
    mined, late = threading.Event(), threading.Event()

    def tell_late(_: Json, forward: Forward) -> Json:
        receipt = forward()
        mined.set()
        late.wait(30)
        return receipt

    with pair(postgres, tmp_path) as servers, ThreadPoolExecutor(1) as pool:
        shop = servers.shop
        (terms, header), (terms_of_next, header_of_next) = signed(shop), signed(shop)
        servers.ends_at(servers.head())
        servers.node.rules["eth_sendRawTransactionSync"] = tell_late
        buying = pool.submit(servers.other.post, terms, header)
        assert mined.wait(30)
        dropped = servers.head()
        shop.rpc("anvil_rollback", 1)
        shop.rpc("anvil_mine", "0x2")
        height = int(servers.head()["number"], 16)
        until(lambda: servers.desk.rows("select cursor_number from ledger")[0][0] >= height)
        servers.ends_at(dropped)
        late.set()
        gig = buying.result().json()
        servers.other_dies()

        bought = [gig, shop.post(terms_of_next, header_of_next).json()]

        for each in bought:
            until(lambda each=each: shop.usdc(each["gig_wallet_address"]) == REWARD)  # type: ignore[misc]
        until(lambda: shop.gig(gig["gig_id"])["status"] == "active")
        assert shop.post(terms, header).json()["gig_id"] == gig["gig_id"]
        until(lambda: servers.desk.shown("audit")["ok"] is True)


@pytest.mark.parametrize("answers", [False, True], ids=["does not answer", "is behind"])
def test_a_server_whose_node_fails_leaves_it_to_the_others_to_move_money_on(
    postgres: Postgres, tmp_path: Path, answers: bool
) -> None:
    with pair(postgres, tmp_path) as servers:
        shop, last = servers.shop, "(select max(id) from processes)"
        moved = f"update leases set process_id = {last}, fence = fence + 1 where name = 'funding'"
        ledgers.change(servers.desk.ledger, moved)
        if answers:
            servers.ends_at(servers.head())
        else:
            servers.node.rules["*"] = status(429)

        gig = shop.post(*signed(shop)).json()

        shop.funded(gig["gig_id"])
        servers.node.rules.clear()
        until(lambda: servers.desk.rows("select count(distinct process_id) from leases") == [(2,)])
