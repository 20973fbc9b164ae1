"""The one error tree and the one table code -> HTTP status -> gRPC status.

    TuneDockError
    ├── BadInput            the caller can mend it           400 / INVALID_ARGUMENT
    ├── Unauthenticated     no or a wrong key                401 / UNAUTHENTICATED
    ├── PermissionDenied    the key lacks the scope          403 / PERMISSION_DENIED
    ├── NotFound            no such thing, or not yours      404 / NOT_FOUND
    ├── Conflict            the state forbids it             409 or 412 / ABORTED or FAILED_PRECONDITION
    ├── Rejected            an adapter that cannot be served 422 / INVALID_ARGUMENT
    ├── Overloaded          come back later                  429 / RESOURCE_EXHAUSTED
    ├── Unavailable         a part is down or busy           503 / UNAVAILABLE
    ├── DeadlineExceeded    the caller's time is up          504 / DEADLINE_EXCEEDED
    └── Internal            our fault; details in the log    500 / INTERNAL

A message says what happened, with which value, and what to do. It never holds a path, a traceback or a repr of an
object. `CODES` lists every code that may leave the product; a test proves that each one is reachable through the tree.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar


@dataclass(frozen=True)
class ErrorKind:
    """One row of the table. `openai_type` is the `type` of OpenAI's error body; `retry` fills `x-should-retry`."""

    code: str
    http_status: int
    grpc_status: str
    openai_type: str
    retry: bool


_INVALID, _SERVER = "invalid_request_error", "server_error"

_KINDS = (
    ErrorKind("invalid_request", 400, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("invalid_file_format", 400, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("invalid_training_file", 400, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("invalid_n_examples", 400, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("context_length_exceeded", 400, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("model_not_available", 400, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("unservable_lora", 400, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("invalid_state", 400, "FAILED_PRECONDITION", _INVALID, False),
    ErrorKind("invalid_api_key", 401, "UNAUTHENTICATED", "authentication_error", False),
    ErrorKind("permission_denied", 403, "PERMISSION_DENIED", "permission_error", False),
    ErrorKind("model_not_found", 404, "NOT_FOUND", _INVALID, False),
    ErrorKind("fine_tune_not_found", 404, "NOT_FOUND", _INVALID, False),
    ErrorKind("not_found", 404, "NOT_FOUND", _INVALID, False),
    ErrorKind("method_not_allowed", 405, "UNIMPLEMENTED", _INVALID, False),
    ErrorKind("idempotency_conflict", 409, "ABORTED", _INVALID, False),
    ErrorKind("version_in_use", 409, "FAILED_PRECONDITION", _INVALID, False),
    ErrorKind("version_not_ready", 409, "FAILED_PRECONDITION", _INVALID, False),
    ErrorKind("alias_conflict", 412, "ABORTED", _INVALID, False),
    ErrorKind("stale_lease", 409, "ABORTED", _INVALID, False),
    ErrorKind("payload_too_large", 413, "RESOURCE_EXHAUSTED", _INVALID, False),
    ErrorKind("adapter_rejected", 422, "INVALID_ARGUMENT", _INVALID, False),
    ErrorKind("rate_limit_exceeded", 429, "RESOURCE_EXHAUSTED", "rate_limit_error", True),
    ErrorKind("adapter_queue_full", 429, "RESOURCE_EXHAUSTED", "rate_limit_error", True),
    ErrorKind("adapter_unavailable", 503, "UNAVAILABLE", _SERVER, False),
    ErrorKind("adapter_loading", 503, "UNAVAILABLE", _SERVER, True),
    ErrorKind("engine_overloaded", 503, "UNAVAILABLE", _SERVER, True),
    ErrorKind("engine_unavailable", 503, "UNAVAILABLE", _SERVER, True),
    ErrorKind("shutting_down", 503, "UNAVAILABLE", _SERVER, True),
    ErrorKind("storage_unavailable", 503, "UNAVAILABLE", _SERVER, True),
    ErrorKind("storage_full", 507, "RESOURCE_EXHAUSTED", _SERVER, False),
    ErrorKind("deadline_exceeded", 504, "DEADLINE_EXCEEDED", _SERVER, False),
    ErrorKind("internal_error", 500, "INTERNAL", _SERVER, False),
)

CODES: dict[str, ErrorKind] = {kind.code: kind for kind in _KINDS}


@dataclass
class TuneDockError(Exception):
    """Base of the tree.

    `message` is for people; `code` is a key of `CODES`; `param` is the dotted path of the offending field, or None;
    `retry_after_s` becomes `Retry-After` and gRPC `RetryInfo`; `details` are plain JSON values for machines (the current
    state of a conflict, the list of line errors).
    """

    message: str
    code: str = ""
    param: str | None = None
    retry_after_s: float | None = None
    details: dict[str, Any] = field(default_factory=dict)
    default_code: ClassVar[str] = "internal_error"

    def __post_init__(self) -> None:
        self.code = self.code or self.default_code
        super().__init__(self.message)

    @property
    def kind(self) -> ErrorKind:
        return CODES[self.code]

    def body(self) -> dict[str, Any]:
        """OpenAI's error body: all four keys are always there; `details` only when there are some."""
        error: dict[str, Any] = {
            "message": self.message,
            "type": self.kind.openai_type,
            "param": self.param,
            "code": self.code,
        }
        if self.details:
            error["details"] = self.details
        return {"error": error}

    def __str__(self) -> str:
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.message, self.code, self.param, self.retry_after_s, self.details)


class BadInput(TuneDockError):
    default_code = "invalid_request"


class Unauthenticated(TuneDockError):
    default_code = "invalid_api_key"


class PermissionDenied(TuneDockError):
    default_code = "permission_denied"


class NotFound(TuneDockError):
    default_code = "not_found"


class Conflict(TuneDockError):
    default_code = "alias_conflict"


class Rejected(TuneDockError):
    default_code = "adapter_rejected"


class Overloaded(TuneDockError):
    default_code = "rate_limit_exceeded"


class Unavailable(TuneDockError):
    default_code = "engine_unavailable"


class DeadlineExceeded(TuneDockError):
    default_code = "deadline_exceeded"


class Internal(TuneDockError):
    default_code = "internal_error"


def model_not_found(model: str) -> NotFound:
    """OpenAI's own text for an unknown model, so that clients that match on it keep working."""
    shown = model if len(model) <= 200 else model[:200] + "…"
    return NotFound(f"The model `{shown}` does not exist or you do not have access to it.", "model_not_found")
