"""Our LoRA wrapper for CPU: takes the place of vLLM's `PunicaWrapperCPU`, which is wrong for base rows and slow.

vLLM tells the wrapper once a step which slot each token and each sampled row uses; its wrapped layers then call the
`add_*` methods. The arithmetic is in `lora_math`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from . import lora_math
from .lora_math import Group

QUALNAME = f"{__name__}.TuneDockPunicaCPU"


class TuneDockPunicaCPU(PunicaWrapperCPU):
    """`ranks` maps a slot to the rank of the adapter in it; whoever fills slots keeps it up to date."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.ranks: dict[int, int] = {}
        self._token_groups: tuple[Group, ...] = ()
        self._logit_groups: tuple[Group, ...] = ()

    def update_metadata(
        self, mapping: Any, lora_index_to_id: list[int | None], max_loras: int, vocab_size: int, **kwargs: Any
    ) -> None:
        # The base class keeps the index tensors that the embedding layer reads.
        self._update_base_metadata(mapping, lora_index_to_id, max_loras, vocab_size)
        slot_of = {lora_id: slot for slot, lora_id in enumerate(lora_index_to_id) if lora_id is not None}
        self._token_groups = lora_math.group_rows([slot_of.get(lora_id, -1) for lora_id in mapping.index_mapping])
        self._logit_groups = lora_math.group_rows([slot_of.get(lora_id, -1) for lora_id in mapping.prompt_mapping])
        self.no_lora = not self._token_groups
        self.is_prefill = mapping.is_prefill

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
        if self._token_groups:
            lora_math.add_lora(
                y.view(-1, y.shape[-1]),
                x.view(-1, x.shape[-1]),
                lora_a_stacked,
                lora_b_stacked,
                output_slices,
                self._token_groups,
                self.ranks,
                scale,
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
