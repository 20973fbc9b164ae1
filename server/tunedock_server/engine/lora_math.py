"""The arithmetic of multi-LoRA on CPU, free of vLLM.

A batch has T rows (tokens); row t uses slot `slots[t]`, or no adapter when that is -1. For one wrapped layer

    y[t] += scale * (h[t] @ B^T),   h[t] = A @ x[t]          with A, B and scale of the adapter in that slot

Shapes: x `[T, in]`, y `[T, out]`, A `[rank, in]`, B `[out, rank]`. A layer of several slices (q, k, v or gate, up) has one pair
for each slice of its output. Only rows that have an adapter are read or written: what stock vLLM 0.32 gets wrong is that index
-1 means the last slot (vllm#48421).

Rows are grouped by slot once a step, and only the adapter's own ranks are computed. All groups of a layer go through one
call of the C kernel, whose sums are float32; operators would spend most of their time on being called. Without it a group
costs two matrix products a slice. h is rounded to the weights' dtype, as vLLM's GPU kernels and PEFT do, unless the kernel
runs on a processor without bfloat16 products.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from . import kernel
from .layers import WrappedLayer
from .matrices import HostAdapter

Rows = slice | torch.Tensor
# What the kernel takes at once of an adapter's rows: x and y of as many stay in a second-level cache.
TILE_ROWS = 48


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one slot: a slice when they lie together, else an index tensor (int64, ascending)."""

    slot: int
    rows: Rows
    count: int


def group_rows(slots: Sequence[int] | np.ndarray) -> tuple[Group, ...]:
    """Groups of the slots that occur, ascending; rows with -1 belong to none."""
    slots_T = np.asarray(slots, dtype=np.int64)
    index = (np.flatnonzero(slots_T == slot) for slot in np.unique(slots_T) if slot >= 0)
    return tuple(Group(int(slots_T[rows[0]]), _rows(rows), len(rows)) for rows in index)


def _rows(index: np.ndarray) -> Rows:
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        return slice(first, last + 1)
    return torch.from_numpy(index)


@dataclass(slots=True)
class KernelGroups:
    """The groups of a step as the C kernel's arrays, all of adapters of one dtype; keeps their memory until the next step."""

    dtype: torch.dtype
    rows: int
    max_rank: int
    native: kernel.Batch
    _kept: tuple[list[np.ndarray], list[HostAdapter]] = field(repr=False)

    @classmethod
    def of(cls, groups: Sequence[Group], adapters: Mapping[int, HostAdapter]) -> list[KernelGroups]:
        """One for each dtype. Groups of slots without an adapter (vLLM's warm-up) are left out."""
        served = [(group, adapters[group.slot]) for group in groups if group.slot in adapters]
        dtypes = dict.fromkeys(adapter.dtype for _, adapter in served)
        return [cls._of_one([pair for pair in served if pair[1].dtype == dtype]) for dtype in dtypes]

    @classmethod
    def _of_one(cls, served: list[tuple[Group, HostAdapter]]) -> KernelGroups:
        tiles = [(tile, adapter) for group, adapter in served for tile in _tiles(_index(group))]
        index = [tile for tile, _ in tiles]
        adapters = [adapter for _, adapter in tiles]
        arrays = [
            np.asarray([adapter.table.ctypes.data for adapter in adapters], dtype=np.uint64),
            np.asarray([0, *np.cumsum([len(rows) for rows in index])], dtype=np.int32),
            np.concatenate(index).astype(np.int32),
        ]
        max_rank = max(adapter.rank for adapter in adapters)
        native = kernel.Batch(len(tiles), max_rank, len(tiles) > len(served), *(array.ctypes.data for array in arrays))
        return cls(adapters[0].dtype, len(arrays[2]), max_rank, native, (arrays, adapters))


def _index(group: Group) -> np.ndarray:
    if isinstance(group.rows, slice):
        return np.arange(group.rows.start, group.rows.stop)
    return group.rows.numpy()


def _tiles(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[first : first + TILE_ROWS] for first in range(0, len(rows), TILE_ROWS)]


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a_slices: Sequence[torch.Tensor],
    b_slices: Sequence[torch.Tensor],
    output_slices: Sequence[int],
    groups: Sequence[Group],
    scale: float = 1.0,
) -> None:
    """Adds the adapters' part to `y` in place, for vLLM's slots: a `[slots, 1, rank, in]` and b `[slots, 1, out, rank]`."""
    for group in groups:
        x_g, y_g = _take(x, group.rows), _take(y, group.rows)
        offset = 0
        for a, b, width in zip(a_slices, b_slices, output_slices, strict=True):
            _accumulate(y_g[:, offset : offset + width], x_g @ a[group.slot, 0].t(), b[group.slot, 0], scale)
            offset += width
        _put(y, group.rows, y_g)


def add_adapters(
    y: torch.Tensor,
    x: torch.Tensor,
    layer: WrappedLayer,
    groups: Sequence[Group],
    adapters: Mapping[int, HostAdapter],
    scale: float,
) -> None:
    """The same for adapters in host memory."""
    for group in groups:
        adapter = adapters.get(group.slot)
        if adapter is None:
            continue
        x_g, y_g = _take(x, group.rows), _take(y, group.rows)
        for number, (start, end) in enumerate(layer.columns(), layer.first):
            if (pair := adapter.pairs[number]) is not None:
                a, b, scaling = pair
                _accumulate(y_g[:, start:end], x_g @ a.to(x.dtype).t(), b.to(x.dtype), scale * scaling)
        _put(y, group.rows, y_g)


def expand(y: torch.Tensor, h: torch.Tensor, b: torch.Tensor, offset: int, groups: Sequence[Group]) -> None:
    """`y[rows, offset : offset + out] += h[rows] @ b[slot].T` for a shrink result `h [T, R]` that is already there."""
    for group in groups:
        y_g = _take(y, group.rows)
        width = min(b.shape[-2], y.shape[-1] - offset)
        h_g = _take(h, group.rows)[:, : b.shape[-1]]
        _accumulate(y_g[:, offset : offset + width], h_g, b[group.slot, 0, :width], 1.0)
        _put(y, group.rows, y_g)


def _accumulate(y: torch.Tensor, h: torch.Tensor, b: torch.Tensor, scale: float) -> None:
    """y += scale * h @ b.T"""
    h = h.to(b.dtype)
    if y.dtype == h.dtype:
        torch.addmm(y, h, b.t(), alpha=scale, out=y)
    else:
        y += (h @ b.t()).to(y.dtype) * scale


def _take(tensor: torch.Tensor, rows: Rows) -> torch.Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def _put(tensor: torch.Tensor, rows: Rows, values: torch.Tensor) -> None:
    if not isinstance(rows, slice):
        tensor.index_copy_(0, rows, values)
