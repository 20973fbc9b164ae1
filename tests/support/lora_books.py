"""A small manager that keeps the books of vLLM's two LoRA managers, and adapter files for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from tunedock_server.engine import slot_table
from tunedock_server.engine.slots import LayerSlots
from tunedock_server.engine.staging import StagedAdapters
from vllm.lora.model_manager import AdapterLRUCache
from vllm.lora.request import LoRARequest

INNER, WIDTHS, RANK = 12, (8, 4, 4), 4
PARTS = ("q_proj", "k_proj", "v_proj")


class Books:
    """What `slot_table` and `staging` use of vLLM's two LoRA managers, for one packed layer `qkv_proj`."""

    def __init__(self, slots: int, dtype: torch.dtype) -> None:
        self.layer = LayerSlots.empty(slots, RANK, INNER, WIDTHS, dtype)
        wrapped = SimpleNamespace(tp_size=1, lora_a_stacked=self.layer.a_views(), lora_b_stacked=self.layer.b_views())
        self.modules: dict[str, Any] = {"qkv_proj": wrapped}
        self.packed_modules = {"qkv_proj": list(PARTS)}
        self.tunedock_layers = {"qkv_proj": self.layer}
        self.lora_config = SimpleNamespace(max_lora_rank=RANK)
        self.model = SimpleNamespace()
        self.lora_slots = slots
        self.lora_index_to_id: list[int | None] = [None] * slots
        self._active_adapters: AdapterLRUCache[None] = AdapterLRUCache(slots, self._leave)
        self.punica_wrapper_mapping = {"language_model": SimpleNamespace(ranks={})}

    def _leave(self, lora_id: int) -> None:
        if lora_id in self.lora_index_to_id:
            self.lora_index_to_id[self.lora_index_to_id.index(lora_id)] = None


class Manager:
    def __init__(self, slots: int = 3, dtype: torch.dtype = torch.float32) -> None:
        self._adapter_manager = Books(slots, dtype)
        self.staged = StagedAdapters(self)

    def add_adapter(self, request: LoRARequest) -> None:
        slot_table.activate(self._adapter_manager, request.lora_int_id, self.staged.get(request.lora_int_id).packed)


def write_adapter(folder: Path, lora_id: int, fill: float, rank: int = 2) -> LoRARequest:
    path = folder / str(lora_id)
    path.mkdir()
    config = {"r": rank, "lora_alpha": rank, "target_modules": list(PARTS), "peft_type": "LORA"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for part, width in zip(PARTS, WIDTHS, strict=True):
        tensors[f"base_model.model.{part}.lora_A.weight"] = torch.full((rank, INNER), fill)
        tensors[f"base_model.model.{part}.lora_B.weight"] = torch.full((width, rank), fill)
    save_file(tensors, path / "adapter_model.safetensors")
    return LoRARequest(lora_name=f"digest{lora_id}", lora_int_id=lora_id, lora_path=str(path))
