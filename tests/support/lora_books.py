"""A small manager that keeps the books of vLLM's two LoRA managers, and adapter files for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from tunedock_server.engine import slot_table
from tunedock_server.engine.layers import Layers
from tunedock_server.engine.punica_cpu import TuneDockPunicaCPU
from tunedock_server.engine.staging import StagedAdapters
from tunedock_server.engine.wrapped import ServedLayers, accepted
from vllm.lora.layers import LoRAMapping
from vllm.lora.model_manager import AdapterLRUCache
from vllm.lora.request import LoRARequest

INNER, WIDTHS, RANK = 12, (8, 4, 4), 4
PARTS = ("q_proj", "k_proj", "v_proj")


class Books:
    """What `slot_table` and `staging` use of vLLM's two LoRA managers, for one packed layer `qkv_proj`."""

    def __init__(self, slots: int, dtype: torch.dtype) -> None:
        layers = Layers.of([(INNER, WIDTHS)])
        # Slots that nobody fills: whoever reads them gets NaN.
        self.a = tuple(torch.full((slots, 1, RANK, INNER), float("nan"), dtype=dtype) for _ in WIDTHS)
        self.b = tuple(torch.full((slots, 1, width, RANK), float("nan"), dtype=dtype) for width in WIDTHS)
        layer = SimpleNamespace(tp_size=1, lora_a_stacked=self.a, lora_b_stacked=self.b)
        self.modules: dict[str, Any] = {"qkv_proj": layer}
        self.packed_modules = {"qkv_proj": list(PARTS)}
        self.tunedock_layers = ServedLayers(layers, {"qkv_proj": layers.layers[0]}, accepted(dtype))
        self.lora_config = SimpleNamespace(max_lora_rank=RANK)
        self.model = SimpleNamespace()
        self.lora_slots = slots
        self.lora_index_to_id: list[int | None] = [None] * slots
        self._active_adapters: AdapterLRUCache[None] = AdapterLRUCache(slots, self._leave)
        self.wrapper = TuneDockPunicaCPU(64, 64, "cpu")
        self.wrapper.use_layers(layers, dtype, [(self.a, self.b)], hollow=True)
        self.punica_wrapper_mapping = {"language_model": self.wrapper}

    def _leave(self, lora_id: int) -> None:
        if lora_id in self.lora_index_to_id:
            self.lora_index_to_id[self.lora_index_to_id.index(lora_id)] = None

    def step(self, *rows: int) -> torch.Tensor:
        """What one step adds to the layer's output for rows of ones, with these adapters (0: none)."""
        self.wrapper.update_metadata(LoRAMapping(rows, rows, is_prefill=True), self.lora_index_to_id, 9, 50)
        y = torch.zeros(len(rows), sum(WIDTHS), dtype=self.a[0].dtype)
        self.wrapper.add_lora_linear(y, torch.ones(len(rows), INNER, dtype=y.dtype), self.a, self.b, 1.0, WIDTHS)
        return y


class Manager:
    def __init__(self, slots: int = 3, dtype: torch.dtype = torch.float32) -> None:
        self._adapter_manager = Books(slots, dtype)
        self.staged = StagedAdapters(self)

    @property
    def books(self) -> Books:
        return self._adapter_manager

    def add_adapter(self, request: LoRARequest) -> None:
        slot_table.activate(self.books, request.lora_int_id, self.staged.get(request.lora_int_id).host)

    def unload(self, lora_id: int) -> None:
        """As the worker does it: our part, then vLLM's."""
        self.staged.drop(lora_id)
        self.books._active_adapters.pop(lora_id, None)


def write_adapter(
    folder: Path, lora_id: int, fill: float, rank: int = 2, dtype: torch.dtype = torch.float32
) -> LoRARequest:
    """All elements are `fill`: a row of ones gets `fill * fill * INNER * rank` in each column."""
    path = folder / str(lora_id)
    path.mkdir()
    config = {"r": rank, "lora_alpha": rank, "target_modules": list(PARTS), "peft_type": "LORA"}
    (path / "adapter_config.json").write_text(json.dumps(config))
    weights = {}
    for part, width in zip(PARTS, WIDTHS, strict=True):
        weights[f"base_model.model.{part}.lora_A.weight"] = torch.full((rank, INNER), fill, dtype=dtype)
        weights[f"base_model.model.{part}.lora_B.weight"] = torch.full((width, rank), fill, dtype=dtype)
    save_file(weights, path / "adapter_model.safetensors")
    return LoRARequest(lora_name=f"digest{lora_id}", lora_int_id=lora_id, lora_path=str(path))
