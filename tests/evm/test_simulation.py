"""Would the token take it, and if not, why: every reason, on a real chain."""

import time
from collections.abc import Callable

import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.e2e.attacks import calldata
from tests.evm.conftest import DEPLOYER, TOKEN, Asked
from tests.evm.payments import payment, requirements, signed_by
from tests.support.harness import Chain
from x402_gig.evm import batcher, eip3009
from x402_gig.evm.node import Node
from x402_gig.facilitators.simulation import Again, Lane, NeedsContractLane, Passes, Used, Verdict, lane_of, simulate
from x402_gig.payments.outcome import Rejected
from x402_gig.payments.payment import Payment

BLACKLIST = "0xf9f92be4"
PRICE = 11_000_000


def verdicts(ask: Asked, *payments: Payment) -> list[Verdict]:
    """The verdict on each, in the lane of the first."""
    return ask(lambda node: simulate(node, payments, lane_of(node, payments[0])))


def verdict(ask: Asked, paid: Payment) -> Verdict:
    return verdicts(ask, paid)[0]


def test_a_payment_that_would_settle_passes(ask: Asked, chain: Chain) -> None:
    assert isinstance(verdict(ask, payment(chain.buyer(PRICE))), Passes)


def test_a_token_that_answers_false_would_move_nothing(ask: Asked, chain: Chain) -> None:
    paid, code = payment(chain.buyer(PRICE)), chain.rpc("eth_getCode", TOKEN.address, "latest")
    # PUSH1 32 PUSH1 0 RETURN: whatever is asked, the answer is no.
    chain.rpc("anvil_setCode", TOKEN.address, "0x60206000f3")
    try:
        assert not isinstance(verdict(ask, paid), Passes)
    finally:
        chain.rpc("anvil_setCode", TOKEN.address, code)


def test_an_executed_payment_is_used(ask: Asked, chain: Chain) -> None:
    paid = payment(chain.buyer())
    data = eip3009.transfer_call(paid.authorization, paid.signature, ecdsa=True)
    receipt = chain.send("0x" + "5a" * 20, TOKEN.address, "0x" + data.hex())
    found = verdict(ask, paid)
    assert isinstance(found, Used)
    assert found.block_number >= int(receipt["blockNumber"], 16)


def poor(chain: Chain) -> Payment:
    return payment(chain.buyer(PRICE - 1))


def forged(chain: Chain) -> Payment:
    return signed_by(Account.create(), chain.buyer().address)


def forged_and_poor(chain: Chain) -> Payment:
    """The balance of an account is nobody's business who does not sign for it."""
    return signed_by(Account.create(), chain.buyer(0).address)


def blacklisted(chain: Chain) -> Payment:
    buyer = chain.buyer()
    chain.send(buyer.address, TOKEN.address, BLACKLIST + buyer.address[2:].rjust(64, "0"))
    return payment(buyer)


def expired(chain: Chain) -> Payment:
    return payment(chain.buyer(), validBefore=str(int(time.time()) - 3600))


def of_another_amount(chain: Chain) -> Payment:
    """Signed for one unit more than it says."""
    buyer = chain.buyer()
    dear = payment(buyer, requirements(amount=str(PRICE + 1)))
    return Payment(
        2, "exact", dear.network, dear.asset, dear.pay_to, PRICE, payment(buyer).authorization, dear.signature
    )


SIGNATURE = "The signature is not the payer's"


@pytest.mark.parametrize(
    ("make", "reason", "detail"),
    [
        (poor, "insufficient_funds", "The payer holds 10.999999 USDC and the price is 11 USDC"),
        (forged, "invalid_exact_evm_payload_signature", SIGNATURE),
        (forged_and_poor, "invalid_exact_evm_payload_signature", SIGNATURE),
        (of_another_amount, "invalid_exact_evm_payload_signature", SIGNATURE),
        (blacklisted, "invalid_transaction_state", "Blacklistable: account is blacklisted"),
        (expired, "invalid_transaction_state", "FiatTokenV2: authorization is expired"),
    ],
)
def test_a_refusal_has_its_reason(
    ask: Asked, chain: Chain, make: Callable[[Chain], Payment], reason: str, detail: str
) -> None:
    found = verdict(ask, make(chain))
    assert isinstance(found, Rejected)
    assert found.reason == reason
    assert detail in found.detail


