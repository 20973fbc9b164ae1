"""Where the adapters of one wrapped layer live on CPU, and adapters packed in the same shape.

vLLM keeps one A and one B tensor a slice, B as `[out, rank]`. Here the slices of a layer lie together and B transposed, so
that a step needs one shrink a layer, reads B along its rows, and a load is two copies a layer. vLLM's own tensors become
views of these, with the shapes that it expects.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch

from . import kernel


@dataclass(frozen=True)
class LayerSlots:
    """a `[slots, slices, max_rank, in]`, b `[slots, max_rank, out]`; slice i owns the columns `offsets[i:i + 2]` of b."""

    a: torch.Tensor
    b: torch.Tensor
    widths: tuple[int, ...]
    offsets: tuple[int, ...] = field(init=False)
    native: kernel.Layer = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", (0, *accumulate(self.widths)))
        object.__setattr__(self, "native", self._native())

    @classmethod
    def empty(cls, slots: int, max_rank: int, inner: int, widths: Sequence[int], dtype: torch.dtype) -> LayerSlots:
        a = torch.zeros(slots, len(widths), max_rank, inner, dtype=dtype)
        return cls(a, torch.zeros(slots, max_rank, sum(widths), dtype=dtype), tuple(widths))

    @property
    def max_rank(self) -> int:
        return int(self.b.shape[1])

    @property
    def inner(self) -> int:
        return int(self.a.shape[-1])

    def a_views(self) -> tuple[torch.Tensor, ...]:
        """As vLLM wants them: one `[slots, 1, max_rank, in]` a slice."""
        return tuple(self.a[:, index : index + 1] for index in range(len(self.widths)))

    def b_views(self) -> tuple[torch.Tensor, ...]:
        """As vLLM wants them: one `[slots, 1, out, max_rank]` a slice."""
        return tuple(self.b[:, None, :, start:end].transpose(-1, -2) for start, end in self.columns())

    def columns(self) -> list[tuple[int, int]]:
        return list(zip(self.offsets, self.offsets[1:], strict=False))

    def _native(self) -> kernel.Layer:
        offset = (ctypes.c_int64 * 8)(*self.offsets, *([self.offsets[-1]] * (8 - len(self.offsets))))
        return kernel.Layer(
            self.a.data_ptr(), self.b.data_ptr(), self.inner, self.b.shape[-1], len(self.widths), self.max_rank, offset
        )


@dataclass(frozen=True)
class PackedAdapter:
    """One adapter in host memory, ready to be copied into a slot: for each layer a `[slices, rank, in]`, b `[rank, out]`.

    `a` and `b` are views of `memory`.
    """

    rank: int
    layers: tuple[LayerSlots, ...]
    memory: torch.Tensor
    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]

    @classmethod
    def zeros(cls, rank: int, layers: tuple[LayerSlots, ...]) -> PackedAdapter:
        shapes: list[tuple[int, ...]] = [(len(layer.widths), rank, layer.inner) for layer in layers]
        shapes += [(rank, layer.offsets[-1]) for layer in layers]
        memory = torch.zeros(sum(math.prod(shape) for shape in shapes), dtype=layers[0].a.dtype)
        parts = memory.split([math.prod(shape) for shape in shapes])
        views = tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
        return cls(rank, layers, memory, views[: len(layers)], views[len(layers) :])

    def is_finite(self) -> bool:
        """False when it holds NaN or infinity, both of which smallest and largest show: 25 times faster than `isfinite`."""
        return all(math.isfinite(bound) for bound in torch.aminmax(self.memory))

    def copy_into(self, slot: int) -> None:
        """One call for all layers. Ranks of the slot beyond `rank` keep old values; nobody reads them."""
        targets = [layer.a[slot, :, : self.rank] for layer in self.layers]
        targets += [layer.b[slot, : self.rank] for layer in self.layers]
        torch._foreach_copy_(targets, [*self.a, *self.b])


def pack(weights: Mapping[str, Any], places: Mapping[str, tuple[LayerSlots, int]]) -> PackedAdapter:
    """`weights` maps a module to vLLM's layer weights (lora_a `[r, in]`, lora_b `[out, r]`, scaling), `places` to its slice.

    Modules that the adapter leaves alone become zeros; ranks below the largest are padded with zeros.
    """
    rank = max(item.lora_a.shape[0] for item in weights.values())
    packed = PackedAdapter.zeros(rank, tuple({id(layer): layer for layer, _ in places.values()}.values()))
    if kernel.library() is not None and packed.memory.dtype == torch.bfloat16 and _kernel_reads(weights):
        kernel.pack(_pieces(packed, weights, places))
    else:
        _copy(packed, weights, places)
    return packed


def _kernel_reads(weights: Mapping[str, Any]) -> bool:
    tensors = (tensor for item in weights.values() for tensor in (item.lora_a, item.lora_b))
    return all(tensor.dtype in (torch.bfloat16, torch.float32) and tensor.is_contiguous() for tensor in tensors)


def _pieces(
    packed: PackedAdapter, weights: Mapping[str, Any], places: Mapping[str, tuple[LayerSlots, int]]
) -> list[kernel.Piece]:
    """What `_copy` does, as addresses."""
    starts = {
        id(layer): (a.data_ptr(), b.data_ptr()) for layer, a, b in zip(packed.layers, packed.a, packed.b, strict=True)
    }
    pieces: list[kernel.Piece] = []
    size = packed.memory.itemsize
    for name, item in weights.items():
        layer, index = places[name]
        (own, inner), outer = item.lora_a.shape, item.lora_b.shape[0]
        a, b = starts[id(layer)]
        to_a, to_b = a + size * index * packed.rank * inner, b + size * layer.offsets[index]
        wide_a, wide_b = item.lora_a.dtype == torch.float32, item.lora_b.dtype == torch.float32
        pieces.append(kernel.Piece(item.lora_a.data_ptr(), to_a, own, inner, inner, 1.0, wide_a, False))
        width = layer.offsets[-1]
        pieces.append(kernel.Piece(item.lora_b.data_ptr(), to_b, outer, own, width, item.scaling, wide_b, True))
    return pieces


def _copy(packed: PackedAdapter, weights: Mapping[str, Any], places: Mapping[str, tuple[LayerSlots, int]]) -> None:
    a = {id(layer): tensor for layer, tensor in zip(packed.layers, packed.a, strict=True)}
    b = {id(layer): tensor for layer, tensor in zip(packed.layers, packed.b, strict=True)}
    for name, item in weights.items():
        layer, index = places[name]
        start, end = layer.offsets[index : index + 2]
        own = item.lora_a.shape[0]
        a[id(layer)][index, :own].copy_(item.lora_a)
        b[id(layer)][:own, start:end].copy_(item.lora_b.t() if item.scaling == 1 else item.lora_b.t() * item.scaling)
