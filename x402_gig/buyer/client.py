"""The buying side, on the x402 SDK: quote, sign once, and post that one signature until its outcome is known.

The SDK's own HTTP clients sign anew whenever they are called, and a second signature is a second payment. So the SDK
reads the quote and signs it here, and the posting is ours.
"""

import shlex
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv6Address, ip_address
from typing import Any

import httpx
from eth_account.signers.local import LocalAccount
from msgspec import Struct
from x402 import x402ClientSync
from x402.http.x402_http_client import x402HTTPClientSync
from x402.mechanisms.evm.exact.register import register_exact_evm_client
from x402.mechanisms.evm.signers import EthAccountSigner
from x402.schemas import NoMatchingRequirementsError, PaymentRequired, PaymentRequirements
from x402.schemas.v1 import PaymentRequiredV1, PaymentRequirementsV1

from x402_gig.errors import OutcomeUnknown, Refused, TooManyRequests
from x402_gig.gigs.pricing import to_tokens
from x402_gig.settings import NETWORKS

CREATE = "/api/gigs/create/x402"
ANSWER_TIMEOUT_S = 90
FUNDING_TIMEOUT_S = 60
POLL_S = 0.3
RETRY_S = 1

# USDC on these networks, by their version 2 and version 1 names, is all that this buyer pays with.
_USDC = {name: preset.usdc.lower() for preset in NETWORKS.values() for name in (preset.caip2, preset.v1_name)}
_GIG_FIELDS = {
    "gig_id",
    "status",
    "start_time",
    "end_time",
    "gig_balance",
    "platform_fee",
    "total_amount",
    "gig_wallet_address",
}
# These say "later", not "no".
_UNDECIDED = (408, 425, 429)


class _AskAgain(Exception):
    """No outcome yet: the same payment may be posted again after `delay_s`. `harmless`: nobody looked at it."""

    def __init__(self, why: str, delay_s: float = RETRY_S, *, harmless: bool = False) -> None:
        super().__init__(why)
        self.delay_s = delay_s
        self.harmless = harmless


class Quote(Struct, frozen=True):
    """The price of `body`: a 402, reduced to the one offer that is going to be signed."""

    body: bytes
    required: PaymentRequired | PaymentRequiredV1

    @property
    def offer(self) -> PaymentRequirements | PaymentRequirementsV1:
        return self.required.accepts[0]

    @property
    def price_units(self) -> int:
        return int(self.offer.get_amount())


class Payment(Struct, frozen=True):
    """A signed payment for exactly `body`. Whoever has it can repeat it, and repeating it charges nobody twice."""

    url: str
    body: bytes
    header_name: str
    header_value: str
    price_units: int
    payer: str
    valid_until: datetime

    @property
    def header(self) -> str:
        """The whole line, as `curl -H` takes it."""
        return f"{self.header_name}: {self.header_value}"

    @property
    def curl(self) -> str:
        """A shell command that posts it."""
        words = ["curl", "-i", "--max-time", str(ANSWER_TIMEOUT_S), self.url, "-H", self.header]
        return shlex.join([*words, "--data-raw", self.body.decode()])


class Bought(Struct, frozen=True):
    """The server's answer, and the settlement response that came with it (None if that cannot be read)."""

    gig: dict[str, Any]
    receipt: dict[str, Any] | None


