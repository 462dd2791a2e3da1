"""A remote facilitator executes the authorizations; the chain alone says whether it did.

Its answers are claims. `/verify` may only add a refusal to our own checks. Whatever `/settle` says, the payment settles
when its deposit is seen on chain. It is asked again only after a plain failure: `success: false` without a transaction.
"""

import asyncio
import contextlib
import itertools
import logging
import re
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import httpx
from eth_utils.address import to_checksum_address
from pydantic import BaseModel, Field, ValidationError
from x402.schemas import PaymentPayload, SupportedResponse

from x402_gig.errors import CannotStart, ChainUnavailable, FacilitatorUnavailable, GigError, Unavailable
from x402_gig.evm.node import Node
from x402_gig.facilitators.simulation import Lane, NeedsContractLane, NotNow, Passes, Used, lane_of, simulate
from x402_gig.ledger import payments, remote_payments, reservations
from x402_gig.ledger.engine import Connection, Ledger
from x402_gig.ledger.payments import Reservation
from x402_gig.ledger.remote_payments import Failed
from x402_gig.logs import Hiding, PaymentLog
from x402_gig.payments.checkout import STILL_SETTLING, Known
from x402_gig.payments.order import Order, Seller
from x402_gig.payments.outcome import Outcome, Rejected, Settled, Unknown
from x402_gig.payments.payment import Payment, PaymentKey
from x402_gig.settlement.late_orders import Claims
from x402_gig.settlement.settling import Settling

log = logging.getLogger(__name__)

VERIFY_TIMEOUT_S = 10
SETTLE_TIMEOUT_S = 60
MAX_ANSWER_BYTES = 64 * 1024
# Those of x402 that are passed on; whatever else a facilitator says is for the log alone.
REASONS = frozenset(
    {
        "insufficient_funds",
        "invalid_exact_evm_insufficient_balance",
        "invalid_exact_evm_nonce_already_used",
        "invalid_exact_evm_payload_authorization_valid_after",
        "invalid_exact_evm_payload_authorization_valid_before",
        "invalid_exact_evm_payload_authorization_value_mismatch",
        "invalid_exact_evm_payload_recipient_mismatch",
        "invalid_exact_evm_payload_signature",
        "invalid_network",
        "invalid_payload",
        "invalid_payment_requirements",
        "invalid_scheme",
        "invalid_transaction_state",
        "invalid_x402_version",
        "settlement_pending",
        "transaction_failed",
        "unexpected_settle_error",
        "unexpected_verify_error",
        "unsupported_scheme",
    }
)
REFUSED = "refused_by_facilitator"
_HASH = re.compile(r"0x[0-9a-fA-F]{64}")
FAILED = (
    "The facilitator could not settle the payment: repeat the request with the same payment header and the facilitator "
    "is asked again"
)
GIVEN_UP = (
    "The facilitator failed three times. The payment may still be executed until it expires: repeat the request with "
    "the same payment header for its outcome"
)

Answer = TypeVar("Answer", bound=BaseModel)


class VerifyAnswer(BaseModel):
    """The fields of a `/verify` answer that count; facilitators disagree on the others."""

    is_valid: bool = Field(alias="isValid")
    invalid_reason: str | None = Field(None, alias="invalidReason")


class SettleAnswer(BaseModel):
    """The fields of a `/settle` answer that count."""

    success: bool
    error_reason: str | None = Field(None, alias="errorReason")
    transaction: str | None = None


class FacilitatorClient:
    """The facilitator's HTTP API, with the liberties that real ones take."""

    def __init__(self, url: str, token: str) -> None:
        self._hiding = Hiding(url, token)
        # Uncompressed, so that the limit below holds for what is read into memory.
        headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Bearer {token}"} if token else {})
        self._http = httpx.AsyncClient(base_url=url, headers=headers, follow_redirects=False)

    async def check_support(self, network: str) -> None:
        """Raises CannotStart when it does not settle scheme exact on this network in version 2."""
        supported = await self._ask("GET", "supported", None, SupportedResponse, VERIFY_TIMEOUT_S)
        kinds = {(kind.x402_version, kind.scheme, kind.network) for kind in supported.kinds}
        if (2, "exact", network) not in kinds:
            raise CannotStart([f"FACILITATOR: it does not support x402 version 2, scheme exact on {network}"])

    async def verify(self, body: dict[str, Any]) -> VerifyAnswer:
        """Raises FacilitatorUnavailable. A verdict counts whatever the HTTP status it came with."""
        return await self._ask("POST", "verify", body, VerifyAnswer, VERIFY_TIMEOUT_S)

    async def settle(self, body: dict[str, Any]) -> SettleAnswer:
        """Raises FacilitatorUnavailable; the authorization may be on its way all the same."""
        return await self._ask("POST", "settle", body, SettleAnswer, SETTLE_TIMEOUT_S)

    async def _ask(self, method: str, path: str, body: Any, model: type[Answer], timeout_s: float) -> Answer:
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(method, path, json=body, timeout=timeout_s) as answer,
            ):
                raw = await _read(answer)
            return model.model_validate_json(raw)
        except (httpx.HTTPError, TimeoutError) as exc:
            raise FacilitatorUnavailable(f"/{path}: the facilitator did not answer ({type(exc).__name__})") from None
        except ValidationError:
            raise FacilitatorUnavailable(f"/{path}: the facilitator's answer makes no sense") from None

    def loggable(self, said: str | None) -> str:
        """A word of the facilitator's; only a reason of x402's and a transaction's hash stay whole."""
        text = said or ""
        return text if text in REASONS or _HASH.fullmatch(text) else self._hiding.of(text)

    async def close(self) -> None:
        await self._http.aclose()


