"""The linear layers of a model that can carry adapters, in numbers that the kernel understands."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from . import kernel


@dataclass(frozen=True, eq=False)
class WrappedLayer:
    """x `[T, inner]` -> y `[T, sum(widths)]`. Each slice of y belongs to a module (q, k, v or gate, up); slice i owns the columns
    `offsets[i:i + 2]`, and its module is number `first + i` of the model."""

    inner: int
    widths: tuple[int, ...]
    first: int
    offsets: tuple[int, ...] = field(init=False)
    native: kernel.Layer = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "offsets", (0, *accumulate(self.widths)))
        padded = (*self.offsets, *[self.offsets[-1]] * (kernel.MAX_SLICES - len(self.widths)))
        native = kernel.Layer(self.inner, len(self.widths), self.first, (ctypes.c_int64 * len(padded))(*padded))
        object.__setattr__(self, "native", native)

    def columns(self) -> list[tuple[int, int]]:
        return list(zip(self.offsets, self.offsets[1:], strict=False))


@dataclass(frozen=True, eq=False)
class Layers:
    """All of a model, in order."""

    layers: tuple[WrappedLayer, ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[int, tuple[int, ...]]]) -> Layers:
        """`shapes`: inner and widths of each layer."""
        firsts = accumulate((len(widths) for _, widths in shapes), initial=0)
        return cls(tuple(WrappedLayer(*shape, first) for shape, first in zip(shapes, firsts, strict=False)))

    @property
    def num_modules(self) -> int:
        last = self.layers[-1]
        return last.first + len(last.widths)

    def shapes(self) -> list[tuple[int, int]]:
        """Inner and width of each module."""
        return [(layer.inner, width) for layer in self.layers for width in layer.widths]
