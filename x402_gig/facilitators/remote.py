"""A remote facilitator executes the authorizations; the chain alone says whether it did.

Its answers are claims. `/verify` may only add a refusal to our own checks; `/settle` is asked once for a payment and
whatever it says, the payment settles when its deposit is seen on chain.
"""

import asyncio
import logging
from collections.abc import Coroutine
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import httpx
from eth_utils.address import to_checksum_address
from pydantic import BaseModel, ValidationError
from x402.schemas import PaymentPayload, SettleResponse, SupportedResponse, VerifyResponse

from x402_gig.chain.node import Node
from x402_gig.errors import CannotStart, FacilitatorUnavailable, GigError, PaymentConflict
from x402_gig.payments.checkout import STILL_SETTLING
from x402_gig.payments.order import Order, Seller
from x402_gig.payments.outcome import Outcome, Rejected, Unknown
from x402_gig.payments.payment import Payment, PaymentKey
from x402_gig.settlement.claims import Claims
from x402_gig.settlement.settling import Settling
from x402_gig.settlement.simulation import Lane, NeedsContractLane, Used, lane_of, simulate
from x402_gig.store import payments
from x402_gig.store.engine import Ledger
from x402_gig.store.payments import Reservation

log = logging.getLogger(__name__)

VERIFY_TIMEOUT_S = 10
SETTLE_TIMEOUT_S = 60
MAX_ANSWER_BYTES = 64 * 1024

Answer = TypeVar("Answer", bound=BaseModel)


class FacilitatorClient:
    """The facilitator's HTTP API, with the liberties that real ones take."""

    def __init__(self, url: str, token: str = "") -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, follow_redirects=False)

    async def check_support(self, network: str) -> None:
        """Raises CannotStart when it does not settle scheme exact on this network in version 2."""
        supported = await self._ask("GET", "supported", None, SupportedResponse, VERIFY_TIMEOUT_S)
        kinds = {(kind.x402_version, kind.scheme, kind.network) for kind in supported.kinds}
        if (2, "exact", network) not in kinds:
            raise CannotStart([f"FACILITATOR: it does not support x402 version 2, scheme exact on {network}"])

    async def verify(self, body: dict[str, Any]) -> VerifyResponse:
        """Raises FacilitatorUnavailable. A verdict counts whatever the HTTP status it came with."""
        return await self._ask("POST", "verify", body, VerifyResponse, VERIFY_TIMEOUT_S)

    async def settle(self, body: dict[str, Any]) -> SettleResponse:
        """Raises FacilitatorUnavailable; the authorization may be on its way all the same."""
        return await self._ask("POST", "settle", body, SettleResponse, SETTLE_TIMEOUT_S)

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

    async def close(self) -> None:
        await self._http.aclose()


async def _read(answer: httpx.Response) -> bytes:
    raw = b""
    async for chunk in answer.aiter_bytes():
        raw += chunk
        if len(raw) > MAX_ANSWER_BYTES:
            raise httpx.DecodingError("too long")
    return raw


@dataclass(eq=False)
class _Running:
    """A payment that is being verified and written down; `waiters` are the requests that want to know."""

    wanted: Reservation
    waiters: int = 0
    written: "asyncio.Future[int | Outcome]" = field(default_factory=asyncio.Future)


class RemoteFacilitator:
    """`payments.checkout.Facilitator` over HTTP. What is begun for a payment outlives its requests."""

    def __init__(
        self, client: FacilitatorClient, seller: Seller, node: Node, ledger: Ledger, settling: Settling, claims: Claims
    ) -> None:
        self._client = client
        self._seller = seller
        self._node = node
        self._ledger = ledger
        self._settling = settling
        self._claims = claims
        self._running: dict[PaymentKey, _Running] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def settle(self, key: PaymentKey, payment: Payment, order: Order) -> Outcome:
        running = self._running.get(key) or self._begin(Reservation(key, payment, order))
        if running.wanted.order.fingerprint != order.fingerprint:
            raise PaymentConflict("This payment is being settled for other terms")
        running.waiters += 1
        try:
            written = await asyncio.shield(running.written)
        finally:
            running.waiters -= 1
        return await self._settling.wait(written) if isinstance(written, int) else written

    async def resume(self, payment_id: int) -> Outcome:
        """Only waits: `/settle` is never asked twice."""
        return await self._settling.wait(payment_id)

    def _begin(self, wanted: Reservation) -> _Running:
        running = self._running[wanted.key] = _Running(wanted)
        running.written.add_done_callback(lambda done: self._running.pop(wanted.key) and done.exception())
        self._spawn(self._execute(running))
        return running

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _execute(self, running: _Running) -> None:
        try:
            running.written.set_result(await self._write_down(running))
        except Exception as exc:  # noqa: BLE001 - whoever waits gets it
            running.written.set_exception(exc)

    async def _write_down(self, running: _Running) -> int | Outcome:
        """The payment's id, or its outcome when it does not come to that."""
        wanted = running.wanted
        outcome = await self._simulate(wanted) or await self._verify(wanted.payment)
        if outcome is not None:
            return outcome
        wanted = replace(wanted, abandoned=running.waiters == 0)
        ids = await self._ledger.write(lambda c: payments.write_down(c, [wanted]))
        if payment_id := ids.get(wanted.key):
            self._spawn(self._ask_to_settle(payment_id, wanted.payment))
            return payment_id
        known = await self._ledger.read(lambda c: payments.find(c, wanted.key))
        if known is None or known.fingerprint != wanted.order.fingerprint:
            raise PaymentConflict("This payment already belongs to other terms")
        return known.payment_id

    async def _simulate(self, wanted: Reservation) -> Outcome | None:
        lane = lane_of(self._node, wanted.payment)
        [verdict] = await simulate(self._node, [wanted.payment], lane)
        if isinstance(verdict, NeedsContractLane):
            [verdict] = await simulate(self._node, [wanted.payment], Lane.CONTRACT)
        if isinstance(verdict, Used):
            return await self._claims.claim(wanted, verdict.block_number)
        return verdict if isinstance(verdict, Rejected) else None

    async def _verify(self, payment: Payment) -> Rejected | None:
        verdict = await self._client.verify(self._body(payment))
        if verdict.is_valid:
            return None
        reason = verdict.invalid_reason or "unexpected_verify_error"
        return Rejected(reason[:100], "The facilitator refuses the payment")

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
            log.info("payment %d: the facilitator says success=%s %s", payment_id, answer.success, answer.transaction)
            if not answer.success and not answer.transaction:
                # It may still execute it: not a refusal, only nothing to wait for right now.
                self._settling.tell(payment_id, Unknown(STILL_SETTLING))
        except GigError as exc:
            log.warning("payment %d: %s", payment_id, exc.detail)
