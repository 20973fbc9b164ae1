"""The one error table as `google.rpc.Status`: ErrorInfo with our code, BadRequest for a field, RetryInfo for a wait. Pure."""

from __future__ import annotations

import json
import math

import grpc
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from tunedock_api.errors import TuneDockError

DOMAIN = "tunedock"
STATUS_KEY = "grpc-status-details-bin"
# Trailers share one HTTP/2 header block, which peers cap at 8 KiB by default.
_MAX_MESSAGE_CHARS = 1_500
_MAX_DETAIL_CHARS = 1_500


def grpc_code(error: TuneDockError) -> grpc.StatusCode:
    return grpc.StatusCode[error.kind.grpc_status]


def message_of(error: TuneDockError) -> str:
    text = error.message
    return text if len(text) <= _MAX_MESSAGE_CHARS else text[:_MAX_MESSAGE_CHARS] + "…"


def status_of(error: TuneDockError, request_id: str) -> Status:
    """Everything of `error` that REST says in its body and headers."""
    code, _ = grpc_code(error).value
    status = Status(code=code, message=message_of(error))
    status.details.extend(_packed(detail) for detail in _details(error, request_id))
    return status


def _details(error: TuneDockError, request_id: str) -> list[Message]:
    info = ErrorInfo(reason=error.code, domain=DOMAIN, metadata={"request_id": request_id})
    found: list[Message] = [info]
    if error.param is not None:
        info.metadata["param"] = error.param
        violation = BadRequest.FieldViolation(field=error.param, description=message_of(error))
        found.append(BadRequest(field_violations=[violation]))
    if error.details and len(text := json.dumps(error.details)) <= _MAX_DETAIL_CHARS:
        info.metadata["details"] = text
    if error.retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(math.ceil(error.retry_after_s * 1000))
        found.append(retry)
    return found


def _packed(message: Message) -> Any:
    packed = Any()
    packed.Pack(message)
    return packed
