"""gRPC failures as exceptions of the one tree."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from tunedock_api.errors import (
    BadInput,
    DeadlineExceeded,
    Internal,
    NotFound,
    TuneDockError,
    Unauthenticated,
    Unavailable,
)

from .wire_errors import from_code

STATUS_KEY = "grpc-status-details-bin"
DOMAIN = "tunedock"


def from_rpc(error: grpc.aio.AioRpcError, target: str, timeout_s: float) -> TuneDockError:
    """What the service said, or what the transport itself says when the service could not say anything."""
    status = _status(error.trailing_metadata() or ())
    told = _told(status) if status is not None else None
    return told or _bare(error, target, timeout_s)


def from_status(raw: bytes) -> TuneDockError:
    """What the service said about one stream of many."""
    status = Status.FromString(raw)
    return _told(status) or Internal(status.message)


def _status(trailers: Iterable[tuple[str, Any]]) -> Status | None:
    raw = next((value for key, value in trailers if key == STATUS_KEY), None)
    try:
        return Status.FromString(raw) if raw is not None else None
    except DecodeError:  # somebody else's trailer
        return None


def _told(status: Status) -> TuneDockError | None:
    info, retry = ErrorInfo(), RetryInfo()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(retry)
    if info.domain != DOMAIN:
        return None
    wait_s = retry.retry_delay.ToMilliseconds() / 1000
    return from_code(
        info.reason,
        status.message,
        param=info.metadata.get("param"),
        retry_after_s=wait_s or None,
        details=json.loads(info.metadata.get("details", "{}")),
    )


def _bare(error: grpc.aio.AioRpcError, target: str, timeout_s: float) -> TuneDockError:
    message = error.details() or error.code().name
    match error.code():
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable(
                f"cannot reach {target}: start a server with `tunedock serve`, or set TUNEDOCK_GRPC to where one runs."
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(f"no answer from {target} within {timeout_s:g} s.")
        case grpc.StatusCode.UNIMPLEMENTED:
            return BadInput(
                f"{target} does not know this call: is it a TuneDock server, and new enough?", "method_not_allowed"
            )
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return BadInput(f"{target} takes no message that large: {message}", "payload_too_large")
        case grpc.StatusCode.UNAUTHENTICATED:
            return Unauthenticated(message)
        case grpc.StatusCode.NOT_FOUND:
            return NotFound(message)
        case grpc.StatusCode.INVALID_ARGUMENT:
            return BadInput(message)
        case _:
            return Internal(f"{target} answered {error.code().name}: {message}")
