"""The matrices of an adapter file into the shape of the slots.

Files of one recipe (the same base, rank and modules) have the same header and config, so that what goes where is found out
once for all of them: reading such a file is then one copy by the kernel, at addresses that are known.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch

from . import kernel
from .slots import LayerSlots, Layout, PackedAdapter


class Weights(Protocol):
    """Of one module: lora_a `[r, in]`, lora_b `[out, r]`."""

    @property
    def lora_a(self) -> torch.Tensor: ...
    @property
    def lora_b(self) -> torch.Tensor: ...
    @property
    def scaling(self) -> float: ...


@dataclass(frozen=True)
class Recipe:
    """For the kernel: pieces from offsets in a file's data to offsets in the memory of a packed adapter."""

    layout: Layout
    pieces: Any

    def pack(self, data: int) -> PackedAdapter:
        """`data`: the address of what the offsets count from."""
        packed = PackedAdapter.zeros(self.layout)
        pieces = self.pieces.copy()
        pieces["source"] += data
        pieces["target"] += packed.memory.data_ptr()
        kernel.pack(pieces)
        return packed

    def relative(self, data: torch.Tensor) -> Recipe | None:
        """The same for any other data like `data`, which this one's addresses are of. None when some lie elsewhere."""
        begin, end = data.data_ptr(), data.data_ptr() + data.nbytes
        if not ((self.pieces["source"] >= begin) & (self.pieces["source"] <= end)).all():
            return None
        pieces = self.pieces.copy()
        pieces["source"] -= begin
        return replace(self, pieces=pieces)


class Packer:
    """`places` maps a module to its layer and slice. Modules that an adapter leaves alone become zeros; ranks below its
    largest are padded with zeros."""

    def __init__(self, places: Mapping[str, tuple[LayerSlots, int]]) -> None:
        self._places = places
        self._layers = tuple({id(layer): layer for layer, _ in places.values()}.values())
        self._number = {id(layer): number for number, layer in enumerate(self._layers)}
        self._layouts: dict[int, Layout] = {}

    def pack(self, weights: Mapping[str, Weights]) -> PackedAdapter:
        recipe = self.recipe(weights)
        return self._copied(weights) if recipe is None else recipe.pack(0)

    def recipe(self, weights: Mapping[str, Weights]) -> Recipe | None:
        """Its source offsets are the addresses of `weights`. None where the kernel is not there or cannot read them."""
        layout = self._layout(weights)
        if kernel.library() is None or layout.layers[0].a.dtype != torch.bfloat16 or not _kernel_reads(weights):
            return None
        return Recipe(layout, np.array(list(self._pieces(layout, weights)), kernel.PIECE))

    def _layout(self, weights: Mapping[str, Weights]) -> Layout:
        rank = max(item.lora_a.shape[0] for item in weights.values())
        return self._layouts.setdefault(rank, Layout(rank, self._layers))

    def _pieces(self, layout: Layout, weights: Mapping[str, Weights]) -> Iterator[tuple[Any, ...]]:
        """What `_copied` does, as addresses."""
        size = layout.layers[0].a.itemsize
        for name, item in weights.items():
            layer, index = self._places[name]
            number = self._number[id(layer)]
            (own, inner), outer, width = item.lora_a.shape, item.lora_b.shape[0], layer.offsets[-1]
            to_a = size * (layout.starts[number] + index * layout.rank * inner)
            to_b = size * (layout.starts[len(self._layers) + number] + layer.offsets[index])
            wide_a, wide_b = item.lora_a.dtype == torch.float32, item.lora_b.dtype == torch.float32
            yield item.lora_a.data_ptr(), to_a, own, inner, inner, 1.0, wide_a, False
            yield item.lora_b.data_ptr(), to_b, outer, own, width, item.scaling, wide_b, True

    def _copied(self, weights: Mapping[str, Weights]) -> PackedAdapter:
        packed = PackedAdapter.zeros(self._layout(weights))
        for name, item in weights.items():
            layer, index = self._places[name]
            a, b = packed.a[self._number[id(layer)]], packed.b[self._number[id(layer)]]
            start, end = layer.offsets[index : index + 2]
            own = item.lora_a.shape[0]
            a[index, :own].copy_(item.lora_a)
            b[:own, start:end].copy_(item.lora_b.t() if item.scaling == 1 else item.lora_b.t() * item.scaling)
        return packed


def _kernel_reads(weights: Mapping[str, Weights]) -> bool:
    tensors = (tensor for item in weights.values() for tensor in (item.lora_a, item.lora_b))
    return all(tensor.dtype in (torch.bfloat16, torch.float32) and tensor.is_contiguous() for tensor in tensors)
