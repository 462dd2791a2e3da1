"""Every error this package raises on purpose, but for those that stay within one module.

    GigError
    ├── BadRequest              the request cannot be understood
    │   ├── ValidationFailed    the terms are wrong; carries every problem
    │   ├── NotFunded           the gig's wallet does not hold what it should
    │   ├── NotStartable        the gig is live already, or cancelled
    │   └── BodyTooLarge
    ├── InvalidApiKey           no key that may be used
    ├── TooManyRequests         more than the rate limit allows; carries when there is room again
    ├── NotFound                no such chain, gig or page
    ├── BeingProcessed          somebody else is starting this gig
    ├── PaymentConflict         this payment already bought something else
    ├── OutcomeUnknown          the money may or may not have moved; ask again with the same payment
    ├── Unavailable             nothing was sent and nothing was charged; try again
    │   ├── ChainUnavailable    the node did not answer, or answered with garbage
    │   ├── ChainRefused        the node answered with a JSON-RPC error
    │   ├── LedgerUnavailable   the database does not do what it is told
    │   │   └── CommitUnknown   the answer to a commit was lost: the ledger may have changed
    │   └── FacilitatorUnavailable
    ├── LeaseLost               another process has this relayer now, and what was to be written was not
    ├── Refused                 a purchase of ours was refused and nothing was charged
    └── CannotStart             the settings, the chain or the ledger are not what they must be

An error has a machine-readable `reason` and a `detail` for people. Neither ever holds a seed, a key, an
RPC URL, a signed transaction or a node's own words, so both may be shown to a stranger. None knows HTTP:
`web.api.errors` does.
"""

from collections.abc import Iterable


class GigError(Exception):
    """Base of all; `reason` is stable and for programs, `detail` is a sentence for people."""

    reason = "internal_error"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail


class BadRequest(GigError):
    reason = "bad_request"


class ValidationFailed(BadRequest):
    reason = "validation_failed"

    def __init__(self, details: Iterable[str]) -> None:
        self.details = list(details)
        super().__init__("; ".join(self.details))


class NotFunded(BadRequest):
    """`details` say what is expected, and where."""

    reason = "not_funded"

    def __init__(self, detail: str, details: Iterable[str]) -> None:
        super().__init__(detail)
        self.details = list(details)


class NotStartable(BadRequest):
    reason = "not_startable"


class BodyTooLarge(BadRequest):
    reason = "body_too_large"


class InvalidApiKey(GigError):
    reason = "invalid_api_key"


class TooManyRequests(GigError):
    reason = "rate_limited"

    def __init__(self, retry_after_s: int) -> None:
        super().__init__("Too many requests")
        self.retry_after_s = retry_after_s


class NotFound(GigError):
    reason = "not_found"


class BeingProcessed(GigError):
    reason = "being_processed"

    def __init__(self, gig_id: int) -> None:
        super().__init__(f"Gig with id {gig_id} is currently being processed")


class PaymentConflict(GigError):
    reason = "payment_conflict"


class OutcomeUnknown(GigError):
    reason = "outcome_unknown"


class Unavailable(GigError):
    reason = "unavailable"


class ChainUnavailable(Unavailable):
    reason = "chain_unavailable"


class LedgerUnavailable(Unavailable):
    pass


class CommitUnknown(LedgerUnavailable):
    """The answer to a commit was lost. The only `Unavailable` after which the ledger may have changed."""

    reason = OutcomeUnknown.reason


class FacilitatorUnavailable(Unavailable):
    reason = "facilitator_unavailable"


class ChainRefused(Unavailable):
    reason = "chain_refused"

    def __init__(self, detail: str, code: int = 0) -> None:
        super().__init__(detail)
        self.code = code


class LeaseLost(GigError):
    reason = "lease_lost"


class Refused(GigError):
    """`problems` lists what is wrong, where there is more to say than `detail`."""

    reason = "refused"

    def __init__(self, detail: str, problems: Iterable[str] = ()) -> None:
        super().__init__(detail)
        self.problems = list(problems)


class CannotStart(GigError):
    """Lists everything that is wrong, one problem to a line."""

    reason = "cannot_start"

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))
