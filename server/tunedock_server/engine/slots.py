"""Where the adapters of one wrapped layer live on CPU, and adapters packed in the same shape.

vLLM keeps one A and one B tensor a slice, B as `[out, rank]`. Here the slices of a layer lie together and B transposed, so
that a step needs one shrink a layer, reads B along its rows, and a load is two copies a layer. vLLM's own tensors become
views of these, with the shapes that it expects.
"""

from __future__ import annotations

import ctypes
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
    """One adapter in host memory, ready to be copied into a slot: for each layer a `[slices, rank, in]`, b `[rank, out]`."""

    rank: int
    layers: tuple[LayerSlots, ...]
    a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]

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
    layers = tuple({id(layer): layer for layer, _ in places.values()}.values())
    a = {id(layer): torch.zeros(len(layer.widths), rank, layer.inner, dtype=layer.a.dtype) for layer in layers}
    b = {id(layer): torch.zeros(rank, layer.offsets[-1], dtype=layer.b.dtype) for layer in layers}
    for name, item in weights.items():
        layer, index = places[name]
        start, end = layer.offsets[index : index + 2]
        own = item.lora_a.shape[0]
        a[id(layer)][index, :own].copy_(item.lora_a)
        b[id(layer)][:own, start:end].copy_(item.lora_b.t() if item.scaling == 1 else item.lora_b.t() * item.scaling)
    return PackedAdapter(rank, layers, tuple(a.values()), tuple(b.values()))
