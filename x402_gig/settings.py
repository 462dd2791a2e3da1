"""All settings of `serve`, from the environment and `.env`; the only reader of either."""

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal

from eth_account.hdaccount import seed_from_mnemonic
from eth_utils.address import is_address
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from x402_gig.errors import CannotStart
from x402_gig.gigs.pricing import USDC_DECIMALS, to_units
from x402_gig.payments.order import Network

PREFIX = "X402_GIG_"
# The ledger's amounts are 64-bit.
LARGEST_REWARD = 1_000_000_000_000


@dataclass(frozen=True)
class NetworkPreset(Network):
    """A chain and the USDC on it."""

    usdc: str
    usdc_name: str
    usdc_version: str = "2"


_BASE_USDC = "0x833589fCD6eDb6E08f4c7C32D4f71b54bdA02913"
NETWORKS = {
    "base": NetworkPreset(8453, "base", _BASE_USDC, "USD Coin"),
    "base-sepolia": NetworkPreset(84532, "base-sepolia", "0x036CbD53842c5426634e7929541eC2318f3dCF7e", "USDC"),
    "devnet": NetworkPreset(8453, "base", _BASE_USDC, "USD Coin"),
}


def _web_url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or len(value) < 10:
        raise ValueError("must be an http or https URL")
    return value.rstrip("/")


def _address(value: str) -> str:
    if not is_address(value):
        raise ValueError("must be an address: 0x and 40 hex digits (and a right checksum where letters are mixed)")
    if int(value, 16) == 0:
        raise ValueError("may not be the zero address")
    return value.lower()


def _usdc(value: Any) -> int:
    try:
        return to_units(Decimal(str(value)), USDC_DECIMALS)
    except ArithmeticError:
        raise ValueError("must be a number of USDC") from None


WebUrl = Annotated[str, AfterValidator(_web_url)]
Usdc = Annotated[int, BeforeValidator(_usdc)]


class Settings(BaseSettings):
    """Frozen. Amounts are base units here and USDC in the environment."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
    )

    network: Literal["base", "base-sepolia", "devnet"]
    rpc_url: SecretStr
    facilitator: str = "local"
    facilitator_token: SecretStr = SecretStr("")
    seed: SecretStr = SecretStr("")
    seed_file: Path | None = None
    commission_address: Annotated[str, AfterValidator(_address)]
    public_url: WebUrl
    database_url: SecretStr = SecretStr("sqlite:///x402-gig.db")
    host: str = "127.0.0.1"
    port: int = Field(4021, ge=0, le=65535)
    commission_bps: int = Field(1000, ge=0, le=10_000)
    minimum_reward: Usdc = Field(10, ge=1)  # defaults are validated too, so they are USDC
    maximum_reward: Usdc = Field(1_000_000, le=LARGEST_REWARD * 10**USDC_DECIMALS)
    wallet_account: int = Field(0, ge=0, lt=2**31)
    max_timeout_s: int = Field(60, ge=10, le=600)
    confirmations: int = Field(1, ge=1, le=64)
    relayers: int = Field(2, ge=1, le=64)

    @property
    def preset(self) -> NetworkPreset:
        return NETWORKS[self.network]

    @property
    def mnemonic(self) -> str:
        """The seed phrase. Never log it."""
        if self.seed_file is not None:
            return " ".join(self.seed_file.read_text().split())
        return " ".join(self.seed.get_secret_value().split())


def load(**overrides: Any) -> Settings:
    """The settings, checked. Raises CannotStart with every problem, each by the name of its setting."""
    try:
        settings = Settings(**overrides)
    except ValidationError as exc:
        raise CannotStart(_problem(error) for error in exc.errors(include_url=False, include_input=False)) from None
    if problems := [*_contradictions(settings), *_seed_problems(settings)]:
        raise CannotStart(problems)
    return settings


def _problem(error: Any) -> str:
    name = f"{PREFIX}{str(error['loc'][0]).upper()}"
    if error["type"] == "missing":
        return f"{name} is not set"
    return f"{name}: {error['msg'].removeprefix('Value error, ')}"


def _contradictions(settings: Settings) -> list[str]:
    problems = []
    if settings.minimum_reward > settings.maximum_reward:
        problems.append(f"{PREFIX}MINIMUM_REWARD is more than {PREFIX}MAXIMUM_REWARD")
    if settings.facilitator != "local" and not settings.facilitator.startswith(("http://", "https://")):
        problems.append(f"{PREFIX}FACILITATOR must be `local` or an http(s) URL")
    if settings.facilitator == "local" and settings.facilitator_token.get_secret_value():
        problems.append(f"{PREFIX}FACILITATOR_TOKEN is set but {PREFIX}FACILITATOR is local")
    if not settings.rpc_url.get_secret_value().startswith(("http://", "https://")):
        problems.append(f"{PREFIX}RPC_URL must be an http(s) URL")
    return problems


def _seed_problems(settings: Settings) -> list[str]:
    if bool(settings.seed.get_secret_value()) == (settings.seed_file is not None):
        return [f"{PREFIX}SEED or {PREFIX}SEED_FILE must be set, and only one of them"]
    name = f"{PREFIX}SEED" if settings.seed_file is None else f"{PREFIX}SEED_FILE"
    try:
        seed_from_mnemonic(settings.mnemonic, "")
    except OSError as exc:
        return [f"{name} cannot be read: {exc.strerror}"]
    except Exception:  # noqa: BLE001 - the library's message repeats the phrase
        return [f"{name} is not a valid BIP-39 phrase"]
    return []
