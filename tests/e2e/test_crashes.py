"""SIGKILL at each point of the way, alone and in a batch: what was begun is finished, once."""

import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from eth_utils.crypto import keccak

from tests.support.crashes import (
    ASKS,
    LIFETIME_S,
    POINTS,
    Buyer,
    Point,
    Together,
    Trap,
    Victim,
    buyers,
    once_funded,
    request_of,
    shopping,
    victim,
)
from tests.support.faults import RpcProxy, rpc_proxy
from tests.support.harness import devnet, until
from tests.support.invariants import Books, Paid, assert_all_accounted_for
from tests.support.ledgers import reading

CROWD = 20
BEFORE_BROADCAST = next(point for point in POINTS if "before broadcast" in point.name)
Place = tuple[Victim, RpcProxy]

# On both databases.
pytestmark = pytest.mark.usefixtures("database")


@pytest.fixture(scope="module")
def place(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """One server for all: each test kills it, and finds it started again and with nothing left to do."""
    folder = tmp_path_factory.mktemp("shop")
    # One relayer, so that a crowd can be kept waiting for it.
    with devnet() as chain, rpc_proxy(chain) as proxy, victim(chain, proxy, folder, relayers=1) as shop:
        yield shop, proxy
        sys.stderr.write(shop.log[-50_000:])


def test_the_books_notice_what_is_missing_or_too_much(place: Place) -> None:
    """What the tests above rely on: each kind of wrong shows."""
    shop, _ = place
    [buyer] = crowd = buyers(shop, 1)
    gig_id = buyer.insist().json()["gig_id"]
    wallet = shop.gig(gig_id)["gig_wallet_address"].lower()
    assert_all_accounted_for(shop, crowd)

    def found(tamper: Callable[[Books], object]) -> tuple[bool, bool, bool]:
        books = Books(shop)
        tamper(books)
        findings = books.check(crowd)
        return bool(findings.lost), bool(findings.doubled), bool(findings.unaccounted)

    payment = Paid(buyer.account.address.lower(), shop.intake.lower(), 11_000_000, buyer.nonces[0], "0x1")
    reward = Paid(shop.intake.lower(), wallet, 10_000_000, "0x2", "0x2")
    assert found(lambda _: None) == (False, False, False)
    assert found(lambda books: books.live.pop(gig_id)) == (True, False, True)
    assert found(lambda books: books.received.append(payment)) == (True, False, True)
    assert found(lambda books: books.received.append(replace(payment, nonce=None))) == (True, False, True)
    assert found(lambda books: books.received.pop()) == (False, True, True)
    assert found(lambda books: books.paid_out.append(reward)) == (False, True, True)
    assert found(lambda books: books.paid_out.append(replace(reward, payee="0x3"))) == (False, False, True)
    assert found(lambda books: books.paid_out.remove(books.rewards_of(wallet)[0])) == (True, False, True)
    buyer.answer = shop.post(buyer.terms)
    assert found(lambda _: None) == (True, False, False)


def carriers(proxy: RpcProxy, buyer: Buyer) -> list[str]:
    """The transactions, as often as they were sent, that carry the buyer's authorization."""
    return [raw for raw in proxy.sent if buyer.nonces[0][2:] in raw]


def assert_sent_again(proxy: RpcProxy, trap: Trap, sent_before: list[str]) -> None:
    """What was signed before the crash goes out as it was, and nothing else takes its place."""
    if trap.point.moment is once_funded:  # nothing is under way
        return
    signed = [raw for raw in sent_before if trap.point.which(trap.count)(request_of(raw))]
    assert set(signed) <= set(proxy.sent[len(sent_before) :])


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_payment_survives_a_crash(place: Place, point: Point) -> None:
    shop, proxy = place
    proxy.sent.clear()
    trap, crowd = Trap(shop, point, 1), buyers(shop, 1)
    with proxy.broken(trap.rule, *ASKS), shopping(crowd) as answers:
        assert trap.sprung.wait(30)
        sent_before = list(proxy.sent)
        shop.start()
        assert [answer.result().status_code for answer in answers] == [200]

    assert_all_accounted_for(shop, crowd)
    assert_sent_again(proxy, trap, sent_before)
    assert len(set(carriers(proxy, crowd[0]))) == 1


@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_batch_of_twenty_survives_a_crash(place: Place, point: Point) -> None:
    shop, proxy = place
    proxy.sent.clear()
    trap, crowd = Trap(shop, point, CROWD), buyers(shop, CROWD)
    together = Together(shop, CROWD, trap.rule)
    with proxy.broken(together.rule, *ASKS), together.shopping(crowd) as answers:
        assert trap.sprung.wait(30)
        sent_before = list(proxy.sent)
        shop.start()
        assert [answer.result().status_code for answer in answers] == [200] * (CROWD + 1)

    assert_all_accounted_for(shop, crowd)
    assert_sent_again(proxy, trap, sent_before)
    assert {len(set(carriers(proxy, buyer))) for buyer in crowd} == {1}


def test_a_transaction_that_left_the_pool_while_the_server_was_down_is_sent_again(place: Place) -> None:
    shop, proxy = place
    crowd = buyers(shop, 1)
    shop.rpc("evm_setAutomine", False)
    with shopping(crowd) as [answer]:
        until(lambda: carriers(proxy, crowd[0]) and shop.rpc("txpool_status")["pending"] != "0x0")
        shop.kill()
        [raw] = carriers(proxy, crowd[0])
        shop.rpc("anvil_dropTransaction", "0x" + keccak(hexstr=raw).hex())
        shop.rpc("evm_setAutomine", True)
        shop.start()
        assert answer.result().status_code == 200

    assert_all_accounted_for(shop, crowd)
    assert set(carriers(proxy, crowd[0])) == {raw}


def test_what_expired_while_the_server_was_down_is_refused_and_not_charged(place: Place) -> None:
    """One is written down and its transaction signed; of the other the server hears when it is back."""
    shop, proxy = place
    [reserved, unheard] = crowd = buyers(shop, 2)
    trap = Trap(shop, BEFORE_BROADCAST, 1)
    with proxy.broken(trap.rule, *ASKS), shopping([reserved]) as [answer]:
        assert trap.sprung.wait(30)
        shop.rpc("evm_increaseTime", LIFETIME_S + 1)
        shop.rpc("evm_mine")
        shop.start()
        answers = [answer.result(), unheard.insist()]

    expired = "invalid_exact_evm_payload_authorization_valid_before"
    assert [(last.status_code, last.json()["error"]) for last in answers] == [(402, expired)] * 2
    assert [shop.usdc(buyer.account.address) for buyer in crowd] == [11_000_000] * 2
    assert_all_accounted_for(shop, crowd)


def test_whoever_signs_anew_after_a_crash_is_charged_once(place: Place) -> None:
    """Clients give up when the connection breaks, and their payments are settled by then: the answers were lost."""
    shop, proxy = place
    for _ in range(5):  # all answers may be quicker than the look
        crowd = buyers(shop, CROWD, 33_000_000)
        together = Together(shop, CROWD, lambda _, forward: forward())
        with proxy.broken(together.rule, *ASKS), together.shopping(crowd, Buyer.ask) as [_, *answers]:
            kill_once_settled(shop, crowd[-1])
        unanswered = [buyer for buyer, answer in zip(crowd, answers, strict=True) if answer.exception() is not None]
        shop.start()
        if unanswered:
            break
    for buyer in unanswered:
        buyer.sign()
        buyer.insist()

    assert unanswered
    assert [shop.usdc(buyer.account.address) for buyer in crowd] == [22_000_000] * CROWD
    assert_all_accounted_for(shop, crowd)


def kill_once_settled(shop: Victim, buyer: Buyer) -> None:
    """Between the commit and the answers there are milliseconds only, so it is looked at while it stands still."""
    query, nonce = "select 1 from payments where state = 'settled' and nonce = ?", buyer.nonces[0]
    with reading(shop.ledger) as ledger:

        def is_settled() -> bool:
            shop.signal(signal.SIGSTOP)
            found = ledger.execute(query, [nonce]).fetchone() is not None
            if not found:
                shop.signal(signal.SIGCONT)
            return found

        until(is_settled, pause_s=0.001)
    shop.kill()
