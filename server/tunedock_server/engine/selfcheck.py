"""Numeric self-check of the LoRA wrapper that a worker really uses, against plain float64 PyTorch.

Runs in the worker at start: a plugin that did not load is only a log line in vLLM, so we ask and we measure.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from .layers import Layers
from .patches import CPU_WRAPPER
from .wrapped import accepted

SLOTS, RANK, WIDTH, OUT = 3, 8, 72, (48, 40)
# Base rows among the adapters' as in decoding, then a prefill of many rows together.
IDS = (0, 11, 12, 0, 13, 13, 11, 0, 12, *[12] * 64, 0)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
_STOCK_IS = "base-model rows in mixed batches may be wrong, and it is slow"
_log = logging.getLogger("tunedock.engine")


def run(manager: Any) -> dict[str, Any]:
    """`{"wrapper", "ours", "right", "device", "error": worst relative error or -1, "degraded": str}`; "" means all is well.

    On CPU a kernel that fails is left out before the first request. Other platforms keep vLLM's kernels. Raises RuntimeError
    when our wrapper is wrong without the kernel too: nothing that it computed could be trusted.
    """
    wrapper = next(iter(manager._adapter_manager.punica_wrapper_mapping.values()))
    name = f"{type(wrapper).__module__}.{type(wrapper).__qualname__}"
    device = torch.device(manager.device).type
    facts: dict[str, Any] = {
        "wrapper": name,
        "ours": name == CPU_WRAPPER,
        "device": device,
        "error": -1.0,
        "degraded": "",
    }
    if device != "cpu":
        return facts
    dtype = manager.lora_config.lora_dtype
    facts["error"] = max(worst_error(type(wrapper), dtype, weights) for weights in _dtypes(facts["ours"], dtype))
    if not facts["ours"]:
        facts["degraded"] = f"vLLM's own CPU LoRA path is in use: {_STOCK_IS}"
    elif facts["error"] > TOLERANCE[dtype]:
        facts["degraded"] = _mend(manager, type(wrapper), dtype, facts["error"])
    if facts["degraded"]:
        _log.error("LoRA is degraded: %s", facts["degraded"])
    return facts | {"right": not facts["degraded"].endswith(_STOCK_IS)}


def _dtypes(ours: bool, dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    return accepted(dtype) if ours else (dtype,)


def worst_error(
    wrapper_class: type, dtype: torch.dtype, weights: torch.dtype | None = None, use_kernel: bool = True
) -> float:
    """Worst absolute error over all rows, relative to the largest reference value; all slots full. `weights`: the adapters'
    dtype when it is another than that of x and y."""
    from vllm.lora.layers import LoRAMapping

    generator = torch.Generator().manual_seed(7)
    layers = Layers.of([(WIDTH, OUT)])
    shapes = [((SLOTS, 1, RANK, WIDTH), (SLOTS, 1, out, RANK)) for out in OUT]
    a, b = (
        tuple((torch.randn(pair[side], generator=generator) / 8).to(weights or dtype) for pair in shapes)
        for side in (0, 1)
    )
    wrapper = wrapper_class(len(IDS), len(IDS), "cpu")
    if hasattr(wrapper, "use_layers"):
        wrapper.use_layers(layers, dtype, [(a, b)], hollow=False, use_kernel=use_kernel)
    wrapper.update_metadata(LoRAMapping(IDS, IDS, is_prefill=True), [11, 12, 13], SLOTS + 1, 100)
    x = torch.randn(len(IDS), WIDTH, generator=generator).to(dtype)
    y = torch.randn(len(IDS), sum(OUT), generator=generator).to(dtype)
    expected = reference(y, x, a, b, [{11: 0, 12: 1, 13: 2}.get(i, -1) for i in IDS])
    wrapper.add_lora_linear(y, x, a, b, 1.0, OUT)
    return float((y.double() - expected).abs().max() / expected.abs().max())


def reference(
    y: torch.Tensor, x: torch.Tensor, a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...], slots: list[int]
) -> torch.Tensor:
    """The same in float64, row by row: `[T, out]`."""
    expected = y.double()
    for row, slot in enumerate(slots):
        if slot >= 0:
            delta = [
                b_i[slot, 0].double() @ (a_i[slot, 0].double() @ x[row].double()) for a_i, b_i in zip(a, b, strict=True)
            ]
            expected[row] += torch.cat(delta)
    return expected


def _mend(manager: Any, wrapper_class: type, dtype: torch.dtype, error: float) -> str:
    """Falls back to the torch path. Returns what to tell the operator. Raises RuntimeError when that is wrong as well."""
    without = worst_error(wrapper_class, dtype, use_kernel=False)
    if without > TOLERANCE[dtype]:
        raise RuntimeError(f"the CPU LoRA self-check failed with a relative error of {without:.2g}: this machine or build of "
                           "torch computes wrongly")  # fmt: skip
    for wrapper in set(manager._adapter_manager.punica_wrapper_mapping.values()):
        wrapper.use_kernel(False)
    return f"the LoRA kernel failed its self-check (relative error {error:.2g}); the slower torch path is in use"
