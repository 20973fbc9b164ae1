"""The layers that vLLM's LoRA manager has wrapped, as ours: found once, when the model is loaded.

Where all of them are plain linear layers, adapters are computed from their files and vLLM's slots hold nothing: its tensors keep
their shapes and lose their memory. Where an embedding, a head or a shard is wrapped as well, vLLM fills its slots as usual and
the kernel reads those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from . import kernel
from .layers import Layers, WrappedLayer
from .matrices import HostAdapter

Stacked = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]
"""vLLM's slots of one layer, for each slice a `[slots, 1, max_rank, in]` and a `[slots, 1, out, max_rank]`."""


@dataclass(frozen=True)
class ServedLayers:
    """`accepted`: dtypes of adapters that can be computed with as they are, the engine's own first."""

    all: Layers
    by_name: Mapping[str, WrappedLayer]
    accepted: tuple[torch.dtype, ...]


def adopt(manager: Any) -> ServedLayers | None:
    """Tells the manager's wrappers of its layers. None where vLLM fills the slots."""
    plain = {name: module for name, module in manager.modules.items() if _is_plain_linear(module)}
    modules = list({id(module): module for module in plain.values()}.values())
    layers = Layers.of([(module.lora_a_stacked[0].shape[-1], tuple(module.output_slices)) for module in modules])
    only = bool(plain) and len(plain) == len(manager.modules)
    if only:
        for module in modules:
            module.lora_a_stacked, module.lora_b_stacked = map(_hollow, (module.lora_a_stacked, module.lora_b_stacked))
    slots = [(module.lora_a_stacked, module.lora_b_stacked) for module in modules]
    for wrapper in manager.punica_wrapper_mapping.values():
        if hasattr(wrapper, "use_layers"):
            wrapper.use_layers(layers, manager.lora_config.lora_dtype, slots, hollow=only)
    if not only:
        return None
    layer_of = {id(module): layer for module, layer in zip(modules, layers.layers, strict=True)}
    names = {name: layer_of[id(module)] for name, module in plain.items()}
    return ServedLayers(layers, names, accepted(manager.lora_config.lora_dtype))


def accepted(dtype: torch.dtype) -> tuple[torch.dtype, ...]:
    """For an engine of `dtype`: without a kernel only that."""
    name = str(dtype).removeprefix("torch.")
    found = [getattr(torch, weights) for weights in kernel.COMPUTES.get(name, ()) if kernel.function(name, weights)]
    return tuple(dict.fromkeys((dtype, *found)))


def in_slots(layers: Layers, slots: Sequence[Stacked]) -> dict[int, HostAdapter]:
    """What lies in vLLM's slots, as adapters of the largest rank whose contents change under us."""
    if not slots:
        return {}
    first = slots[0][0][0]
    return {slot: HostAdapter(layers, _table(slots, slot), first) for slot in range(first.shape[0])}


def _table(slots: Sequence[Stacked], slot: int) -> Any:
    rows = [
        (a[slot].data_ptr(), b[slot].data_ptr(), a.shape[-2], 1.0)
        for a_slices, b_slices in slots
        for a, b in zip(a_slices, b_slices, strict=True)
    ]
    return np.array(rows, kernel.PAIR)


def _is_plain_linear(module: Any) -> bool:
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    return (
        isinstance(module, BaseLinearLayerWithLoRA)
        and module.tp_size == 1
        and isinstance(module.lora_a_stacked, tuple)
        and all(tensor.dim() == 4 for tensor in (*module.lora_a_stacked, *module.lora_b_stacked))
        and len(module.lora_a_stacked) == len(module.output_slices) <= kernel.MAX_SLICES
    )


def _hollow(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The same shapes, each over one element of its own: vLLM tells layers apart by their addresses, as we do."""
    return tuple(torch.zeros((1,) * tensor.dim(), dtype=tensor.dtype).expand(tensor.shape) for tensor in tensors)
