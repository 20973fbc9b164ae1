"""Between messages and the JSON that REST speaks: the names are the same, so protobuf's own JSON mapping does it. Pure."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError, SerializeToJsonError
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from .errors import BadInput

M = TypeVar("M", bound=Message)
Json = dict[str, Any]


def from_answer(kind: type[M], shown: Json) -> M:
    """A message from an answer in REST's shape. Keys that the message does not have are left out."""
    return ParseDict(shown, kind(), ignore_unknown_fields=True)


def from_request(kind: type[M], asked: Json) -> M:
    """A message from a request in REST's shape. Raises BadInput for a key that the message does not have."""
    try:
        return ParseDict({key: value for key, value in asked.items() if value is not None}, kind())
    except ParseError as error:
        raise BadInput(f"This request cannot be sent over gRPC: {error}.") from error


def to_json(message: Message) -> Json:
    """The message in REST's shape. Whole numbers are ints again where the message had only doubles (Struct)."""
    return {key: _whole(value) for key, value in _dict(message).items()}


def given(message: Message) -> Json:
    """The fields that were set, as JSON. Raises BadInput for numbers that JSON does not have."""
    try:
        shown: Json = MessageToDict(message, preserving_proto_field_name=True)
    except (SerializeToJsonError, ValueError) as error:  # protobuf 5 raises the one, 7 the other
        raise BadInput(f"This request is not JSON: {error}.") from error
    return shown


def plain(struct: Struct) -> Json:
    """A Struct as JSON, with whole numbers as ints. Raises as `given`."""
    return {key: _whole(value) for key, value in given(struct).items()}


def _dict(message: Message) -> Json:
    shown: Json = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return shown


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_whole(item) for item in value]
    return value
