"""Would the token take these authorizations now, all together? One eth_call answers; others say why not."""

import asyncio
from collections.abc import Sequence
from enum import Enum, auto

from msgspec import Struct

from x402_gig.evm import batcher, eip3009
from x402_gig.evm.batcher import Call, Result
from x402_gig.evm.node import READ_GAS, Node
from x402_gig.gigs.pricing import to_tokens
from x402_gig.payments.outcome import Rejected
from x402_gig.payments.payment import Payment

CODE_SIZE_GAS = 10_000


class Lane(Enum):
    """Payers with code run it when they pay: they get more gas, and batches of their own."""

    PLAIN = auto()
    CONTRACT = auto()

    @property
    def call_gas(self) -> int:
        return batcher.PLAIN_CALL_GAS if self is Lane.PLAIN else batcher.CONTRACT_CALL_GAS


class Passes:
    """It would settle."""


class NeedsContractLane:
    """The payer has code: simulate it there."""


class Again:
    """It failed beside the others but passes alone: another payment of the payer came first."""


class Used(Struct, frozen=True):
    """The nonce was used or cancelled, as seen in this block: the ledger knows which once it has read the block."""

    block_number: int


class NotNow(Struct, frozen=True):
    """The token moves nothing to us at present: not the payer's fault, and nothing to sign anew for."""

    detail: str


Verdict = Passes | NeedsContractLane | Again | Used | NotNow | Rejected


def transfer_call(payment: Payment, lane: Lane) -> bytes:
    """The calldata by which we execute this payment; the same in simulation and on chain."""
    return eip3009.transfer_call(payment.authorization, payment.signature, ecdsa=lane is Lane.PLAIN)


def lane_of(node: Node, payment: Payment) -> Lane:
    """Contract wallets' signatures do not recover to the payer. (An account with code and a key moves over later.)"""
    return Lane.PLAIN if node.recovers(payment.authorization, payment.signature) else Lane.CONTRACT


async def simulate(node: Node, payments: Sequence[Payment], lane: Lane) -> list[Verdict]:
    """One verdict for each payment. Raises ChainUnavailable, and ChainRefused when the node refuses the whole call."""
    calls = [call for payment in payments for call in _first_look(node, payment, lane)]
    _, results = await node.simulate(calls)
    pairs = [(results[i], results[i + 1]) for i in range(0, len(results), 2)]
    verdicts = [_verdict(code, transfer, lane) for code, transfer in pairs]
    failed = [i for i, verdict in enumerate(verdicts) if verdict is None]
    reasons = await _explain(node, [payments[i] for i in failed], lane) if failed else []
    why = dict(zip(failed, reasons, strict=True))
    return [verdict or why[i] for i, verdict in enumerate(verdicts)]


def _first_look(node: Node, payment: Payment, lane: Lane) -> list[Call]:
    return [
        Call(batcher.address(), CODE_SIZE_GAS, batcher.code_size_call(payment.authorization.payer)),
        Call(node.token.address, lane.call_gas, transfer_call(payment, lane)),
    ]


def _verdict(code: Result, transfer: Result, lane: Lane) -> Verdict | None:
    if not transfer.tried:  # the node gave the eth_call less gas than it was asked for
        return Again()
    if lane is Lane.PLAIN and code.number > 0:
        return NeedsContractLane()
    return Passes() if transfer.success and _moved(transfer) else None


def _moved(transfer: Result) -> bool:
    """`transferWithAuthorization` returns nothing; a token that answers `false` has moved nothing."""
    return not transfer.data or transfer.number != 0


async def _explain(node: Node, payments: Sequence[Payment], lane: Lane) -> list[Verdict]:
    """Payers with code are asked apart: a payer's answer may change the state that the calls after it see."""
    if lane is Lane.PLAIN:
        return await _explain_together(node, payments, lane)
    apart = await asyncio.gather(*(_explain_together(node, [payment], lane) for payment in payments))
    return [reason for [reason] in apart]


async def _explain_together(node: Node, payments: Sequence[Payment], lane: Lane) -> list[Verdict]:
    calls = [call for payment in payments for call in _second_look(node, payment, lane)]
    block_number, results = await node.simulate(calls)
    size = len(results) // len(payments)
    groups = [results[i : i + size] for i in range(0, len(results), size)]
    return [_reason(p, block_number, group) for p, group in zip(payments, groups, strict=True)]


def _second_look(node: Node, payment: Payment, lane: Lane) -> list[Call]:
    authorization, token = payment.authorization, node.token.address
    calls = [
        Call(token, READ_GAS, eip3009.authorization_state_call(authorization.payer, authorization.nonce)),
        Call(token, READ_GAS, eip3009.balance_of_call(authorization.payer)),
        Call(token, READ_GAS, eip3009.PAUSED_CALL),
        Call(token, READ_GAS, eip3009.is_blacklisted_call(authorization.payee)),
        # The token asks a payer's code by STATICCALL.
        Call(token, lane.call_gas, transfer_call(payment, lane)),
    ]
    if lane is Lane.PLAIN:
        return calls  # its signature recovers: that is what put it into its lane
    proof = eip3009.is_valid_signature_call(node.token.digest(authorization), payment.signature)
    # Last, and in an eth_call only: the batcher knows no STATICCALL.
    return [*calls, Call(authorization.payer, lane.call_gas, proof)]


def _reason(payment: Payment, block_number: int, results: Sequence[Result]) -> Verdict:
    used, balance, paused, blacklisted, transfer, *proofs = results
    is_told = used.success and balance.success and results[-1].tried
    if not is_told or (transfer.success and _moved(transfer)):
        return Again()
    if not all(eip3009.approves(proof.success, proof.data) for proof in proofs):
        return Rejected("invalid_exact_evm_payload_signature", "The signature is not the payer's")
    if used.number:
        return Used(block_number)
    if paused.number or blacklisted.number:
        return NotNow("USDC is paused" if paused.number else "USDC refuses the recipient")
    return _refused_by_token(payment, balance.number, transfer)


def _refused_by_token(payment: Payment, held_units: int, transfer: Result) -> Verdict:
    if held_units < payment.authorization.value:
        held, price = to_tokens(held_units), to_tokens(payment.authorization.value)
        return Rejected("insufficient_funds", f"The payer holds {held} USDC and the price is {price} USDC")
    return Rejected("invalid_transaction_state", f"The token refuses the payment: {transfer.revert_reason[:100]}")
