"""Our LoRA wrapper for CPU: takes the place of vLLM's `PunicaWrapperCPU`, which is wrong for base rows and slow.

vLLM tells the wrapper once a step which slot each token and each sampled row uses; its wrapped layers then call the
`add_*` methods. The arithmetic is in `lora_math`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from . import kernel, lora_math
from .lora_math import Group, KernelGroups
from .slots import LayerSlots

_KERNELS = {torch.bfloat16: "tunedock_lora_bf16", torch.float32: "tunedock_lora_f32"}


class TuneDockPunicaCPU(PunicaWrapperCPU):
    """`ranks` maps a slot to the rank of the adapter in it; whoever fills slots keeps it up to date."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks: dict[int, int] = {}
        self._layers: dict[int, LayerSlots] = {}  # by the address of the A tensor that vLLM passes
        self._only_layers = False
        self._kernel: Callable[..., None] | None = None
        self._scratch = torch.empty(0)
        self._dtype: torch.dtype | None = None
        self._floats_per_row = self._max_rank = 0
        self._token_groups: tuple[Group, ...] = ()
        self._kernel_groups: KernelGroups | None = None
        self._logit_groups: tuple[Group, ...] = ()

    def use_layers(self, layers: Sequence[LayerSlots], only: bool, use_kernel: bool = True) -> None:
        """Layers whose slots have our shape. `only`: nothing else (embedding, lm_head) is wrapped."""
        self._layers = {layer.a.data_ptr(): layer for layer in layers}
        self._only_layers = only
        self._dtype = layers[0].a.dtype if layers else None
        self._floats_per_row = max((len(layer.widths) * layer.max_rank for layer in layers), default=0)
        self._max_rank = max((layer.max_rank for layer in layers), default=0)
        self.use_kernel(use_kernel)

    def use_kernel(self, yes: bool) -> None:
        library, name = kernel.library(), _KERNELS.get(self._dtype) if self._dtype else None
        self._kernel = getattr(library, name) if yes and library is not None and name is not None else None

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        if not self._only_layers:
            # The embedding layer and the classification head read the index tensors of the base class.
            self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        slot_of = {lora_id: slot for slot, lora_id in enumerate(lora_index_to_id) if lora_id is not None}
        slot_of[0] = -1  # the base model; any other id without a slot must fail, never run as the base
        self._token_groups = lora_math.group_rows([slot_of[lora_id] for lora_id in mapping.index_mapping])
        self._logit_groups = lora_math.group_rows([slot_of[lora_id] for lora_id in mapping.prompt_mapping])
        self.no_lora = not self._token_groups
        self.is_prefill = mapping.is_prefill
        self._kernel_groups = None
        if self._kernel is not None and self._token_groups:
            self._kernel_groups = KernelGroups.of(self._token_groups, self.ranks, self._max_rank)
            if self._scratch.numel() < self._kernel_groups.rows * self._floats_per_row:
                self._scratch = torch.empty(self._kernel_groups.rows * self._floats_per_row)

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
        if layer is None:
            lora_math.add_lora(
                y, x, lora_a_stacked, lora_b_stacked, output_slices, self._token_groups, self.ranks, scale
            )
        elif self._kernel is None or self._kernel_groups is None:
            lora_math.add_lora_packed(y, x, layer, self._token_groups, self.ranks, scale)
        else:
            self._kernel(
                ctypes.addressof(layer.native),
                ctypes.addressof(self._kernel_groups.native),
                x.data_ptr(),
                x.stride(0),
                y.data_ptr(),
                y.stride(0),
                scale,
                self._scratch.data_ptr(),
            )

    def add_shrink(
        self, y: Any, x: torch.Tensor, lora_a_stacked: tuple[torch.Tensor, ...], scale: float, **kwargs: Any
    ) -> None:
        x = x.view(-1, x.shape[-1])
        for index, a in enumerate(lora_a_stacked):
            out = y[index].view(-1, y[index].shape[-1])
            for group in self._token_groups:
                out[group.rows] = (lora_math.shrink(x[group.rows], a[group.slot, 0], a.shape[-2]) * scale).to(out.dtype)

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
            lora_math.expand(y.view(-1, y.shape[-1]), x[index], b, offset, self._token_groups, self.ranks)
            offset += output_slices[index]

    def add_lora_embedding(
        self, y: torch.Tensor, x: torch.Tensor, lora_b_stacked: torch.Tensor, add_inputs: bool = True, **kwargs: Any
    ) -> None:
        lora_math.expand(y.view(-1, y.shape[-1]), x, lora_b_stacked, 0, self._token_groups, self.ranks)

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
                self.ranks,
                scale,
            )