async def _read(answer: httpx.Response) -> bytes:
    raw = bytearray()
    async for chunk in answer.aiter_raw():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise httpx.DecodingError("too long")
    return bytes(raw)


# A payment's id once it is written down, or its outcome when it does not come to that.
Written = int | Outcome


class RemoteFacilitator:
    """`payments.checkout.Facilitator` over HTTP. What is begun for a payment outlives its requests.

    `look` is called when there may be a new deposit on chain.
    """

    def __init__(
        self,
        client: FacilitatorClient,
        seller: Seller,
        node: Node,
        ledger: Ledger,
        settling: Settling,
        claims: Claims,
        look: Callable[[], None],
    ) -> None:
        self._client = client
        self._seller = seller
        self._node = node
        self._ledger = ledger
        self._settling = settling
        self._claims = claims
        self._look = look
        self._running: dict[tuple[PaymentKey, bytes, str], asyncio.Task[Written]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def prepare(self) -> None:
        """Raises CannotStart when it cannot settle on the seller's network, and Unavailable."""
        await self._client.check_support(self._seller.network.caip2)

    async def close(self) -> None:
        await self._client.close()

    async def settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        self._settling.check_selling()
        # Requests that differ in signature or terms run on their own: the ledger decides between them.
        name = (key, payment.signature, order.fingerprint)
        writing = self._running.get(name) or self._begin(name, Reservation(key, payment, order))
        try:
            written = await asyncio.shield(writing)
        except asyncio.CancelledError:
            self._settling.leave(key)
            self._spawn(self._abandon(key, writing))
            raise
        return await self._settling.wait(written) if isinstance(written, int) else written

    async def resume(self, payment_id: int) -> Outcome:
        """Asks `/settle` again after a plain failure, three times in all; a result that is not clear is waited for."""
        failed = await self._ledger.read(lambda c: remote_payments.find_failed(c, payment_id))
        outcome = await self._ask_again(payment_id, failed) if failed is not None else None
        return outcome or await self._settling.wait(payment_id)

    async def _ask_again(self, payment_id: int, failed: Failed) -> Outcome | None:
        """None when the facilitator is asked now, or another request was quicker."""
        try:
            would_not_settle = await self._simulate(failed.wanted)
        except Unavailable:
            return Unknown(STILL_SETTLING)
        if would_not_settle is not None:
            # Its authorization may still live: only what the ledger says is final.
            known = await self._ledger.read(lambda c: payments.outcomes(c, [payment_id]))
            return known.get(payment_id, Unknown(STILL_SETTLING))
        if not failed.may_be_asked:
            return Unknown(GIVEN_UP)
        if await self._count(remote_payments.ask_again, payment_id):
            self._spawn(self._ask_to_settle(payment_id, failed.wanted.payment))
        return None

    async def abandon(self, payment_id: int) -> None:
        await self._settling.abandon(payment_id)

    def can_send(self) -> bool:
        return True

    async def resend(self, payment_id: int, wanted: Reservation) -> None:
        """Ask `/settle` once more: the deposit is gone from the chain, or the operator said so."""
        if await self._count(remote_payments.take_resend, payment_id):
            self._spawn(self._ask_to_settle(payment_id, wanted.payment))

    async def _count(self, question: Callable[[Connection, int], bool], payment_id: int) -> bool:
        """Count a question to `/settle`, and whether it is to be asked now. Raises Unavailable."""
        tries = itertools.count()

        def count(connection: Connection) -> bool:
            is_ours = question(connection, payment_id)
            if next(tries) and not is_ours:
                # It may have been counted before the answer to the commit was lost: the reconciler asks `/settle`.
                payments.send_again(connection, payment_id)
            return is_ours

        return await self._ledger.write_surely(count)

    def _begin(self, name: tuple[PaymentKey, bytes, str], wanted: Reservation) -> "asyncio.Task[Written]":
        def retire(done: "asyncio.Task[Written]") -> None:
            del self._running[name]
            if not done.cancelled():
                # Looked at here, so that a failure with nobody left to see it is not reported as forgotten.
                done.exception()

        writing = self._running[name] = asyncio.create_task(self._write_down(wanted))
        writing.add_done_callback(retire)
        return writing

    async def _abandon(self, key: PaymentKey, writing: "asyncio.Task[Written]") -> None:
        """A buyer hung up before the payment was written down; if it ever is, it gets the mark."""
        with contextlib.suppress(GigError):
            written = await asyncio.shield(writing)
            payment_id = written.payment_id if isinstance(written, Settled) else written
            if isinstance(payment_id, int):
                await self._settling.abandon(payment_id)
        self._settling.left.discard(key)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write_down(self, wanted: Reservation) -> Written:
        if outcome := await self._check(wanted):
            return outcome
        is_new, known = await self._reserve(wanted)
        if known is None:
            raise Unavailable("The payment could not be written down")
        if is_new:
            self._spawn(self._ask_to_settle(known.payment_id, wanted.payment))
        # An earlier request or another process may have written it down.
        known.check_terms(wanted.order)
        return known.payment_id

    async def _reserve(self, wanted: Reservation) -> tuple[bool, Known | None]:
        """Whether the payment is new, so that `/settle` is to be asked, and what the ledger has of it."""
        tries = itertools.count()

        def write_down(connection: Connection) -> tuple[bool, Known | None]:
            is_new = wanted.key in reservations.write_to_charge(connection, [wanted], broadcasts=1)
            known = payments.find(connection, wanted.key)
            if next(tries) and known is not None and not is_new:
                # It may have been new before the answer to the commit was lost: the reconciler asks `/settle`.
                payments.send_again(connection, known.payment_id)
            return is_new, known

        await self._settling.mark_left()
        return await self._ledger.write_surely(write_down)

    async def _check(self, wanted: Reservation) -> Outcome | None:
        """None when it would settle now, by our own simulation and by the facilitator's word."""
        outcome = await self._simulate(wanted)
        if outcome is None and (refused := await self._verify(wanted.payment)):
            # Refused because somebody executed it in between? Then it is paid.
            outcome = await self._simulate(wanted) or refused
        return outcome

    async def _simulate(self, wanted: Reservation) -> Outcome | None:
        [verdict] = await simulate(self._node, [wanted.payment], lane_of(self._node, wanted.payment))
        if isinstance(verdict, NeedsContractLane):
            [verdict] = await simulate(self._node, [wanted.payment], Lane.CONTRACT)
        if isinstance(verdict, Used):
            return await self._claims.claim(wanted, verdict.block_number)
        if isinstance(verdict, Rejected):
            return verdict
        if isinstance(verdict, NotNow):
            raise Unavailable(verdict.detail)
        if not isinstance(verdict, Passes):
            raise ChainUnavailable("The payment cannot be simulated right now")
        return None

    async def _verify(self, payment: Payment) -> Rejected | None:
        verdict = await self._client.verify(self._body(payment))
        if verdict.is_valid:
            return None
        reason = verdict.invalid_reason or "unexpected_verify_error"
        log.info("the facilitator refuses a payment: %s", self._client.loggable(reason))
        return Rejected(reason if reason in REASONS else REFUSED, "The facilitator refuses the payment")

    def _body(self, payment: Payment) -> dict[str, Any]:
        """Both calls' body, made of our own requirements and the signed authorization: no claim of the client's."""
        authorization = payment.authorization
        requirements = self._seller.requirements(authorization.value)
        payload = PaymentPayload(
            accepted=requirements,
            payload={
                "signature": "0x" + payment.signature.hex(),
                "authorization": {
                    "from": to_checksum_address(authorization.payer),
                    "to": to_checksum_address(authorization.payee),
                    "value": str(authorization.value),
                    "validAfter": str(authorization.valid_after),
                    "validBefore": str(authorization.valid_before),
                    "nonce": authorization.nonce,
                },
            },
        )
        return {
            "x402Version": 2,
            "paymentPayload": payload.model_dump(by_alias=True, exclude_none=True),
            "paymentRequirements": requirements.model_dump(by_alias=True, exclude_none=True),
        }

    async def _ask_to_settle(self, payment_id: int, payment: Payment) -> None:
        try:
            answer = await self._client.settle(self._body(payment))
            claim = [self._client.loggable(said) for said in (answer.error_reason, answer.transaction)]
            PaymentLog(log, payment_id).info("the facilitator says %s", (answer.success, *claim))
            if not answer.success and not answer.transaction:
                # It may still execute it: not a refusal, only nothing to wait for right now.
                may_be_asked = await self._ledger.write(lambda c: remote_payments.note_failure(c, payment_id))
                self._settling.tell(payment_id, Unknown(FAILED if may_be_asked else GIVEN_UP))
        except GigError as exc:
            PaymentLog(log, payment_id).warning("%s", exc.detail)
        self._look()
