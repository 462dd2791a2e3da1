import os
import re
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from limits import parse_many
from pydantic import SecretStr

from x402_gig import settings as settings_module
from x402_gig.errors import CannotStart
from x402_gig.evm.wallets import Wallets
from x402_gig.settings import NETWORKS, PREFIX, Rate, Settings, load, parse_rate

Account.enable_unaudited_hdwallet_features()
SETTINGS = Path(__file__).resolve().parents[2] / "docs/settings.md"
PHRASE = str(Account.create_with_mnemonic()[1])
TOKEN_IN_URL = "secret-token"
GOOD = {
    "NETWORK": "base",
    "RPC_URL": f"https://rpc.example/{TOKEN_IN_URL}",
    "SEED": PHRASE,
    "COMMISSION_ADDRESS": "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "PUBLIC_URL": "https://gigs.example",
}
Environment = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def environment(monkeypatch: Environment, tmp_path: Path) -> Environment:
    """Nothing of ours is set, and there is no `.env`."""
    for name in [name for name in os.environ if name.startswith(PREFIX)]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def set_all(environment: Environment, **changes: Any) -> None:
    for name, value in (GOOD | changes).items():
        if value is not None:
            environment.setenv(PREFIX + name, str(value))


def seed_file(folder: Path, text: str, name: str = "seed.txt", mode: int = 0o600) -> None:
    (folder / name).write_text(text)
    (folder / name).chmod(mode)


def loaded(environment: Environment, **changes: Any) -> Settings:
    set_all(environment, **changes)
    return load()


def problems(environment: Environment, **changes: Any) -> list[str]:
    """What is wrong with these settings; none of it shows a secret."""
    set_all(environment, **changes)
    with pytest.raises(CannotStart) as caught:
        load()
    secrets = {**GOOD, **changes}
    for name in ("RPC_URL", "SEED", "FACILITATOR_TOKEN"):
        assert len(secrets.get(name) or "") < 2 or secrets[name] not in repr(caught.value)
    assert TOKEN_IN_URL not in repr(caught.value)
    assert caught.value.__cause__ is None
    return caught.value.problems


# Right


def test_the_required_settings_are_enough(environment: Environment) -> None:
    settings = loaded(environment)
    assert settings.preset == NETWORKS["base"]
    assert (settings.is_remote, settings.commission_bps, settings.relayers) == (False, 1000, 2)
    assert (settings.minimum_reward, settings.maximum_reward) == (10_000_000, 1_000_000_000_000)
    assert settings.commission_address == GOOD["COMMISSION_ADDRESS"].lower()
    assert Wallets(settings.mnemonic)


@pytest.mark.parametrize(
    "text",
    [PHRASE, f"  {PHRASE}\n", PHRASE.replace(" ", "\n"), PHRASE.replace(" ", "\t ")],
    ids=["plain", "padded", "lines", "tabs"],
)
def test_a_seed_may_be_in_a_file_and_spaced_as_one_likes(environment: Environment, tmp_path: Path, text: str) -> None:
    seed_file(tmp_path, text)
    assert loaded(environment, SEED=None, SEED_FILE="seed.txt").mnemonic == PHRASE
    environment.delenv(f"{PREFIX}SEED_FILE")
    assert loaded(environment, SEED=text).mnemonic == PHRASE


def test_an_empty_variable_is_one_that_is_not_set(environment: Environment, tmp_path: Path) -> None:
    seed_file(tmp_path, PHRASE)
    settings = loaded(environment, SEED="", SEED_FILE="seed.txt", PORT="", FACILITATOR_TOKEN="")
    assert (settings.mnemonic, settings.port) == (PHRASE, 4021)


