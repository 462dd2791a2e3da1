"""All settings of `serve`, from the environment and `.env`; the only reader of either."""

import os
import re
import shlex
import stat
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from difflib import get_close_matches
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from x402_gig.errors import CannotStart
from x402_gig.evm.eip3009 import Token
from x402_gig.evm.keccak import with_checksum
from x402_gig.evm.wallets import seed_of
from x402_gig.gigs.pricing import USDC_DECIMALS, to_tokens, to_units
from x402_gig.ledger.shared_settings import NAMES
from x402_gig.payments.order import Network

PREFIX = "X402_GIG_"
_ADDRESS = re.compile("0x[0-9a-fA-F]{40}")
# The ledger's amounts are 64-bit.
LARGEST_REWARD = 1_000_000_000_000
# Where a container engine puts secrets, readable for all in the container: nobody else is there.
SECRETS = Path("/run/secrets")
# Foundry's and Hardhat's, and the first of BIP-39's test vectors.
PUBLISHED_PHRASES = ("test test test test test test test test test test test junk", "abandon " * 11 + "about")
WITHOUT_DEFAULT = ("network", "commission_address")
# Of a ledger they never change.
FIXED = ("network", "wallet_account")
OPEN = "others on this machine may read or change"
OFF = "off"
LOCAL = "local"
MOST_REQUESTS = 1_000_000_000
# Longer than balancers keep a connection that nobody uses (mostly 60 s): whoever closes first loses no request.
KEEP_ALIVE_S = 75
LONGEST_WINDOW_S = 366 * 24 * 3600
RATE_FORM = f"must be such as 600/minute, 5/second or 1000 per 2 hours, or `{OFF}`"


class Rate(NamedTuple):
    """So many requests in so many seconds."""

    amount: int
    seconds: int


_RATE = re.compile(r"([0-9]{1,10}) *(?:/|per) *([0-9]{0,10}) *(second|minute|hour|day|month)s?", re.IGNORECASE)
_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 24 * 3600, "month": 30 * 24 * 3600}


class NetworkPreset(Network, frozen=True):
    """A chain and the USDC on it."""

    usdc: str
    usdc_name: str
    usdc_version: str = "2"

    @property
    def token(self) -> Token:
        return Token(self.usdc.lower(), self.usdc_name, self.usdc_version, self.chain_id)


