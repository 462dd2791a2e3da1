import pytest
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from x402_gig.evm.keys import PrivateKey
from x402_gig.evm.wallets import MAX_GIG_ID, Wallet, Wallets

Account.enable_unaudited_hdwallet_features()
PHRASE = "stone weapon rather current divorce beach guitar ball million trumpet recycle ski"
WALLETS = Wallets(PHRASE)


def at(path: str) -> LocalAccount:
    account: LocalAccount = Account.from_mnemonic(PHRASE, account_path=path)
    return account


def same(wallet: Wallet, path: str) -> bool:
    account = at(path)
    assert wallet.address == account.address.lower()
    return wallet.key.secret == bytes(account.key)


@pytest.mark.parametrize("account", [0, 1, 77, 2**31 - 1])
def test_every_wallet_is_at_its_bip_44_path(account: int) -> None:
    wallets = Wallets(PHRASE, account)
    assert same(wallets.intake, f"m/44'/60'/2'/0/{account}")
    for index in (0, 1, 63):
        assert same(wallets.relayer(index), f"m/44'/60'/1'/{account}/{index}")
    for gig_id in (1, 2, 1000, MAX_GIG_ID):
        assert same(wallets.gig_wallet(gig_id), f"m/44'/60'/0'/{account}/{gig_id}")


def test_a_gigs_address_is_its_wallets() -> None:
    ids = [*range(1, 50), MAX_GIG_ID]
    assert [WALLETS.gig_address(gig_id) for gig_id in ids] == [WALLETS.gig_wallet(gig_id).address for gig_id in ids]


@pytest.mark.parametrize("gig_id", [0, -1, MAX_GIG_ID + 1, 2**32 + 1])
def test_an_id_that_has_no_path_has_no_wallet(gig_id: int) -> None:
    """Past 2**31 a path would mean a hardened key, and another gig's."""
    for way in (WALLETS.gig_wallet, WALLETS.gig_address):
        with pytest.raises(ValueError, match="has no wallet"):
            way(gig_id)


@pytest.mark.parametrize("phrase", ["", "test", "one two three", PHRASE + " rain", " ".join(["zoo"] * 12)])
def test_a_wrong_phrase_is_a_value_error(phrase: str) -> None:
    with pytest.raises(ValueError, match="not a valid BIP-39 phrase"):
        Wallets(phrase)


def test_no_two_wallets_are_one() -> None:
    all_wallets = [
        wallet
        for wallets in (WALLETS, Wallets(PHRASE, 1))
        for wallet in (wallets.intake, *map(wallets.relayer, range(20)), *map(wallets.gig_wallet, range(1, 20)))
    ]
    assert len({wallet.address for wallet in all_wallets}) == len(all_wallets)


def test_a_nonce_says_what_it_is_for() -> None:
    wallets = Wallets(PHRASE, 3)
    number = (3).to_bytes(32) + (9).to_bytes(32)
    assert wallets.reward_nonce(9) == "0x" + keccak(b"reward" + number).hex()
    assert wallets.commission_nonce(9) == "0x" + keccak(b"commission" + number).hex()


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**31 - 1), st.sampled_from([0, 1]), st.sampled_from([0, 1]))
def test_nonces_differ_by_purpose_number_and_account(one: int, other: int, left: int, right: int) -> None:
    accounts = (WALLETS, Wallets.__new__(Wallets))
    accounts[1].account = 1
    rewards = accounts[left].reward_nonce(one), accounts[right].reward_nonce(other)
    assert (rewards[0] == rewards[1]) == ((one, left) == (other, right))
    assert rewards[0] != accounts[right].commission_nonce(other)


def test_nothing_shows_a_key() -> None:
    wallet = WALLETS.relayer(0)
    secret = wallet.key.secret.hex()
    for text in (repr(wallet), str(wallet), repr(WALLETS), repr([wallet]), f"{wallet}"):
        assert secret not in text
        assert PHRASE[:10] not in text
    assert repr(wallet) == f"Wallet({wallet.address})"
    assert isinstance(wallet.key, PrivateKey)
