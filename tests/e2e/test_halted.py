"""A ledger that does not know all that its intake did must not sell: a gig wallet belongs to one gig for ever."""

from pathlib import Path

import pytest
from eth_account import Account

from tests.support import ledgers
from tests.support.creators import CREATE as GIGS
from tests.support.creators import Creator
from tests.support.harness import USDC, devnet, gig_terms, payment_header, serve_settings, served, until
from tests.support.operator import Desk, operated


def seed() -> str:
    Account.enable_unaudited_hdwallet_features()
    return str(Account.create_with_mnemonic()[1])


def test_an_old_backup_does_not_start(tmp_path: Path) -> None:
    with devnet() as chain:
        same = {"seed": seed(), "database_url": ledgers.new(tmp_path)}
        with served(chain, **same) as server:
            server.funded(server.buy(server.buyer()).json()["gig_id"])
            backup = ledgers.copy(same["database_url"], tmp_path)
            newer = server.buy(server.buyer()).json()["gig_id"]
            server.funded(newer)

        with (
            pytest.raises(AssertionError, match="an old backup"),
            served(chain, **same | {"database_url": backup}),
        ):
            pass
        desk = Desk(serve_settings(chain, tmp_path, **same | {"database_url": backup}), tmp_path)
        said = " ".join(desk.problems())
        assert "left the intake and this ledger did not sign that" in said
        assert "server: is halted" in said

        with served(chain, **same) as server:
            assert server.gig(newer)["funding"]["state"] == "funded"
            assert server.buy(server.buyer()).status_code == 200


def test_a_halt_that_another_process_wrote_is_told_by_readyz_and_no_gig_is_created(tmp_path: Path) -> None:
    with devnet() as chain, operated(chain, tmp_path) as shop:
        creator = Creator(shop, shop.desk)
        creator.create(USDC)
        ledgers.change(shop.desk.ledger, "update ledger set funding_halt = 'an old backup'")
        problems = until(lambda: shop.http.get(f"{shop.url}/readyz").json()["problems"])
        assert problems == {"halted": "an old backup"}
        answer = creator.post(GIGS, gig_terms(token_address=USDC))
        assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")


def test_a_seed_that_is_in_use_elsewhere_stops_the_sale() -> None:
    with devnet() as chain:
        shared = seed()
        with served(chain, seed=shared) as first, served(chain, seed=shared) as second:
            first.funded(first.buy(first.buyer()).json()["gig_id"])
            until(lambda: second.http.get(second.url + "/readyz").status_code == 503)
            buyer, terms = second.buyer(11_000_000), gig_terms()

            answer = second.post(terms, payment_header(buyer, second.quote(terms)))

            assert (answer.status_code, answer.json()["reason"]) == (503, "unavailable")
            assert list(second.http.get(second.url + "/readyz").json()["problems"]) == ["halted"]
            assert second.usdc(buyer.address) == 11_000_000