def test_settings_may_come_from_a_file_and_the_environment_wins(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{PREFIX}PORT=1\n{PREFIX}HOST=0.0.0.0\nOTHER=1\n")
    settings = loaded(environment, PORT=2)
    assert (settings.host, settings.port) == ("0.0.0.0", 2)


def test_a_file_that_is_no_text_is_named_and_not_shown(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(f"{PREFIX}SEED={PHRASE}\n{PREFIX}HOST=".encode() + b"\xff\n")
    assert problems(environment) == [".env cannot be read (UnicodeDecodeError): it must be text in UTF-8"]


def test_an_empty_variable_leaves_it_to_the_file(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(f"{PREFIX}PORT=1\n{PREFIX.lower()}host=0.0.0.0\n{PREFIX}RELAYERS=\n")
    settings = loaded(environment, PORT="")
    assert (settings.host, settings.port, settings.relayers) == ("0.0.0.0", 1, 2)


@pytest.mark.parametrize("text", ["600/minute", "5/second", "1000 per 2 hours", "7 PER 3 Days", " 1/month "])
def test_a_rate_says_what_the_limits_library_reads_in_it(text: str) -> None:
    [item] = parse_many(text)
    assert parse_rate(text) == Rate(item.amount, item.get_expiry())


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("PUBLIC_URL", "https://gigs.example/", "https://gigs.example"),
        ("PUBLIC_URL", "http://127.0.0.1:4021", "http://127.0.0.1:4021"),
        ("FACILITATOR", "https://facilitator.example/x", SecretStr("https://facilitator.example/x")),
        ("MINIMUM_REWARD", "0.000001", 1),
        ("MINIMUM_REWARD", "2.5", 2_500_000),
        ("MAXIMUM_REWARD", "10", 10_000_000),
        ("MAXIMUM_REWARD", "1000000000000", 10**18),
        ("COMMISSION_BPS", "0", 0),
        ("COMMISSION_BPS", "10000", 10_000),
        ("WALLET_ACCOUNT", str(2**31 - 1), 2**31 - 1),
        ("NETWORK", "base-sepolia", "base-sepolia"),
        ("COMMISSION_ADDRESS", "0x" + "AB" * 20, "0x" + "ab" * 20),
        (
            "REDIS_URL",
            f"rediss://:{TOKEN_IN_URL}@redis.example:6380/1",
            SecretStr(f"rediss://:{TOKEN_IN_URL}@redis.example:6380/1"),
        ),
        ("RATE_LIMIT_KEY", "1000 per 2 hours", "1000 per 2 hours"),
        ("RATE_LIMIT_ADDRESS", "off", "off"),
        ("RATE_LIMIT_ADDRESS", "", "600/minute"),
        ("TRUSTED_PROXIES", "10.0.0.1, 10.1.0.0/16,::1,", "10.0.0.1, 10.1.0.0/16,::1,"),
    ],
)
def test_a_good_value_is_taken(environment: Environment, name: str, given: str, value: Any) -> None:
    assert getattr(loaded(environment, **{name: given}), name.lower()) == value


# Wrong


def test_everything_that_is_missing_is_listed_at_once(environment: Environment) -> None:
    nothing = dict.fromkeys(GOOD)
    assert problems(environment, **nothing) == [
        "X402_GIG_RPC_URL is not set",
        "X402_GIG_SEED_FILE: set this, or X402_GIG_SEED",
        "X402_GIG_PUBLIC_URL is not set",
        f"X402_GIG_NETWORK is not set{NOT_KEPT}",
        f"X402_GIG_COMMISSION_ADDRESS is not set{NOT_KEPT}",
    ]


NOT_KEPT = ", and the ledger does not say it before a server has started on it"
ADDRESS = "must be an address: 0x and 40 hex digits (and a right checksum where letters are mixed)"
URL = "must be an http or https URL"
FACILITATOR = "must be `local` or an http(s) URL"
USDC = "must be a number of USDC"
PUBLISHED = "is a published test phrase: anybody could take what its wallets hold"
REDIS = "must be a redis:// or rediss:// URL"
RATE = "must be such as 600/minute, 5/second or 1000 per 2 hours, or `off`"
PROXIES = "must be addresses or networks with commas between them, such as 10.0.0.1,10.1.0.0/16"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("NETWORK", "ethereum", "Input should be 'base', 'base-sepolia' or 'devnet'"),
        ("NETWORK", "Base", "Input should be 'base', 'base-sepolia' or 'devnet'"),
        ("RPC_URL", f"wss://rpc.example/{TOKEN_IN_URL}", URL),
        ("RPC_URL", TOKEN_IN_URL, URL),
        ("PUBLIC_URL", "gigs.example", URL),
        ("PUBLIC_URL", "ftp://gigs.example", URL),
        ("PUBLIC_URL", "https://", URL),
        ("PUBLIC_URL", "https://:443", URL),
        ("PUBLIC_URL", "https://[", URL),
        ("RPC_URL", f"https://{TOKEN_IN_URL}\u2100.example", URL),
        ("RPC_URL", f"https://user:key@[{TOKEN_IN_URL}]", URL),
        ("RPC_URL", f"https://user:{TOKEN_IN_URL}/key@rpc.example", URL),
        ("FACILITATOR", "remote", FACILITATOR),
        ("FACILITATOR", f"https://user:{TOKEN_IN_URL}/key@f.example", FACILITATOR),
        ("FACILITATOR", f"https://[{TOKEN_IN_URL}", FACILITATOR),
        ("FACILITATOR_TOKEN", "bearer-of-bad-news", "is set but X402_GIG_FACILITATOR is local"),
        ("SEED", "twelve words that are no phrase at all but look a bit so", "is not a valid BIP-39 phrase"),
        ("SEED", "test test test test test test test test test test test junk", PUBLISHED),
        ("SEED", "abandon " * 11 + "about", PUBLISHED),
        pytest.param("SEED", PHRASE + " extra", "is not a valid BIP-39 phrase", id="SEED-thirteen words"),
        ("COMMISSION_ADDRESS", "0x" + "12" * 19, ADDRESS),
        ("COMMISSION_ADDRESS", "12" * 20, ADDRESS),
        ("COMMISSION_ADDRESS", "operator.eth", ADDRESS),
        ("COMMISSION_ADDRESS", "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAeD", ADDRESS),
        ("COMMISSION_ADDRESS", "0x" + "00" * 20, "may not be the zero address"),
        ("PORT", "65536", "Input should be less than or equal to 65535"),
        ("PORT", "http", "Input should be a valid integer, unable to parse string as an integer"),
        ("COMMISSION_BPS", "-1", "Input should be greater than or equal to 0"),
        ("COMMISSION_BPS", "10001", "Input should be less than or equal to 10000"),
        ("COMMISSION_BPS", "12.5", "Input should be a valid integer, unable to parse string as an integer"),
        ("MINIMUM_REWARD", "0", "Input should be greater than or equal to 1"),
        ("MINIMUM_REWARD", "ten", USDC),
        ("MINIMUM_REWARD", "0.0000001", "not a whole number of base units"),
        ("MINIMUM_REWARD", "-1", "does not fit uint256"),
        ("MINIMUM_REWARD", "NaN", "cannot convert NaN to integer"),
        ("MAXIMUM_REWARD", "1000000000001", "Input should be less than or equal to 1000000000000000000"),
        ("MAXIMUM_REWARD", "1e999999999", "not a whole number of base units"),
        ("WALLET_ACCOUNT", "-1", "Input should be greater than or equal to 0"),
        ("WALLET_ACCOUNT", str(2**31), "Input should be less than 2147483648"),
        ("MAX_TIMEOUT_S", "9", "Input should be greater than or equal to 10"),
        ("MAX_TIMEOUT_S", "601", "Input should be less than or equal to 600"),
        ("CONFIRMATIONS", "0", "Input should be greater than or equal to 1"),
        ("CONFIRMATIONS", "65", "Input should be less than or equal to 64"),
        ("RELAYERS", "0", "Input should be greater than or equal to 1"),
        ("RELAYERS", "65", "Input should be less than or equal to 64"),
        ("REDIS_URL", f"http://{TOKEN_IN_URL}", REDIS),
        ("REDIS_URL", f"redis://{TOKEN_IN_URL}:port", REDIS),
        ("REDIS_URL", f"unix:///{TOKEN_IN_URL}", REDIS),
        ("RATE_LIMIT_ADDRESS", "600", RATE),
        ("RATE_LIMIT_ADDRESS", "0/minute", RATE),
        ("RATE_LIMIT_ADDRESS", "5/fortnight", RATE),
        ("RATE_LIMIT_KEY", "5/second;100/minute", RATE),
        ("RATE_LIMIT_KEY", "-1/second", RATE),
        ("RATE_LIMIT_KEY", "5/0 seconds", RATE),
        ("RATE_LIMIT_KEY", "5/13 months", RATE),
        ("RATE_LIMIT_KEY", "9" * 30 + "/second", RATE),
        ("TRUSTED_PROXIES", "*", PROXIES),
        ("TRUSTED_PROXIES", "10.0.0.1 10.0.0.2", PROXIES),
        ("TRUSTED_PROXIES", "10.0.0.1/8", PROXIES),
        ("TRUSTED_PROXIES", "proxy.example", PROXIES),
    ],
)
def test_a_wrong_value_is_listed_by_its_name(environment: Environment, name: str, value: str, message: str) -> None:
    assert problems(environment, **{name: value}) == [f"X402_GIG_{name}: {message}"]


