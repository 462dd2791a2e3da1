import pytest
from eth_account import Account

from x402_gig.errors import CannotStart
from x402_gig.evm.wallets import Wallets
from x402_gig.server.preflight import check_commission_address

Account.enable_unaudited_hdwallet_features()
WALLETS = Wallets(Account.create_with_mnemonic()[1])
RELAYERS = [WALLETS.relayer(0), WALLETS.relayer(1)]
TOKEN = "0x833589fcd6edb6e08f4c7c32d4f71b54bda02913"


@pytest.mark.parametrize(
    ("address", "whose"),
    [
        (TOKEN, "the token"),
        (WALLETS.intake.address, "the intake"),
        (RELAYERS[0].address, "a relayer"),
        (RELAYERS[1].address, "a relayer"),
        (WALLETS.gig_address(1), "a gig's wallet"),
        (WALLETS.gig_address(100), "a gig's wallet"),
    ],
    ids=["token", "intake", "first relayer", "second relayer", "first gig", "thousandth gig"],
)
def test_a_commission_that_goes_in_a_circle_is_refused(address: str, whose: str) -> None:
    with pytest.raises(CannotStart, match=f"COMMISSION_ADDRESS is {whose}"):
        check_commission_address(address, TOKEN, WALLETS, RELAYERS)


def test_an_address_of_the_operators_own_is_fine() -> None:
    check_commission_address(Account.create().address.lower(), TOKEN, WALLETS, RELAYERS)
