"""Looks at every value of a LoRA file with numpy alone: finite? any effect? how large is the change of each module?

bfloat16 has no numpy type. Its bits are the upper half of a float32, so a shift widens it exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from tunedock_api.errors import Rejected

from .safetensors_header import Header, TensorInfo

_CHUNK = 1 << 20
_EXPONENT = {"F32": (np.uint32, 0x7F80_0000), "F16": (np.uint16, 0x7C00), "BF16": (np.uint16, 0x7F80)}
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pair:
    """The two matrices of one module: `a` is [rank, in_features], `b` is [out_features, rank]."""

    module: str
    a: TensorInfo
    b: TensorInfo

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def num_parameters(self) -> int:
        return prod(self.a.shape) + prod(self.b.shape)


@dataclass(frozen=True, slots=True)
class ModuleScan:
    """`delta_norm` is the Frobenius norm of `B @ A`, before scaling."""

    effective: bool
    delta_norm: float


def scan_pair(stream: BinaryIO, header: Header, pair: Pair) -> ModuleScan:
    """Reads both matrices. Raises Rejected when a value is NaN or infinite."""
    a = read_tensor(stream, header, pair.a)
    b = read_tensor(stream, header, pair.b)
    effective = bool(a.any()) and bool(b.any())
    return ModuleScan(effective, delta_norm(a, b) if effective else 0.0)


def delta_norm(a: FloatArray, b: FloatArray) -> float:
    """||B A||_F through two rank × rank products: ||B A||_F^2 = sum((B^T B) * (A A^T))."""
    scale_a, scale_b = float(np.abs(a).max()), float(np.abs(b).max())
    gram_a = np.asarray((a / scale_a) @ (a / scale_a).T, np.float64)
    gram_b = np.asarray((b / scale_b).T @ (b / scale_b), np.float64)
    return float(np.sqrt(max(float((gram_a * gram_b).sum()), 0.0))) * scale_a * scale_b


def read_tensor(stream: BinaryIO, header: Header, tensor: TensorInfo) -> FloatArray:
    """The tensor as float32. Raises Rejected for a torn file and for a value that is not finite."""
    stream.seek(header.data_start + tensor.start)
    raw = stream.read(tensor.end - tensor.start)
    if len(raw) != tensor.end - tensor.start:
        raise Rejected(f"Tensor {tensor.name!r}: the file ends inside its data.")
    _check_finite(raw, tensor)
    return _widen(raw, tensor.dtype).reshape(tensor.shape)


def _check_finite(raw: bytes, tensor: TensorInfo) -> None:
    """An all-ones exponent is NaN or infinity in every IEEE format."""
    kind, exponent = _EXPONENT[tensor.dtype]
    bits = np.frombuffer(raw, dtype=kind)
    for begin in range(0, bits.size, _CHUNK):
        bad = (bits[begin : begin + _CHUNK] & kind(exponent)) == exponent
        if bad.any():
            index = begin + int(bad.argmax())
            raise Rejected(f"Tensor {tensor.name!r}: value number {index} is NaN or infinite.")


def _widen(raw: bytes, dtype: str) -> FloatArray:
    if dtype == "F32":
        return np.frombuffer(raw, dtype="<f4")
    if dtype == "F16":
        return np.frombuffer(raw, dtype="<f2").astype(np.float32)
    return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