_BASE_USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
NETWORKS = {
    "base": NetworkPreset(8453, "base", _BASE_USDC, "USD Coin"),
    "base-sepolia": NetworkPreset(84532, "base-sepolia", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"),
    "devnet": NetworkPreset(8453, "base", _BASE_USDC, "USD Coin"),
}


def _web_url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or not _host_of(value):
        raise ValueError("must be an http or https URL")
    return value.rstrip("/")


def _host_of(url: str) -> str:
    """Empty where it cannot be read: what Python says of that repeats the URL, which may be secret."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return ""
    return host or ""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_mixed(text: str) -> bool:
    return text not in (text.lower(), text.upper())


def _address(value: str) -> str:
    if not _ADDRESS.fullmatch(value) or (_is_mixed(value[2:]) and value != with_checksum(value)):
        raise ValueError("must be an address: 0x and 40 hex digits (and a right checksum where letters are mixed)")
    if int(value, 16) == 0:
        raise ValueError("may not be the zero address")
    return value.lower()


def _secret_web_url(value: SecretStr) -> SecretStr:
    _web_url(value.get_secret_value())
    return value


def _facilitator(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if url != LOCAL and not (url.startswith(("http://", "https://")) and _host_of(url)):
        raise ValueError("must be `local` or an http(s) URL")
    return value


def _usdc(value: Any) -> int:
    try:
        return to_units(Decimal(str(value)), USDC_DECIMALS)
    except ArithmeticError:
        raise ValueError("must be a number of USDC") from None


def _redis_url(value: SecretStr) -> SecretStr:
    url = value.get_secret_value()
    if not url:
        return value
    from redis.connection import parse_url as parse_redis_url

    try:
        is_right = url.startswith(("redis://", "rediss://")) and bool(parse_redis_url(url))  # type: ignore[no-untyped-call]
    except ValueError:
        is_right = False
    if not is_right:
        raise ValueError("must be a redis:// or rediss:// URL")
    return value


def parse_rate(text: str) -> Rate | None:
    """None is no limit. Raises ValueError."""
    if text == OFF:
        return None
    found = _RATE.fullmatch(text.strip())
    if not found:
        raise ValueError(RATE_FORM)
    amount, units, unit = found.groups()
    rate = Rate(int(amount), int(units or 1) * _SECONDS[unit.lower()])
    if not 0 < rate.amount <= MOST_REQUESTS or not 0 < rate.seconds <= LONGEST_WINDOW_S:
        raise ValueError(RATE_FORM)
    return rate


def _rate(text: str) -> str:
    parse_rate(text)
    return text


def _networks(value: str) -> str:
    try:
        for part in filter(None, value.split(",")):
            ip_network(part.strip())
    except ValueError:
        raise ValueError(
            "must be addresses or networks with commas between them, such as 10.0.0.1,10.1.0.0/16"
        ) from None
    return value


WebUrl = Annotated[str, AfterValidator(_web_url)]
Usdc = Annotated[int, BeforeValidator(_usdc)]
RateText = Annotated[str, AfterValidator(_rate)]


class Changeable(BaseModel):
    """What the ledger keeps and `x402-gig settings set` changes. Amounts are base units here and USDC outside."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, hide_input_in_errors=True)

    commission_address: Annotated[str, AfterValidator(_address)] = Field("", validate_default=False)
    commission_bps: int = Field(1000, ge=0, le=10_000)
    minimum_reward: Usdc = Field(10, ge=1)  # defaults are validated too, so they are USDC
    maximum_reward: Usdc = Field(1_000_000, le=LARGEST_REWARD * 10**USDC_DECIMALS)


class Settings(Changeable):
    """What the environment says; nothing is read from there but by `load`. With what the ledger keeps: `agreed`."""

    network: Literal["base", "base-sepolia", "devnet"] = Field(cast(Any, ""), validate_default=False)
    rpc_url: Annotated[SecretStr, AfterValidator(_secret_web_url)]
    facilitator: Annotated[SecretStr, AfterValidator(_facilitator)] = SecretStr(LOCAL)
    facilitator_token: SecretStr = SecretStr("")
    seed: SecretStr = SecretStr("")
    seed_file: Path | None = None
    public_url: WebUrl
    database_url: SecretStr = SecretStr("sqlite:///x402-gig.db")
    redis_url: Annotated[SecretStr, AfterValidator(_redis_url)] = SecretStr("")
    host: str = "127.0.0.1"
    port: int = Field(4021, ge=0, le=65535)
    keep_alive_s: int = Field(KEEP_ALIVE_S, ge=1, le=3600)
    trusted_proxies: Annotated[str, AfterValidator(_networks)] = ""
    rate_limit_address: RateText = "600/minute"
    rate_limit_key: RateText = "600/minute"
    wallet_account: int = Field(0, ge=0, lt=2**31)
    max_timeout_s: int = Field(60, ge=10, le=600)
    confirmations: int = Field(1, ge=1, le=64)
    reorg_depth: int = Field(64, ge=1, le=10_000)
    relayers: int = Field(2, ge=1, le=64)

    @property
    def proxies(self) -> list[str]:
        """Whose `X-Forwarded-For` is believed."""
        return [part.strip() for part in self.trusted_proxies.split(",") if part.strip()]

    @property
    def warning(self) -> str:
        """What may be so, and is hardly meant."""
        if self.network == "devnet" or not _is_loopback(_host_of(self.public_url)):
            return ""
        return f"{PREFIX}PUBLIC_URL is {self.public_url}: nobody else can follow the links in prices and lists"

    @property
    def is_remote(self) -> bool:
        """A facilitator executes payments."""
        return self.facilitator.get_secret_value() != LOCAL

    @property
    def preset(self) -> NetworkPreset:
        return NETWORKS[self.network]

    # Validators of single fields, also where two of them meet: pydantic stops before a model's own validator when a
    # field is wrong, and all problems are to be listed at once. `info.data` has the fields above that are right.

    @field_validator("facilitator_token")
    @classmethod
    def _token_for_remote(cls, token: SecretStr, info: ValidationInfo) -> SecretStr:
        if token.get_secret_value() and info.data.get("facilitator") == SecretStr(LOCAL):
            raise ValueError(f"is set but {PREFIX}FACILITATOR is local")
        if not token.get_secret_value().isascii():
            raise ValueError("may only hold ASCII characters")
        return token

    @field_validator("seed")
    @classmethod
    def _seed(cls, seed: SecretStr) -> SecretStr:
        if seed.get_secret_value():
            _phrase(seed.get_secret_value())
        return seed

    @field_validator("seed_file")
    @classmethod
    def _one_seed(cls, path: Path | None, info: ValidationInfo) -> Path | None:
        seed_given = "seed" not in info.data or bool(info.data["seed"].get_secret_value())
        if seed_given and path is not None:
            raise ValueError(f"{PREFIX}SEED is set too: keep one of them")
        if not seed_given and path is None:
            raise ValueError(f"set this, or {PREFIX}SEED")
        if path is not None:
            _read_phrase(path)
        return path

    def agreed(self, kept: Mapping[str, Any], among: Collection[str] = NAMES) -> "Settings":
        """With what the ledger keeps, which is nothing before its first start.

        Raises CannotStart where the environment says something else `among` these, or does not say what has no default.
        """
        differing = self.differing(kept)
        problems = [_differs(name, *differing[name]) for name in differing if name in among]
        values = {**dict(self), **kept}
        problems += [_missing(name) for name in WITHOUT_DEFAULT if not values[name]]
        if values["maximum_reward"] < values["minimum_reward"]:
            problems.append(f"{_variable('maximum_reward')}: is less than {_variable('minimum_reward')}")
        if problems:
            raise CannotStart(problems)
        # Only what the environment says counts as set.
        return Settings.model_construct(self.model_fields_set, **values)

    def differing(self, kept: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """What the environment says and the ledger does not: both, as they are written there."""
        said = {name: (getattr(self, name), kept[name]) for name in kept if name in self.model_fields_set}
        return {name: (written(name, ours), written(name, its)) for name, (ours, its) in said.items() if ours != its}

    @property
    def mnemonic(self) -> str:
        """The seed phrase. Never log it."""
        return _read_phrase(self.seed_file) if self.seed_file is not None else _phrase(self.seed.get_secret_value())


def _phrase(text: str) -> str:
    """A BIP-39 phrase with single spaces. Raises ValueError, without the phrase."""
    phrase = " ".join(text.split())
    if phrase in PUBLISHED_PHRASES:
        raise ValueError("is a published test phrase: anybody could take what its wallets hold")
    try:
        seed_of(phrase)
    except ValueError as exc:
        raise ValueError(f"is {exc}") from None
    return phrase


def _read_phrase(path: Path) -> str:
    try:
        if _is_open_to_others(path):
            raise ValueError(f"{OPEN} it: run chmod 600 {shlex.quote(str(path))}")
        return _phrase(path.read_text())
    except OSError as exc:
        raise ValueError(f"cannot be read: {exc.strerror}") from None


def _is_open_to_others(path: Path) -> bool:
    """Of a group's members the operator knows; Windows has other rights. Raises OSError."""
    is_known = os.name == "posix" and not path.absolute().is_relative_to(SECRETS)
    return is_known and bool(path.stat().st_mode & (stat.S_IROTH | stat.S_IWOTH))


def load(**overrides: Any) -> Settings:
    """The settings, checked. Raises CannotStart with every problem, each by the name of its setting."""
    given = _given()
    problems = list(_unknown(given))
    # What is empty is not set.
    values = {name: value for name in Settings.model_fields if (value := given.get(_variable(name)))}
    try:
        settings = Settings(**values | overrides)
    except ValidationError as exc:
        problems += [_problem(error) for error in exc.errors(include_url=False, include_input=False)]
        problems += [_missing(name) for name in WITHOUT_DEFAULT if name not in values | overrides]
        raise CannotStart(problems) from None
    if problems:
        raise CannotStart(problems)
    return settings


def written(name: str, value: Any) -> str:
    """A setting's value as it is written in the environment."""
    return to_tokens(value) if name in ("minimum_reward", "maximum_reward") else str(value)


def _differs(name: str, ours: str, its: str) -> str:
    change = f"or change the ledger: x402-gig settings set --{name.replace('_', '-')} {ours}"
    how = change if name in Changeable.model_fields else "or name another ledger in X402_GIG_DATABASE_URL"
    return f"{_variable(name)} is {ours}, and the ledger says {its} for all its servers: leave it out, {how}"


def _missing(name: str) -> str:
    return f"{_variable(name)} is not set, and the ledger does not say it before a server has started on it"


def _variable(name: str) -> str:
    return f"{PREFIX}{name.upper()}"


def _given() -> dict[str, str]:
    """What the environment says, and `.env` where that is silent or empty; names in capitals."""
    given: dict[str, str] = {}
    for name, value in (*_file(Path(".env")).items(), *os.environ.items()):
        given[name.upper()] = value or given.get(name.upper(), "")
    return given


def _file(path: Path) -> Mapping[str, str | None]:
    """Raises CannotStart."""
    try:
        if not path.exists():
            return {}
        from dotenv import dotenv_values

        return _closed(path, dotenv_values(path))
    except (OSError, UnicodeDecodeError) as exc:  # `from None`: the latter holds all that is in the file
        raise CannotStart([f"{path} cannot be read ({type(exc).__name__}): it must be text in UTF-8"]) from None


def _closed(path: Path, given: Mapping[str, str | None]) -> Mapping[str, str | None]:
    """What is given in that file. Raises CannotStart where it has the seed and is open to others, and OSError."""
    has_seed = any(value and name.upper() == _variable("seed") for name, value in given.items())
    if has_seed and _is_open_to_others(path):
        raise CannotStart([f"{path}: holds the seed, and {OPEN} it: run chmod 600 {path}"])
    return given


def _unknown(given: Mapping[str, str]) -> Iterator[str]:
    """A misspelt setting would silently be its default."""
    known = {_variable(name) for name in Settings.model_fields}
    for name in sorted(name for name in given if name.startswith(PREFIX) and name not in known):
        close = get_close_matches(name, known, n=1)
        yield f"{name}: there is no such setting{f'; is it {close[0]}?' if close else ''}"


def _problem(error: Any) -> str:
    name = _variable(str(error["loc"][0]))
    if error["type"] == "missing":
        return f"{name} is not set"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"