def test_a_seed_comes_from_one_place(environment: Environment, tmp_path: Path) -> None:
    seed_file(tmp_path, PHRASE)
    both = problems(environment, SEED_FILE="seed.txt")
    assert both == ["X402_GIG_SEED_FILE: X402_GIG_SEED is set too: keep one of them"]


def test_a_misspelt_setting_is_named_wherever_it_stands(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("X402_GIG_RPCURL=http://127.0.0.1\n")
    assert problems(environment, COMISSION_BPS="50") == [
        "X402_GIG_COMISSION_BPS: there is no such setting; is it X402_GIG_COMMISSION_BPS?",
        "X402_GIG_RPCURL: there is no such setting; is it X402_GIG_RPC_URL?",
    ]


def test_a_seed_file_must_be_there_and_hold_a_phrase(environment: Environment, tmp_path: Path) -> None:
    missing = problems(environment, SEED=None, SEED_FILE="no-such-file")
    assert missing == ["X402_GIG_SEED_FILE: cannot be read: No such file or directory"]
    seed_file(tmp_path, "correct horse battery staple")
    wrong = problems(environment, SEED=None, SEED_FILE="seed.txt")
    assert wrong == ["X402_GIG_SEED_FILE: is not a valid BIP-39 phrase"]
    (tmp_path / "seed.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "seed.bin").chmod(0o600)
    binary = problems(environment, SEED=None, SEED_FILE="seed.bin")
    assert len(binary) == 1
    assert "chmod" not in binary[0]


@pytest.mark.parametrize("mode", [0o602, 0o604, 0o644, 0o666])
def test_a_seed_file_that_others_may_read_is_refused_with_what_to_do(
    environment: Environment, tmp_path: Path, mode: int
) -> None:
    seed_file(tmp_path, PHRASE, "the seed.txt", mode)
    told = problems(environment, SEED=None, SEED_FILE="the seed.txt")
    advice = "others on this machine may read or change it: run chmod 600 'the seed.txt'"
    assert told == [f"X402_GIG_SEED_FILE: {advice}"]
    (tmp_path / "the seed.txt").chmod(0o600)
    assert load().mnemonic == PHRASE


@pytest.mark.parametrize("mode", [0o602, 0o604])
def test_an_env_file_with_the_seed_that_others_may_read_is_refused_and_one_without_it_is_not(
    environment: Environment, tmp_path: Path, mode: int
) -> None:
    (tmp_path / ".env").write_text(f"x402_gig_seed='{PHRASE}'\n")
    (tmp_path / ".env").chmod(mode)
    [told] = problems(environment, SEED=None)
    assert told == ".env: holds the seed, and others on this machine may read or change it: run chmod 600 .env"
    (tmp_path / ".env").write_text("X402_GIG_PORT=4022\n")
    assert loaded(environment, SEED=PHRASE).port == 4022


def test_a_seed_file_may_be_a_groups_or_a_secret_of_a_container(environment: Environment, tmp_path: Path) -> None:
    seed_file(tmp_path, PHRASE, mode=0o640)
    assert loaded(environment, SEED=None, SEED_FILE="seed.txt").mnemonic == PHRASE
    environment.setattr(settings_module, "SECRETS", tmp_path / "secrets")
    (tmp_path / "secrets").mkdir()
    seed_file(tmp_path / "secrets", PHRASE, mode=0o444)
    assert loaded(environment, SEED=None, SEED_FILE=tmp_path / "secrets/seed.txt").mnemonic == PHRASE


def test_many_problems_are_listed_together(environment: Environment) -> None:
    listed = problems(
        environment, NETWORK="x", RPC_URL="x", SEED="x", FACILITATOR="x", MAXIMUM_REWARD="x", RELAYERS="0"
    )
    names = [problem.split(":")[0].removeprefix(PREFIX) for problem in listed]
    assert names == ["MAXIMUM_REWARD", "NETWORK", "RPC_URL", "FACILITATOR", "SEED", "RELAYERS"]


# Kept in the ledger

KEPT = {
    "network": "base",
    "wallet_account": 3,
    "commission_address": "0x" + "ab" * 20,
    "commission_bps": 500,
    "minimum_reward": 1_000_000,
    "maximum_reward": 5_000_000,
}


def test_the_ledger_says_what_the_environment_leaves_out(environment: Environment) -> None:
    agreed = loaded(environment, NETWORK=None, COMMISSION_ADDRESS=None, MAXIMUM_REWARD="5").agreed(KEPT)
    assert {name: getattr(agreed, name) for name in KEPT} == KEPT
    assert agreed.agreed(KEPT) == agreed  # nothing of it counts as said by the environment
    assert agreed.relayers == 2


def test_where_both_say_something_it_must_be_the_same(environment: Environment) -> None:
    settings = loaded(environment, COMMISSION_ADDRESS=None, WALLET_ACCOUNT="4", MINIMUM_REWARD="0.5")
    with pytest.raises(CannotStart) as caught:
        settings.agreed(KEPT)
    for_all = "for all its servers: leave it out"
    account = f"X402_GIG_WALLET_ACCOUNT is 4, and the ledger says 3 {for_all}, or name another ledger in "
    minimum = f"X402_GIG_MINIMUM_REWARD is 0.5, and the ledger says 1 {for_all}, or change the ledger: x402-gig "
    assert caught.value.problems == [
        f"{account}X402_GIG_DATABASE_URL",
        f"{minimum}settings set --minimum-reward 0.5",
    ]
    assert settings.differing(KEPT) == {"wallet_account": ("4", "3"), "minimum_reward": ("0.5", "1")}
    assert settings.agreed(KEPT, ["network"]).wallet_account == 3


def test_a_new_ledger_takes_the_environment_and_the_defaults(environment: Environment) -> None:
    settings = loaded(environment)
    assert settings.agreed({}) == settings


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"NETWORK": None}, f"X402_GIG_NETWORK is not set{NOT_KEPT}"),
        ({"COMMISSION_ADDRESS": None}, f"X402_GIG_COMMISSION_ADDRESS is not set{NOT_KEPT}"),
        ({"MAXIMUM_REWARD": "9.999999"}, "X402_GIG_MAXIMUM_REWARD: is less than X402_GIG_MINIMUM_REWARD"),
    ],
)
def test_a_new_ledger_does_not_take_what_cannot_be(
    environment: Environment, changes: dict[str, Any], problem: str
) -> None:
    settings = loaded(environment, **changes)
    with pytest.raises(CannotStart) as caught:
        settings.agreed({})
    assert caught.value.problems == [problem]


