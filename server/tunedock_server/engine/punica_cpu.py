"""Our LoRA wrapper for CPU: takes the place of vLLM's `PunicaWrapperCPU`, which is wrong for base rows and slow.

vLLM tells the wrapper once a step which slot each token and each sampled row uses; its wrapped layers then call the
`add_*` methods. The arithmetic is in `lora_math`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from . import kernel, lora_math
from .layers import Layers, WrappedLayer
from .lora_math import Group, KernelGroups
from .matrices import HostAdapter
from .wrapped import Stacked, in_slots


class TuneDockPunicaCPU(PunicaWrapperCPU):
    """`adapters` maps a slot to the adapter in it; whoever fills slots keeps it up to date."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.adapters: dict[int, HostAdapter] = {}
        self._layers: dict[int, WrappedLayer] = {}  # by the address of the A tensor that vLLM passes
        self._most_slices = 0
        self._dtype = ""
        self._hollow = False
        self._uses_kernel = True
        self._scratch = torch.empty(0)
        self._token_groups: tuple[Group, ...] = ()
        self._calls: list[tuple[Callable[..., None], KernelGroups]] | None = None
        self._logit_groups: tuple[Group, ...] = ()

    def use_layers(
        self, layers: Layers, dtype: torch.dtype, slots: Sequence[Stacked], hollow: bool, use_kernel: bool = True
    ) -> None:
        """The plain linear layers, with vLLM's slots of each. `hollow`: there are no others, and those slots hold nothing.
        `dtype`: of x and y."""
        self._layers = {a[0].data_ptr(): layer for layer, (a, _) in zip(layers.layers, slots, strict=True)}
        self._most_slices = max((len(layer.widths) for layer in layers.layers), default=0)
        self._dtype = str(dtype).removeprefix("torch.")
        self._hollow = hollow
        self._uses_kernel = use_kernel
        self.adapters = {} if hollow else in_slots(layers, slots)

    def use_kernel(self, yes: bool) -> None:
        self._uses_kernel = yes

    def put(self, slot: int, adapter: HostAdapter | None) -> None:
        """None: the slot holds nothing that would change an answer. What vLLM fills is known for good."""
        if not self._hollow:
            return
        self.adapters.pop(slot, None)
        if adapter is not None:
            self.adapters[slot] = adapter

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        if not self._hollow:
            # The embedding layer and the classification head read the index tensors of the base class.
            self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        slot_of = {lora_id: slot for slot, lora_id in enumerate(lora_index_to_id) if lora_id is not None}
        slot_of[0] = -1  # the base model; any other id without a slot must fail, never run as the base
        self._token_groups = lora_math.group_rows([slot_of[lora_id] for lora_id in mapping.index_mapping])
        self._logit_groups = lora_math.group_rows([slot_of[lora_id] for lora_id in mapping.prompt_mapping])
        self.no_lora = not self._token_groups
        self.is_prefill = mapping.is_prefill
        self._calls = self._kernel_calls()

    def _kernel_calls(self) -> list[tuple[Callable[..., None], KernelGroups]] | None:
        """What each layer runs in this step. None where torch has to: no kernel for one of the dtypes."""
        batches = KernelGroups.of(self._token_groups, self.adapters) if self._uses_kernel else []
        calls = [(kernel.function(self._dtype, str(b.dtype).removeprefix("torch.")), b) for b in batches]
        found = [(function, batch) for function, batch in calls if function is not None]
        if not self._uses_kernel or len(found) < len(calls):
            return None
        floats = max((batch.rows * batch.max_rank for batch in batches), default=0) * self._most_slices
        if self._scratch.numel() < floats:
            self._scratch = torch.empty(floats)
        return found

    def add_lora_linear(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: tuple[torch.Tensor, ...],
        lora_b_stacked: tuple[torch.Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[torch.Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        if not self._token_groups:
            return
        if x.dim() != 2:
            x, y = x.view(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        layer = self._layers.get(lora_a_stacked[0].data_ptr())
        if layer is None or (self._calls is None and not self._hollow):
            lora_math.add_lora(y, x, lora_a_stacked, lora_b_stacked, output_slices, self._token_groups, scale)
        elif self._calls is None:
            lora_math.add_adapters(y, x, layer, self._token_groups, self.adapters, scale)
        else:
            self._run(layer, y, x, scale)

    def _run(self, layer: WrappedLayer, y: torch.Tensor, x: torch.Tensor, scale: float) -> None:
        for function, batch in self._calls or ():
            kernel.add(function, layer.native, batch.native, x, y, scale, self._scratch)

    def add_shrink(
        self, y: Any, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...], scale: float, **kwargs: Any
    ) -> None:
        x = x.view(-1, x.shape[-1])
        for index, a in enumerate(lora_a_stacked):
            out = y[index].view(-1, y[index].shape[-1])
            for group in self._token_groups:
                out[group.rows] = (x[group.rows] @ a[group.slot, 0].t() * scale).to(out.dtype)

    def add_expand(
        self,
        y: torch.Tensor,
        x: Any,
        lora_b_stacked: tuple[torch.Tensor, ...],
        output_slices: Sequence[int],
        offset_start: int = 0,
        add_inputs: bool = True,
        **kwargs: Any,
    ) -> None:
        if not add_inputs:
            raise NotImplementedError("the CPU path adds to y; nothing in vLLM 0.32 asks for replacing it")
        offset = offset_start
        for index, b in enumerate(lora_b_stacked):
            lora_math.expand(y.view(-1, y.shape[-1]), x[index], b, offset, self._token_groups)
            offset += output_slices[index]

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        lora_math.expand(y.view(-1, y.shape[-1]), x, lora_b_stacked, 0, self._token_groups)

    def add_lora_logits(
        self,
        y: torch.Tensor,
        x: torch.Tensor,
        lora_a_stacked: torch.Tensor,
        lora_b_stacked: torch.Tensor,
        scale: float,
        *,
        buffer: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> None:
        if self._logit_groups:
            y = y.view(-1, y.shape[-1])
            width = min(lora_b_stacked.shape[-2], y.shape[-1])
            lora_math.add_lora(
                y,
                x.view(-1, x.shape[-1]),
                (lora_a_stacked,),
                (lora_b_stacked[:, :, :width],),
                (width,),
                self._logit_groups,
                scale,
            )
