"""A ledger that was restored from an old copy has forgotten gigs: none of their wallets goes to another gig."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import ledgers
from tests.support.crashes import Victim, buyers, victim
from tests.support.creators import CREATE, Creator
from tests.support.crowd import bought, check_each_is_funded_once, crowd, orders
from tests.support.faults import Forward, Reply, RpcProxy, Status, rpc_proxy
from tests.support.harness import USDC, Chain, Json, devnet, gig_terms, until
from tests.support.operator import PRICE, Desk
from tests.support.servers import Postgres
from tests.support.tokens import Erc20, deploy

LONG_AGO = 1_000_000
Shop = tuple[Victim, RpcProxy, Creator]


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with devnet() as chain, rpc_proxy(chain) as proxy, victim(chain, proxy, tmp_path) as server:
        yield server, proxy, Creator(server, Desk(server.environment, tmp_path))


@contextmanager
def forgotten(server: Victim, folder: Path) -> Iterator[None]:
    """All that is done within; afterwards the server works with a copy that was made before.

    The copy claims to have looked far ahead, long ago: such a look says nothing of today's wallets.
    """
    backup = ledgers.copy(server.ledger, folder)
    ledgers.change(backup, f"update gig_ids set looked_to = {LONG_AGO}")
    yield
    server.stop()
    server.environment["X402_GIG_DATABASE_URL"] = server.ledger = backup
    server.start()
    [[looked_to]] = ledgers.rows(backup, "select looked_to from gig_ids")
    assert looked_to < LONG_AGO


def token(chain: Chain, name: str) -> Erc20:
    return Erc20(chain, USDC) if name == "USDC" else deploy(chain, name)


def wallet(gig: Json) -> str:
    return str(gig["gig_wallet_address"])


def warning(server: Victim) -> str:
    return str(server.http.get(server.url + "/readyz").json()["warnings"].get("wallets", ""))


@pytest.mark.parametrize("state", ["funded", "started"])
@pytest.mark.parametrize("name", ["OddToken", "USDC"])
def test_a_wallet_of_a_gig_that_was_forgotten_is_given_to_no_other(
    shop: Shop, tmp_path: Path, name: str, state: str
) -> None:
    """Neither to a buyer's gig nor to one in any token; one that is below a used one was given out too."""
    server, _, creator = shop
    with forgotten(server, tmp_path):
        unfunded = creator.create(USDC)
        used = creator.funded(token(server, name)) if state == "funded" else creator.started(token(server, name))
        if state == "started":
            creator.paid_up(used)

    sold = server.buy(server.buyer())
    others = [creator.create(USDC), creator.create(token(server, "OddToken").address)]

    assert sold.status_code == 200, sold.text
    wallets = {wallet(gig) for gig in (unfunded, used, sold.json(), *others)}
    assert len(wallets) == 5
    server.funded(sold.json()["gig_id"])
    audit = creator.desk.audit()
    assert audit["ok"] is True
    for said in (warning(server), *audit["notes"]):
        assert f"gigs {unfunded['gig_id']} to {used['gig_id']} are skipped: the wallet {wallet(used)}" in said
    assert audit["notes"]


def test_a_forgotten_gig_that_is_funded_later_is_noticed(shop: Shop, tmp_path: Path) -> None:
    """Its creator still has the address."""
    server, _, creator = shop
    odd = deploy(server, "OddToken")
    with forgotten(server, tmp_path):
        made = creator.create(odd.address)
    assert not warning(server)

    server.send(odd.holder(10**30), odd.address, made["tx_data"])
    until(lambda: warning(server))

    assert wallet(server.buy(server.buyer()).json()) != wallet(made)
    assert wallet(creator.create(odd.address)) != wallet(made)


def cannot_be_looked_at(request: Json, forward: Forward) -> Reply:
    """The wallets of the next gigs: it takes a call without a recipient."""
    if "to" not in request["params"][0]:
        raise Status(503)
    return forward()


def test_whoever_wants_a_gig_whose_wallet_was_not_looked_at_is_not_charged(shop: Shop) -> None:
    server, proxy, creator = shop
    first, second = buyers(server, 2)
    with proxy.broken(cannot_be_looked_at, "eth_call"):
        ledgers.change(server.ledger, "update gig_ids set looked_to = next")
        until(lambda: "cannot be looked at" in warning(server))
        assert first.post().status_code == 200

        refused = [second.post(), creator.post(CREATE, gig_terms())]

        assert [(answer.status_code, answer.json()["reason"]) for answer in refused] == [(503, "unavailable")] * 2
        assert server.usdc(second.account.address) == PRICE
    assert second.ask().status_code == 200
    until(lambda: not warning(server))


def test_a_server_that_cannot_look_at_the_next_wallets_does_not_start(shop: Shop) -> None:
    server, proxy, _ = shop
    server.stop()
    with proxy.broken(cannot_be_looked_at, "eth_call"):
        server.spawn()
        until(lambda: not server.is_running)
    assert "Cannot start" in server.log
    server.start()


def test_servers_that_start_on_an_old_copy_at_once_give_no_used_wallet_away(postgres: Postgres, tmp_path: Path) -> None:
    url = postgres.database()
    with devnet() as chain:
        with crowd(chain, tmp_path, url, 1) as before:
            creator = Creator(before[0], before.desk)
            backup = postgres.copy(url)
            used = creator.funded(deploy(chain, "OddToken"))
        with crowd(chain, tmp_path, backup, 2, seed=before.desk.env["X402_GIG_SEED"]) as servers:
            wanted = orders(servers, 10)
            gigs = bought(servers, wanted)

            check_each_is_funded_once(servers, servers[0], wanted, gigs)
            assert wallet(used) not in map(wallet, gigs)
            assert servers.rows('select "first", "last" from skipped_ids') == [(used["gig_id"], used["gig_id"])]
