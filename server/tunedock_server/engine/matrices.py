"""Adapters in host memory: the bytes of a file as they are, and a table that says where in them each module's matrices lie.

Nothing is rearranged: A `[rank, in]` and B `[out, rank]` are computed from where the file has them, whose pages may be mapped.
Files of one recipe (the same base, rank and modules) have the same header and config, so that a table is found once for all
of them and moved by the address of the data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from . import kernel
from .layers import Layers

Table = np.ndarray[Any, np.dtype[np.void]]
Pair = tuple[torch.Tensor, torch.Tensor, float]


class Weights(Protocol):
    """Of one module: lora_a `[r, in]`, lora_b `[out, r]`."""

    @property
    def lora_a(self) -> torch.Tensor: ...
    @property
    def lora_b(self) -> torch.Tensor: ...
    @property
    def scaling(self) -> float: ...


@dataclass(frozen=True, eq=False)
class HostAdapter:
    """`table`: of kernel.PAIR, one for each module of the model; rank 0 where the adapter leaves a module alone. `memory` holds
    what it points to, in elements of its dtype."""

    layers: Layers
    table: Table
    memory: torch.Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.memory.dtype

    @cached_property
    def rank(self) -> int:
        """The largest of its modules."""
        return int(self.table["rank"].max())

    @cached_property
    def pairs(self) -> list[Pair | None]:
        """A, B and the scaling of each module, as views: for torch operators."""
        return [self._pair(row, *shape) for row, shape in zip(self.table, self.layers.shapes(), strict=True)]

    def _pair(self, row: Any, inner: int, width: int) -> Pair | None:
        rank = int(row["rank"])
        if not rank:
            return None
        a = self._matrix(int(row["a"]), rank, inner)
        return a, self._matrix(int(row["b"]), width, rank), float(row["scale"])

    def _matrix(self, address: int, rows: int, columns: int) -> torch.Tensor:
        start = (address - self.memory.data_ptr()) // self.memory.itemsize
        return self.memory[start : start + rows * columns].view(rows, columns)

    def is_finite(self) -> bool:
        """False when it holds NaN or infinity, both of which smallest and largest show: 25 times faster than `isfinite`."""
        return all(math.isfinite(bound) for bound in torch.aminmax(self.memory))


@dataclass(frozen=True, eq=False)
class Recipe:
    """Where matrices lie in the data of a file whose elements are all of `source`; adapters have them in `target`.

    `table` has counts of elements from the begin of the data instead of addresses.
    """

    layers: Layers
    table: Table
    source: torch.dtype
    target: torch.dtype

    def adapter(self, data: torch.Tensor) -> HostAdapter:
        """`data`: the file's, in bytes. Copied only to convert it."""
        memory = data[: len(data) // self.source.itemsize * self.source.itemsize].view(self.source).to(self.target)
        return HostAdapter(self.layers, moved(self.table, memory.itemsize, memory.data_ptr()), memory)


def moved(table: Table, scale: int, base: int) -> Table:
    """The same table with `base + scale * offset` for each of its offsets."""
    there = table.copy()
    for side in ("a", "b"):
        there[side] = there[side] * np.uint64(scale) + np.uint64(base)
    return there


@dataclass(frozen=True)
class Placement:
    """`places` maps a module's name to its number in `layers`. `accepted`: dtypes that can be computed with as they are, the
    engine's own first; others are converted to that."""

    layers: Layers
    places: Mapping[str, int]
    accepted: tuple[torch.dtype, ...]

    def recipe(self, weights: Mapping[str, Weights], data: torch.Tensor) -> Recipe | None:
        """For all files like the one whose `data` these are views of. None when its elements are of several dtypes."""
        dtypes = {tensor.dtype for item in weights.values() for tensor in (item.lora_a, item.lora_b)}
        if len(dtypes) != 1:
            return None
        (source,) = dtypes
        table = self._table(weights)
        served = table["rank"] > 0
        for side in ("a", "b"):
            offsets = table[side] - np.uint64(data.data_ptr())  # what lies before it wraps around
            if (offsets[served] > data.nbytes).any():
                return None
            table[side] = np.where(served, offsets // np.uint64(source.itemsize), 0)
        return Recipe(self.layers, table, source, source if source in self.accepted else self.accepted[0])

    def copied(self, weights: Mapping[str, Weights]) -> HostAdapter:
        """Whatever dtypes they have, in memory of its own."""
        tensors = [tensor for item in weights.values() for tensor in (item.lora_a, item.lora_b)]
        memory = torch.cat([tensor.reshape(-1).to(self.accepted[0]) for tensor in tensors])
        parts = iter(memory.split([tensor.numel() for tensor in tensors]))
        there = {
            name: _Copied(next(parts).view(item.lora_a.shape), next(parts).view(item.lora_b.shape), item.scaling)
            for name, item in weights.items()
        }
        return HostAdapter(self.layers, self._table(there), memory)

    def _table(self, weights: Mapping[str, Weights]) -> Table:
        """With addresses."""
        table = np.zeros(self.layers.num_modules, kernel.PAIR)
        for name, item in weights.items():
            rank = item.lora_a.shape[0]
            table[self.places[name]] = (item.lora_a.data_ptr(), item.lora_b.data_ptr(), rank, item.scaling)
        return table


@dataclass(frozen=True)
class _Copied:
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    scaling: float
