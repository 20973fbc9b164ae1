"""Reads the header of a safetensors file ourselves, before any library opens it.

The library's parser is robust, yet it accepts duplicate keys, `[0, 2^40]` shapes, a megabyte of metadata and names such
as `../../x`. Everything is bounded here first. Layout: 8 bytes little-endian header length, JSON header, tensor data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from tunedock_api.errors import Rejected

from .strict_json import loads_object

ITEM_BYTES: Mapping[str, int] = {"F32": 4, "F16": 2, "BF16": 2}
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class HeaderLimits:
    """Bounds of an adapter file's header."""

    header_bytes: int = 16 * 2**20
    num_tensors: int = 65_536
    metadata_bytes: int = 64 * 2**10
    name_chars: int = 512


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. `start` and `end` are byte offsets from the begin of the data section."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """`tensors` lie back to back in this order, from `data_start` to the end of the file."""

    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, str]
    data_start: int


def read_header(stream: BinaryIO, file_bytes: int, limits: HeaderLimits | None = None) -> Header:
    """Reads and checks the header of `stream`, positioned at its begin; `file_bytes` is the file's real size.

    Raises Rejected with the first rule that the file breaks.
    """
    limits = limits or HeaderLimits()
    raw = read_header_bytes(stream, file_bytes, limits.header_bytes)
    entries = loads_object(raw, "The safetensors header")
    metadata = _metadata(entries.pop("__metadata__", {}), limits)
    if not entries:
        raise Rejected("The safetensors file holds no tensors.")
    if len(entries) > limits.num_tensors:
        raise Rejected(f"The safetensors file holds {len(entries)} tensors; at most {limits.num_tensors} are taken.")
    tensors = sorted((_tensor(name, entry, limits) for name, entry in entries.items()), key=lambda t: (t.start, t.end))
    data_start = _LENGTH_BYTES + len(raw)
    _check_contiguous(tensors, file_bytes - data_start)
    return Header(tuple(tensors), metadata, data_start)


def read_header_bytes(stream: BinaryIO, file_bytes: int, max_bytes: int) -> bytes:
    """The JSON part of the header. Raises Rejected when its length is not plausible; never reads more than `max_bytes`."""
    prefix = stream.read(_LENGTH_BYTES)
    if len(prefix) < _LENGTH_BYTES:
        raise Rejected("The file is too short to be a safetensors file.")
    length = int.from_bytes(prefix, "little")
    if length > max_bytes or length > file_bytes - _LENGTH_BYTES:
        raise Rejected(
            f"The safetensors header claims {length} bytes; the file has {file_bytes} and at most {max_bytes} are taken. "
            "Only safetensors files are accepted, no pickles and no archives."
        )
    raw = stream.read(length)
    if len(raw) < length or not raw.startswith(b"{"):
        raise Rejected("The safetensors header is torn or is not a JSON object.")
    return raw


def _metadata(value: Any, limits: HeaderLimits) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise Rejected("The safetensors __metadata__ must map strings to strings.")
    size = sum(len(key) + len(item) for key, item in value.items())
    if size > limits.metadata_bytes:
        raise Rejected(
            f"The safetensors __metadata__ has {size} characters; at most {limits.metadata_bytes} are taken."
        )
    return value


def _tensor(name: str, entry: Any, limits: HeaderLimits) -> TensorInfo:
    if len(name) > limits.name_chars:
        raise Rejected(
            f"The tensor name {name[:60]!r}… has {len(name)} characters; at most {limits.name_chars} are taken."
        )
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise Rejected(f"Tensor {name!r}: the header entry must have exactly dtype, shape and data_offsets.")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise Rejected(f"Tensor {name!r}: dtype {str(dtype)[:20]!r} is not served; use F32, F16 or BF16.")
    shape = _dimensions(name, entry["shape"])
    start, end = _offsets(name, entry["data_offsets"])
    if end - start != prod(shape) * ITEM_BYTES[dtype]:
        raise Rejected(f"Tensor {name!r}: {end - start} bytes of data do not fit shape {list(shape)} of {dtype}.")
    return TensorInfo(name, dtype, shape, start, end)


def _dimensions(name: str, value: Any) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > 4 or not all(_is_count(item) and 0 < item < 2**31 for item in value):
        raise Rejected(f"Tensor {name!r}: the shape must be at most 4 positive dimensions.")
    return tuple(value)


def _offsets(name: str, value: Any) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(_is_count(item) and item >= 0 for item in value):
        raise Rejected(f"Tensor {name!r}: data_offsets must be two byte offsets.")
    return value[0], value[1]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_contiguous(tensors: list[TensorInfo], data_bytes: int) -> None:
    position = 0
    for tensor in tensors:
        if tensor.start != position:
            raise Rejected(
                f"Tensor {tensor.name!r}: its data begins at {tensor.start}, expected {position} (overlap or gap)."
            )
        position = tensor.end
    if position != data_bytes:
        raise Rejected(f"The tensors cover {position} bytes, but the file holds {data_bytes} bytes of data.")