# Secret


def test_settings_show_no_secret(environment: Environment) -> None:
    database = "postgresql://gigs:hunter2@db.example/gigs"
    facilitator = f"https://user:{TOKEN_IN_URL}@f.example"
    settings = loaded(environment, DATABASE_URL=database, FACILITATOR=facilitator, FACILITATOR_TOKEN="bearer-token")
    assert settings.is_remote
    for text in (repr(settings), str(settings), settings.model_dump_json(), repr(settings.model_dump())):
        for secret in (PHRASE, PHRASE[:20], TOKEN_IN_URL, "hunter2", "bearer-token"):
            assert not re.search(rf"\b{secret}\b", text)


def test_settings_do_not_change(environment: Environment) -> None:
    settings = loaded(environment)
    with pytest.raises(ValueError, match="frozen"):
        setattr(settings, "port", 1)  # noqa: B010 - the type checker would not let us


# Documented


def documented() -> dict[str, str]:
    """Name and default of every setting in the table of docs/settings.md; a row may hold several."""
    found: dict[str, str] = {}
    table = SETTINGS.read_text().split("| setting ", 1)[1].split("\n\n", 1)[0]
    for row in table.splitlines()[2:]:
        names, defaults = (re.findall("`([^`]*)`", cell) for cell in row.split("|")[1:3])
        found.update(zip(names, defaults or [""] * len(names), strict=True))
    return found


def default_of(name: str) -> str:
    default = Settings.model_fields[name].get_default()
    text = default.get_secret_value() if isinstance(default, SecretStr) else default
    return "" if text is None or Settings.model_fields[name].is_required() else str(text)


def test_the_document_lists_every_setting_with_its_default() -> None:
    assert documented() == {name.upper(): default_of(name) for name in Settings.model_fields}


def test_the_document_states_the_prefix() -> None:
    assert f"| setting (prefix `{PREFIX}`)" in SETTINGS.read_text()


@pytest.mark.parametrize(
    ("network", "url", "is_warned"),
    [
        ("base", "https://gigs.example", False),
        ("base", "http://localhost:4021", True),
        ("base-sepolia", "http://127.0.0.1:4021", True),
        ("base", "http://[::1]:4021", True),
        ("base", "http://10.0.0.5", False),
        ("devnet", "http://127.0.0.1:4021", False),
    ],
)
def test_a_public_url_that_only_this_machine_can_follow_is_warned_of(
    environment: Environment, network: str, url: str, is_warned: bool
) -> None:
    assert (url in loaded(environment, NETWORK=network, PUBLIC_URL=url).warning) == is_warned
