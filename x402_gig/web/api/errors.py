"""From error to answer: one table decides the status, and nothing but `detail` of our own errors leaves the server."""

from collections.abc import Callable, Mapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from x402_gig.errors import (
    BadRequest,
    BeingProcessed,
    BodyTooLarge,
    GigError,
    InvalidApiKey,
    NotFound,
    NotFunded,
    NotStartable,
    OutcomeUnknown,
    PaymentConflict,
    TooManyRequests,
    Unavailable,
    ValidationFailed,
)

RETRY_AFTER_S = 5

# Most specific first.
STATUS: Mapping[type[GigError], int] = {
    BodyTooLarge: 413,
    BadRequest: 400,
    InvalidApiKey: 401,
    TooManyRequests: 429,
    NotFound: 404,
    BeingProcessed: 409,
    PaymentConflict: 409,
    OutcomeUnknown: 503,
    Unavailable: 503,
}
HTTP_TEXTS = {404: "Not found", 405: "Method not allowed"}
FAILURES = {
    "/api/gigs/create/x402": "Failed to create gig",
    "/api/gigs/create": "Failed to create gig",
    "/api/gigs/types": "Failed to fetch gig types",
}
# The gig API says only this much of these.
TERSE = (NotFound, InvalidApiKey, NotStartable, BeingProcessed)


def status_of(error: GigError) -> int:
    return next((status for kind, status in STATUS.items() if isinstance(error, kind)), 500)


def answer_gig_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GigError)  # noqa: S101 - Starlette's handlers are typed for any exception
    status = status_of(error)
    if status == 500:
        return answer_bug(request, error)
    return JSONResponse(_body(error), status, _headers(error) if status in (429, 503) else None)


def _headers(error: GigError) -> dict[str, str]:
    """Of an answer that another try may change."""
    retry_after_s = error.retry_after_s if isinstance(error, TooManyRequests) else RETRY_AFTER_S
    return {"Retry-After": str(retry_after_s), "Cache-Control": "no-store"}


def _body(error: GigError) -> dict[str, Any]:
    if isinstance(error, ValidationFailed):
        return {"error": "Validation failed", "details": error.details}
    if isinstance(error, NotFunded):
        return {"error": {"message": error.detail, "details": error.details}}
    if isinstance(error, TERSE):
        return {"error": error.detail}
    return {"error": error.detail, "reason": error.reason}


def answer_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    text = HTTP_TEXTS.get(error.status_code, error.detail)
    return JSONResponse({"error": text}, error.status_code, error.headers)


def answer_bug(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": FAILURES.get(request.url.path, "Internal server error")}, 500)


HANDLERS: dict[Any, Callable[[Request, Exception], Response]] = {
    GigError: answer_gig_error,
    HTTPException: answer_http_error,
    Exception: answer_bug,
}
