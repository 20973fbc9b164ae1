"""Every failure that reaches a caller is an exception of the one tree, whatever the transport was."""

from __future__ import annotations

from typing import Any

from tunedock_api.errors import (
    CODES,
    BadInput,
    Conflict,
    DeadlineExceeded,
    Internal,
    NotFound,
    Overloaded,
    PermissionDenied,
    Rejected,
    TuneDockError,
    Unauthenticated,
    Unavailable,
)

_BY_STATUS: dict[int, type[TuneDockError]] = {
    400: BadInput,
    401: Unauthenticated,
    403: PermissionDenied,
    404: NotFound,
    405: BadInput,
    409: Conflict,
    412: Conflict,
    413: BadInput,
    415: BadInput,
    422: Rejected,
    429: Overloaded,
    502: Unavailable,
    503: Unavailable,
    504: DeadlineExceeded,
    507: Unavailable,
}


def class_for_status(http_status: int) -> type[TuneDockError]:
    """The branch of the tree that an HTTP status belongs to; Internal for what the table does not know."""
    return _BY_STATUS.get(http_status, BadInput if 400 <= http_status < 500 else Internal)


def from_code(code: str, message: str, **fields: Any) -> TuneDockError:
    """An exception for `code`, which need not be known here: a job of a newer server may carry a new one."""
    kind = CODES.get(code)
    if kind is None:
        return Internal(message or f"the service reported {code!r}", **fields)
    return class_for_status(kind.http_status)(message, code, **fields)


def from_body(http_status: int, body: Any, retry_after_s: float | None = None) -> TuneDockError:
    """An exception for an HTTP error. `body` is the value of `error`, or whatever a proxy put in its place.

    A known code decides the branch; an error in the middle of a stream has nothing else.
    """
    error = body if isinstance(body, dict) else {}
    message = str(error.get("message") or f"the service answered HTTP {http_status}")
    code = error.get("code")
    kind = CODES.get(code) if isinstance(code, str) else None
    details = error.get("details")
    return class_for_status(kind.http_status if kind else http_status)(
        message,
        kind.code if kind else "",
        error.get("param"),
        retry_after_s,
        details if isinstance(details, dict) else {},
    )