def test_one_refusal_does_not_touch_its_neighbours(ask: Asked, chain: Chain) -> None:
    good = [payment(chain.buyer(PRICE)) for _ in range(3)]
    found = verdicts(ask, good[0], poor(chain), good[1], poor(chain), good[2])
    assert [type(v) for v in found] == [Passes, Rejected, Passes, Rejected, Passes]


def test_two_payments_out_of_one_balance_are_one_now_and_one_later(ask: Asked, chain: Chain) -> None:
    buyer = chain.buyer(PRICE)
    assert [type(v) for v in verdicts(ask, payment(buyer), payment(buyer))] == [Passes, Again]


def wallet_payment(ask: Asked, chain: Chain, name: str, units: int = PRICE) -> Payment:
    owner: LocalAccount = Account.create()
    wallet = ask.deploy(name, *([owner.address] if name == "Wallet1271" else []))
    chain.give_usdc(wallet, units)
    return signed_by(owner, wallet)


def test_a_contract_wallet_pays(ask: Asked, chain: Chain) -> None:
    paid = wallet_payment(ask, chain, "Wallet1271")
    assert ask_lane(ask, paid) is Lane.CONTRACT
    assert isinstance(verdict(ask, paid), Passes)


def ask_lane(ask: Asked, paid: Payment) -> Lane:
    async def lane(node: Node) -> Lane:
        return lane_of(node, paid)

    return ask(lane)


@pytest.mark.parametrize("name", ["LyingWallet", "GasBurner", "BombWallet", "FickleWallet"])
def test_a_contract_wallet_that_does_not_say_yes_does_not_pay(ask: Asked, chain: Chain, name: str) -> None:
    found = verdict(ask, wallet_payment(ask, chain, name))
    assert isinstance(found, Rejected)
    assert found.reason == "invalid_exact_evm_payload_signature"


def test_an_honest_wallet_without_money_is_told_so(ask: Asked, chain: Chain) -> None:
    found = verdict(ask, wallet_payment(ask, chain, "Wallet1271", units=0))
    assert isinstance(found, Rejected)
    assert found.reason == "insufficient_funds"


@pytest.mark.parametrize("name", ["LyingWallet", "GasBurner"])
def test_a_gas_burner_does_not_spoil_its_neighbours(ask: Asked, chain: Chain, name: str) -> None:
    bad, good = wallet_payment(ask, chain, name), wallet_payment(ask, chain, "Wallet1271")
    assert [type(v) for v in verdicts(ask, bad, good, bad)] == [Rejected, Passes, Rejected]


def meddling_payment(ask: Asked, chain: Chain, victim: Payment) -> Payment:
    """Of a wallet that tops the victim up and executes the victim's payment, when it is asked for its signature."""
    message = victim.authorization
    top_up = bytes.fromhex(calldata("mint(address,uint256)", message.payer, PRICE)[2:])
    execute = eip3009.transfer_call(message, victim.signature, ecdsa=False)
    deed = batcher.execute_data(TOKEN.address, 150_000, [top_up, execute])
    crook = wallet_payment(ask, chain, "MeddlingWallet")
    chain.send(DEPLOYER, crook.authorization.payer, calldata("plan(address,bytes)", batcher.address(), deed))
    return crook


def test_a_wallet_that_changes_state_when_it_is_asked_changes_no_neighbours_verdict(ask: Asked, chain: Chain) -> None:
    victim = wallet_payment(ask, chain, "Wallet1271", units=PRICE - 1)
    crook = meddling_payment(ask, chain, victim)

    refused, found = verdicts(ask, crook, victim)

    assert isinstance(refused, Rejected)
    assert isinstance(found, Rejected), "it is not used on the chain"
    assert (refused.reason, found.reason) == ("invalid_exact_evm_payload_signature", "insufficient_funds")


def test_an_account_with_a_key_and_code_changes_lanes(ask: Asked, chain: Chain) -> None:
    """As EIP-7702 makes them: the signature recovers, and the token asks the code all the same."""
    buyer = chain.buyer(PRICE)
    template = ask.deploy("LyingWallet")
    chain.rpc("anvil_setCode", buyer.address, chain.rpc("eth_getCode", template, "latest"))
    paid = payment(buyer)
    assert isinstance(verdict(ask, paid), NeedsContractLane)
    [found] = ask(lambda node: simulate(node, [paid], Lane.CONTRACT))
    assert isinstance(found, Rejected)
    assert found.reason == "invalid_exact_evm_payload_signature"