class Buyer:
    """Buys gigs at `url` and pays at most `limit_units` base units of USDC for each.

    `notify` hears why a payment has to be posted again.
    """

    def __init__(
        self,
        http: httpx.Client,
        url: str,
        account: LocalAccount,
        limit_units: int,
        *,
        notify: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.url = url.rstrip("/").removesuffix(CREATE)
        self._http = http
        self._account = account
        self._limit_units = limit_units
        self._notify = notify
        client = register_exact_evm_client(x402ClientSync(), EthAccountSigner(account))
        # The SDK refuses more than one dollar unless it is told otherwise.
        client.set_spend_controls({"max_amount_per_payment": f"${to_tokens(limit_units)}"})
        self._sdk = x402HTTPClientSync(client)

    def quote(self, body: bytes, *, version: int = 2) -> Quote:
        """What the server asks for these terms, at most `limit_units`. Raises Refused."""
        try:
            answer = self._post(body)
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            raise Refused(f"{self.url} cannot be reached: {exc}") from None
        if answer.status_code != 402:
            raise _refusal(answer)
        quote = Quote(body, self._read_offer(answer, version))
        if quote.price_units > self._limit_units:
            price, limit = to_tokens(quote.price_units), to_tokens(self._limit_units)
            raise Refused(f"The price is {price} USDC and your limit is {limit} USDC (--max-price)")
        return quote

    def _read_offer(self, answer: httpx.Response, version: int) -> PaymentRequired | PaymentRequiredV1:
        """The 402 with its cheapest offer that we can pay, and no other."""
        try:
            header = answer.headers.get if version == 2 else lambda _: None
            required = self._sdk.get_payment_required_response(header, _json_object(answer))
            offers = [offer for offer in required.accepts if offer.scheme == "exact" and _is_usdc(offer)]
            cheapest = sorted(offers, key=lambda offer: int(offer.get_amount()))[:1]
        except (ValueError, AttributeError):
            raise Refused("The server's 402 is not a payment request that can be understood") from None
        if not cheapest:
            raise Refused("The server does not take USDC on Base")
        return required.model_copy(update={"accepts": cheapest})

    def sign(self, quote: Quote) -> Payment:
        """Sign the quote, once. Raises Refused when the SDK will not."""
        try:
            payload = self._sdk.create_payment_payload(quote.required)
        except (NoMatchingRequirementsError, ValueError) as exc:
            raise Refused(f"Not signed: {exc}") from None
        [(name, value)] = self._sdk.encode_payment_signature_header(payload).items()
        valid_until = datetime.fromtimestamp(int(payload.payload["authorization"]["validBefore"]), UTC)
        return Payment(
            self.url + CREATE, quote.body, name, value, quote.price_units, self._account.address, valid_until
        )

    def pay(self, payment: Payment, deadline_s: float) -> Bought:
        """Post the payment, as often as it takes. Raises Refused, or OutcomeUnknown after `deadline_s`."""
        deadline = time.monotonic() + deadline_s
        why, harmless = "", True
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                return self._ask(payment, min(left_s, ANSWER_TIMEOUT_S), again=bool(why))
            except _AskAgain as exc:
                why, harmless = str(exc), harmless and exc.harmless
                self._notify(why)
                time.sleep(max(0.0, min(exc.delay_s, deadline - time.monotonic())))
        if harmless:
            raise Refused(f"{why}. The payment was not sent; it expires at {payment.valid_until:%H:%M:%S} UTC")
        raise OutcomeUnknown(why)

    def _ask(self, payment: Payment, timeout_s: float, *, again: bool) -> Bought:
        try:
            answer = self._post(payment.body, {payment.header_name: payment.header_value}, timeout_s)
        except httpx.HTTPError as exc:
            raise _AskAgain(f"no answer ({type(exc).__name__})") from None
        if answer.status_code == 200:
            return self._bought(answer)
        if answer.status_code == 409:
            # The money may have moved for this very signature, so it is no refusal; asking again changes nothing.
            raise OutcomeUnknown(f"the server says {_said(answer)}")
        if _refuses(answer.status_code, again=again):
            raise _refusal(answer)
        # A 503 speaks of this request only, whatever its reason: an earlier one may have been sent on.
        is_harmless = answer.status_code == 429 and _json_object(answer).get("reason") == TooManyRequests.reason
        raise _AskAgain(f"the server says {_said(answer)}", _retry_after_s(answer), harmless=is_harmless)

    def _bought(self, answer: httpx.Response) -> Bought:
        gig = _json_object(answer)
        if not gig.keys() >= _GIG_FIELDS:
            raise _AskAgain("the answer is not a gig")
        try:
            receipt = self._sdk.get_payment_settle_response(answer.headers.get)
        except ValueError:
            return Bought(gig, None)
        return Bought(gig, receipt.model_dump(mode="json", by_alias=True, exclude_none=True))

    def funding(self, gig_id: int) -> dict[str, Any] | None:
        """The gig's funding, once its reward is in its wallet; None when that takes unusually long."""
        deadline = time.monotonic() + FUNDING_TIMEOUT_S
        while time.monotonic() < deadline:
            funding = self._look_at(gig_id).get("funding")
            if isinstance(funding, dict) and funding.get("state") == "funded":
                return funding
            time.sleep(POLL_S)
        return None

    def _look_at(self, gig_id: int) -> dict[str, Any]:
        try:
            gig = _json_object(self._http.get(f"{self.url}/api/gigs/{gig_id}")).get("data")
        except httpx.HTTPError:
            return {}
        return gig if isinstance(gig, dict) else {}

    def _post(
        self, body: bytes, headers: dict[str, str] | None = None, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> httpx.Response:
        headers = {"Content-Type": "application/json", **(headers or {})}
        return self._http.post(self.url + CREATE, content=body, headers=headers, timeout=timeout_s)


def is_on_this_machine(url: str) -> bool:
    """True if the host's name or number leads to an address of this machine, however it is written."""
    try:
        found = socket.getaddrinfo(httpx.URL(url).host, None)
    except (OSError, UnicodeError, httpx.InvalidURL):
        return False
    return any(_is_loopback(str(where[0])) or _is_own(family, where) for family, *_, where in found)


def _is_loopback(number: str) -> bool:
    address = ip_address(number)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return address.is_loopback or address.is_unspecified  # to connect to 0.0.0.0 is to connect to oneself


def _is_own(family: int, where: tuple[Any, ...]) -> bool:
    """Only an address of this machine can be bound to. (Where the kernel lets others be, they count as its own.)"""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as bound:
            bound.bind(where)
    except OSError:
        return False
    return True


def _refuses(status: int, *, again: bool) -> bool:
    """Was nothing charged? When the payment may have arrived before, a proxy's 4xx does not say; the server's does."""
    return status in (400, 402) if again else 400 <= status < 500 and status not in _UNDECIDED


def _is_usdc(offer: PaymentRequirements | PaymentRequirementsV1) -> bool:
    return _USDC.get(offer.network) == offer.asset.lower()


def _json_object(answer: httpx.Response) -> dict[str, Any]:
    """The body, or `{}` when it is anything but a JSON object: proxies answer with HTML."""
    try:
        body = answer.json()
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _said(answer: httpx.Response) -> str:
    """An error in one line: its reason and, for a refused payment, its detail."""
    body = _json_object(answer)
    words = [str(body[name]) for name in ("error", "detail") if body.get(name)]
    return _printable(f"{answer.status_code} {': '.join(words) or answer.reason_phrase}")


def _refusal(answer: httpx.Response) -> Refused:
    details = _json_object(answer).get("details")
    problems = tuple(_printable(str(detail)) for detail in details) if isinstance(details, list) else ()
    return Refused(f"The server says {_said(answer)}", problems)


def _printable(text: str) -> str:
    """What a server says goes to a terminal, which obeys control characters."""
    return "".join(char if char.isprintable() else "?" for char in text)


def _retry_after_s(answer: httpx.Response) -> float:
    """`Retry-After` in seconds; its other form, a date, counts as absent."""
    value = answer.headers.get("Retry-After", "")
    return max(POLL_S, int(value)) if value.isascii() and value.isdigit() else RETRY_S
