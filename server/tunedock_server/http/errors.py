"""Every failure leaves as OpenAI's error body, with `x-should-retry` and `Retry-After` from the one error table."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from tunedock_api.errors import BadInput, Internal, NotFound, TuneDockError, Unauthenticated

_SOURCES = ("body", "query", "path", "header")
CLIENT_GONE = 499  # nobody reads this answer; it is for the log and the metrics


def headers_of(error: TuneDockError) -> dict[str, str]:
    """Retry hints. openai-python retries 409, 429 and 5xx by itself unless `x-should-retry` says no."""
    headers = {"x-should-retry": "true" if error.kind.retry else "false"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
        headers["retry-after-ms"] = str(max(1, round(error.retry_after_s * 1000)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = "Bearer"
    return headers


def error_response(error: TuneDockError) -> Response:
    return JSONResponse(error.body(), error.kind.http_status, headers_of(error))


def internal_error() -> Internal:
    """What a caller sees of a failure of ours: nothing but that it is in the log under the request id."""
    return Internal("The server failed on this request. The log holds the details under this answer's x-request-id.")


def validation_error(errors: Sequence[Mapping[str, Any]]) -> BadInput:
    """The first complaint becomes message and param; all of them travel in `details`."""
    found = [{"param": _dotted(error["loc"]), "message": str(error["msg"])} for error in errors[:20]]
    first = found[0]
    where = f"'{first['param']}': " if first["param"] else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    details = {"errors": found} if len(found) > 1 else {}
    return BadInput(f"{where}{first['message']}{more}", param=first["param"], details=details)


def _dotted(location: Sequence[str | int]) -> str | None:
    parts = [str(part) for part in location]
    if parts and parts[0] in _SOURCES:
        parts = parts[1:]
    return ".".join(parts) or None


def from_os_error(error: OSError) -> TuneDockError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return storage_full()
    return internal_error()


def storage_full() -> TuneDockError:
    return TuneDockError("The server's disk is full: free space under TUNEDOCK_HOME.", "storage_full")


def translate(error: Exception) -> TuneDockError:
    """Any exception that reached the edge, as an error that may leave the product."""
    if isinstance(error, TuneDockError):
        return error
    if isinstance(error, RequestValidationError):
        return validation_error(error.errors())
    if isinstance(error, HTTPException):
        return _from_http(error)
    if isinstance(error, UnicodeEncodeError):
        return BadInput("The text holds a lone surrogate and cannot be encoded as UTF-8.")
    if isinstance(error, OSError):
        return from_os_error(error)
    return internal_error()


def _from_http(error: HTTPException) -> TuneDockError:
    if error.status_code == 404:
        return NotFound("There is no such route. GET /docs lists all of them.")
    if error.status_code == 405:
        return TuneDockError("This route does not know that method.", "method_not_allowed")
    if error.status_code == 413:
        return too_large(None)
    if error.status_code == 507:
        return storage_full()
    return BadInput(str(error.detail)) if error.status_code < 500 else internal_error()


def install(app: FastAPI) -> None:
    """Replaces FastAPI's `{"detail": …}` answers, from which the openai client could read neither message nor code."""
    for kind in (TuneDockError, RequestValidationError, HTTPException, UnicodeEncodeError, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    return error_response(translate(error))


def too_large(limit_bytes: int | None) -> BadInput:
    allowed = f" ({limit_bytes:,} bytes)" if limit_bytes else ""
    return BadInput(f"The request body is larger than this route allows{allowed}.", "payload_too_large")
