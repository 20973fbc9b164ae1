"""Where the adapters of one wrapped layer live on CPU, and adapters packed in the same shape.

vLLM keeps one A and one B tensor a slice, B as `[out, rank]`. Here the slices of a layer lie together and B transposed, so
that a step needs one shrink a layer, reads B along its rows, and a load is two copies a layer. vLLM's own tensors become
views of these, with the shapes that it expects.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from . import kernel


@dataclass(frozen=True, eq=False)
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


@dataclass(frozen=True, eq=False)
class Layout:
    """How adapters of one rank are packed: for each layer a `[slices, rank, in]`, then for each layer b `[rank, out]`."""

    rank: int
    layers: tuple[LayerSlots, ...]

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        shapes: list[tuple[int, ...]] = [(len(layer.widths), self.rank, layer.inner) for layer in self.layers]
        return shapes + [(self.rank, layer.offsets[-1]) for layer in self.layers]

    @cached_property
    def starts(self) -> list[int]:
        """Of each tensor in the memory of a packed adapter, and the end of the last."""
        return [0, *accumulate(math.prod(shape) for shape in self.shapes)]

    @cached_property
    def moves(self) -> tuple[Any, Any]:
        """For the kernel: pieces from offsets in packed memory to slot 0, and the bytes from there to the next slot."""
        pieces, steps = [], []
        for tensor, start, length in self._parts():
            pieces.append((tensor.itemsize * start, tensor.data_ptr(), 1, length, length, 1.0, False, False))
            steps.append(tensor.itemsize * tensor.stride(0))
        return np.array(pieces, kernel.PIECE), np.array(steps, "u8")

    def _parts(self) -> Iterator[tuple[torch.Tensor, int, int]]:
        """What lies together both in a slot and packed: where of all slots, where packed, how many elements."""
        for layer, start in zip(self.layers, self.starts, strict=False):
            length = self.rank * layer.inner
            for index in range(len(layer.widths)):
                yield layer.a[:, index], start + index * length, length
        for layer, start in zip(self.layers, self.starts[len(self.layers) :], strict=False):
            yield layer.b, start, self.rank * layer.offsets[-1]


@dataclass(frozen=True)
class PackedAdapter:
    """One adapter in host memory, ready to be copied into a slot."""

    layout: Layout
    memory: torch.Tensor

    @classmethod
    def zeros(cls, layout: Layout) -> PackedAdapter:
        return cls(layout, torch.zeros(layout.starts[-1], dtype=layout.layers[0].a.dtype))

    @property
    def rank(self) -> int:
        return self.layout.rank

    @cached_property
    def a(self) -> tuple[torch.Tensor, ...]:
        """Views of `memory`, one for each layer."""
        return self._views()[: len(self.layout.layers)]

    @cached_property
    def b(self) -> tuple[torch.Tensor, ...]:
        return self._views()[len(self.layout.layers) :]

    def _views(self) -> tuple[torch.Tensor, ...]:
        parts = self.memory.split([math.prod(shape) for shape in self.layout.shapes])
        return tuple(part.view(shape) for part, shape in zip(parts, self.layout.shapes, strict=True))

    def is_finite(self) -> bool:
        """False when it holds NaN or infinity, both of which smallest and largest show: 25 times faster than `isfinite`."""
        return all(math.isfinite(bound) for bound in torch.aminmax(self.memory))

    def copy_into(self, slot: int) -> None:
        """One call for all layers. Ranks of the slot beyond `rank` keep old values; nobody reads them."""
        if kernel.library() is not None and self.memory.dtype == torch.bfloat16:
            pieces, steps = self.layout.moves
            pieces = pieces.copy()
            pieces["source"] += self.memory.data_ptr()
            pieces["target"] += slot * steps
            kernel.pack(pieces)
            return
        targets = [layer.a[slot, :, : self.rank] for layer in self.layout.layers]
        targets += [layer.b[slot, : self.rank] for layer in self.layout.layers]
        torch._foreach_copy_(targets, [*self.a, *self.b])
