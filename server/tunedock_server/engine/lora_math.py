"""The arithmetic of multi-LoRA on CPU, free of vLLM.

A batch has T rows (tokens); row t uses slot `slots[t]`, or no adapter when that is -1. For one wrapped layer

    y[t] += B[s] @ (A[s] @ x[t]) * scale          with s = slots[t]

Shapes: x `[T, in]`, y `[T, out]`, A `[S, 1, R, in]`, B `[S, 1, out, R]` for S slots of at most R ranks. A packed layer
(q, k, v or gate, up) has one (A, B) pair for each slice of its output. Only rows that have an adapter are read or
written: what stock vLLM 0.32 gets wrong is that index -1 means the last slot (vllm#48421).

Rows are grouped by slot once a step. Each group then costs two matrix products a slice, at the adapter's own rank
instead of R. Products accumulate in float32 (oneDNN does for bfloat16); the intermediate is rounded to the weights'
dtype, as it is in stock vLLM and in PEFT.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

Rows = slice | torch.Tensor


@dataclass(frozen=True, slots=True)
class Group:
    """The rows of one slot: a slice when they lie together, else an index tensor (int64, ascending)."""

    slot: int
    rows: Rows


def group_rows(slots: Sequence[int] | np.ndarray) -> tuple[Group, ...]:
    """Groups of the slots that occur, ascending; rows with -1 belong to none."""
    slots_T = np.asarray(slots, dtype=np.int64)
    return tuple(Group(int(slot), _rows(np.flatnonzero(slots_T == slot))) for slot in np.unique(slots_T) if slot >= 0)


def _rows(index: np.ndarray) -> Rows:
    first, last = int(index[0]), int(index[-1])
    if last - first + 1 == len(index):
        return slice(first, last + 1)
    return torch.from_numpy(index)


def shrink(x: torch.Tensor, a: torch.Tensor, rank: int) -> torch.Tensor:
    """`x [t, in]`, `a [R, in]` -> `[t, rank]`."""
    return x @ a[:rank].t()


def add_lora(
    y: torch.Tensor,
    x: torch.Tensor,
    a_slices: Sequence[torch.Tensor],
    b_slices: Sequence[torch.Tensor],
    output_slices: Sequence[int],
    groups: Sequence[Group],
    ranks: Mapping[int, int],
    scale: float = 1.0,
) -> None:
    """Adds the adapters' part to `y` in place. `ranks` maps a slot to its adapter's rank; absent means all of R."""
    for group in groups:
        rank = ranks.get(group.slot, a_slices[0].shape[-2])
        x_g, y_g = _take(x, group.rows), _take(y, group.rows)
        offset = 0
        for a, b, width in zip(a_slices, b_slices, output_slices, strict=True):
            h = shrink(x_g, a[group.slot, 0], rank).to(b.dtype)
            _accumulate(y_g[:, offset : offset + width], h, b[group.slot, 0], rank, scale)
            offset += width
        _put(y, group.rows, y_g)


def expand(
    y: torch.Tensor,
    h: torch.Tensor,
    b: torch.Tensor,
    offset: int,
    groups: Sequence[Group],
    ranks: Mapping[int, int],
) -> None:
    """`y[rows, offset : offset + out] += h[rows] @ b[slot].T` for a shrink result `h [T, R]` that is already there."""
    for group in groups:
        rank = ranks.get(group.slot, b.shape[-1])
        y_g = _take(y, group.rows)
        h_g = _take(h, group.rows)[:, :rank].to(b.dtype)
        width = min(b.shape[-2], y.shape[-1] - offset)
        _accumulate(y_g[:, offset : offset + width], h_g, b[group.slot, 0, :width], rank, 1.0)
        _put(y, group.rows, y_g)


def _accumulate(y: torch.Tensor, h: torch.Tensor, b: torch.Tensor, rank: int, scale: float) -> None:
    if y.dtype == h.dtype:
        torch.addmm(y, h, b[:, :rank].t(), alpha=scale, out=y)
    else:
        y += (h @ b[:, :rank].t()).to(y.dtype) * scale


def _take(tensor: torch.Tensor, rows: Rows) -> torch.Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def _put(tensor: torch.Tensor, rows: Rows, values: torch.Tensor) -> None:
    if not isinstance(rows, slice):
        tensor.index_copy_(0, rows, values)
