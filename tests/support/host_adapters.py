"""Adapters in host memory with NaN right around each matrix, and their arithmetic in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate

import numpy as np
import torch
from tunedock_server.engine import kernel
from tunedock_server.engine.layers import Layers, WrappedLayer
from tunedock_server.engine.matrices import HostAdapter

GAP = 67  # no multiple of anything, so that matrices begin where no vector would like to


def host_adapter(layers: Layers, ranks: Sequence[int], dtype: torch.dtype, seed: int) -> HostAdapter:
    """Random; `ranks` has one for each module, 0 where it is left alone. Each module has a scaling of its own."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [rank * part for rank, shape in zip(ranks, layers.shapes(), strict=True) for part in shape]
    starts = list(accumulate((size + GAP for size in sizes), initial=GAP))
    memory = torch.full((starts[-1],), float("nan"), dtype=dtype)
    for start, size in zip(starts, sizes, strict=False):
        memory[start : start + size] = torch.randn(size, generator=generator).to(dtype)
    table = np.zeros(layers.num_modules, kernel.PAIR)
    for number, rank in enumerate(ranks):
        a, b = (memory[start:].data_ptr() for start in starts[2 * number : 2 * number + 2])
        table[number] = (a, b, rank, 0.5 + 0.25 * number)
    return HostAdapter(layers, table, memory)


def expected(
    y: torch.Tensor,
    x: torch.Tensor,
    layer: WrappedLayer,
    slots: Sequence[int],
    adapters: Mapping[int, HostAdapter],
    scale: float = 1.0,
) -> torch.Tensor:
    """What the layer's output has to be, in float64."""
    out = y.double()
    for row, slot in enumerate(slots):
        if slot not in adapters:
            continue
        for number, (start, end) in enumerate(layer.columns(), layer.first):
            if (pair := adapters[slot].pairs[number]) is not None:
                a, b, scaling = pair
                out[row, start:end] += scale * scaling * (b.double() @ (a.double() @ x[row].double()))
    return out
