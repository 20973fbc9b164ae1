"""The LoRA kernel alone: what adapters add to the time of the base model's projections.

    python -m benchmarks.lora_kernel [--quick] [--json FILE]

The projections of SmolLM2-135M by `torch.nn.functional.linear`, with and without the kernel behind each, in turns, as the engine
calls them: both threads, bound, in the dtype that TuneDock chooses for this processor, rank 16 in bfloat16. What the kernel
computes is compared with torch operators first. Needs two idle cores and no model; two minutes on a slow processor.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch.nn.functional import linear
from tunedock_registry import processor
from tunedock_server.engine import kernel
from tunedock_server.engine.affinity import bind_compute_threads
from tunedock_server.engine.layers import Layers, WrappedLayer
from tunedock_server.engine.lora_math import KernelGroups, add_adapters, group_rows
from tunedock_server.engine.matrices import HostAdapter

from .figures import Figure, Report, bootstrap

HIDDEN, KEYS, WIDE, NUM_LAYERS, RANK = 576, 192, 1536, 30, 16
SHAPES = ((HIDDEN, (HIDDEN, KEYS, KEYS)), (HIDDEN, (HIDDEN,)), (HIDDEN, (WIDE, WIDE)), (WIDE, (HIDDEN,)))
# rows and distinct adapters: decode steps of 32 streams, then prefills.
BATCHES = ((32, 1), (32, 3), (32, 32), (256, 1), (512, 3), (2048, 3))
MAX_ERROR = 0.02  # of the largest element, in bfloat16


@dataclass
class Step:
    """One pass over all projections of the model with `rows` rows, of `num_adapters` adapters in turn."""

    rows: int
    num_adapters: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        self.layers = Layers.of(SHAPES * NUM_LAYERS)
        self.adapters = {slot: _adapter(self.layers, slot) for slot in range(self.num_adapters)}
        slots = np.arange(self.rows) % self.num_adapters
        # Tokens of a prompt lie together, the streams of a decode step lie as they came.
        self.groups = group_rows(np.sort(slots) if self.rows > 64 else slots)
        self.batches = KernelGroups.of(self.groups, self.adapters)
        self.weights = [
            (torch.randn(sum(layer.widths), layer.inner) / 8).to(self.dtype) for layer in self.layers.layers
        ]
        self.inputs = {inner: torch.randn(self.rows, inner).to(self.dtype) for inner in (HIDDEN, WIDE)}
        self.scratch = torch.empty(self.rows * RANK * kernel.MAX_SLICES)

    def base_s(self) -> float:
        began = time.perf_counter()
        for layer, weight in zip(self.layers.layers, self.weights, strict=True):
            linear(self.inputs[layer.inner], weight)
        return time.perf_counter() - began

    def kernel_s(self) -> float:
        """What the kernel takes of a pass in which it works on what each projection has just written."""
        spent_s = 0.0
        for layer, weight in zip(self.layers.layers, self.weights, strict=True):
            y = linear(self.inputs[layer.inner], weight)
            began = time.perf_counter()
            self._add(layer, y)
            spent_s += time.perf_counter() - began
        return spent_s

    def _add(self, layer: WrappedLayer, y: torch.Tensor) -> None:
        x = self.inputs[layer.inner]
        for batch in self.batches:
            run = kernel.function(*(str(dtype).removeprefix("torch.") for dtype in (self.dtype, batch.dtype)))
            if run is None:
                raise SystemExit(
                    "There is no kernel here: it needs a C compiler, and prints why it could not be built."
                )
            kernel.add(run, layer.native, batch.native, x, y, 1.0, self.scratch)

    def check(self) -> None:
        """Every kind of layer against torch operators."""
        for layer in self.layers.layers[: len(SHAPES)]:
            x = self.inputs[layer.inner]
            y = torch.zeros(self.rows, sum(layer.widths), dtype=self.dtype)
            expected = torch.zeros_like(y)
            self._add(layer, y)
            add_adapters(expected, x, layer, self.groups, self.adapters, 1.0)
            error = float((y - expected).abs().max() / expected.abs().max())
            assert error < MAX_ERROR, f"{self.rows} rows, {self.num_adapters} adapters: off by {error:.3f}"


def _adapter(layers: Layers, seed: int) -> HostAdapter:
    """Random, laid out as a file has it."""
    sizes = [(RANK * inner, RANK * width) for inner, width in layers.shapes()]
    noise = torch.randn(sum(map(sum, sizes)), generator=torch.Generator().manual_seed(seed))
    memory = (noise / 8).to(torch.bfloat16)
    table, at = np.zeros(len(sizes), kernel.PAIR), memory.data_ptr()
    for row, (a, b) in zip(table, sizes, strict=True):
        row["a"], row["b"], row["rank"], row["scale"] = at, at + a * memory.itemsize, RANK, 1.0
        at += (a + b) * memory.itemsize
    return HostAdapter(layers, table, memory)


def measure(rows: int, num_adapters: int, rounds: int) -> Figure:
    step = Step(rows, num_adapters, torch.bfloat16 if processor.multiplies_bfloat16() else torch.float32)
    step.check()
    pairs = [(step.kernel_s(), step.base_s()) for _ in range(rounds)]
    least_ms, base_ms = (1000 * min(times) for times in zip(*pairs, strict=True))
    return Figure(
        f"{rows} rows, {num_adapters} adapters: kernel / projections", least_ms / base_ms, "x",
        interval=bootstrap([mine / base for mine, base in pairs]), num_samples=rounds,
        note=f"{least_ms:.1f} of {base_ms:.0f} ms",
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.lora_kernel", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few rounds, two batches")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    bind_compute_threads()
    report = Report("The LoRA kernel beside the base's projections (least of all rounds)")
    with torch.inference_mode():
        for rows, num_adapters in BATCHES[1:4:2] if options.quick else BATCHES:
            rounds = 3 if options.quick else 5 if rows > 256 else 20
            report.add(measure(rows, num_adapters, rounds))
    return report.finish(Console(stderr=True), options.json)


if __name__ == "__main__":
    sys.exit(main())
