"""Adapters in the worker's host memory: read, checked, cast and packed on a thread beside the engine's steps.

What is staged needs nothing but a copy into a slot. Nothing is ever evicted here on its own: the engine pool decides.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from vllm.lora.request import LoRARequest

from .slots import pack


class StageError(Exception):
    """`kind`: `rejected` (wrong contents) or `unavailable` (missing or unreadable files)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class StagedAdapters:
    """`manager` is vLLM's worker LoRA manager. One thread: loads are serial, in the order in which they were asked for."""

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._models: dict[int, Any] = {}
        self._pending: dict[int, Future[Any]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tunedock-stage")

    def begin(self, lora_id: int, name: str, path: str) -> None:
        if lora_id not in self._models and lora_id not in self._pending:
            self._pending[lora_id] = self._thread.submit(self._prepare, lora_id, name, path)

    def finished(self, lora_id: int) -> bool:
        """Collects the thread's result. Raises StageError when staging failed, KeyError when it was never begun."""
        if lora_id in self._models:
            return True
        if not self._pending[lora_id].done():
            return False
        self._models[lora_id] = self._pending.pop(lora_id).result()
        return True

    def get(self, lora_id: int) -> Any:
        """The vLLM `LoRAModel`. Raises LookupError when it is not staged, which admission makes impossible in a step."""
        if lora_id not in self._models:
            raise LookupError(f"adapter {lora_id} is not staged")
        return self._models[lora_id]

    def drop(self, lora_id: int) -> None:
        self._models.pop(lora_id, None)
        self._pending.pop(lora_id, None)

    def ids(self) -> list[int]:
        return list(self._models)

    def _prepare(self, lora_id: int, name: str, path: str) -> Any:
        request = LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=path)
        try:
            return self._ready(self._manager.read_from_disk(request))
        except StageError:
            raise
        except (OSError, LookupError) as error:
            raise StageError("unavailable", f"its files cannot be read ({type(error).__name__})") from error
        except Exception as error:  # thread edge: whatever vLLM says about the contents belongs to this adapter alone
            raise StageError(*_reason(error)) from error

    def _ready(self, model: Any) -> Any:
        """Checked, and in the form in which it goes into a slot: packed where the slots are ours, else vLLM's."""
        adapters = self._manager._adapter_manager
        places = module_places(adapters.modules, adapters.packed_modules)
        check(model, places, adapters.lora_config.max_lora_rank)
        layers = getattr(adapters, "tunedock_layers", {})
        owners = {part: name for name, parts in adapters.packed_modules.items() for part in parts}
        if layers and len(layers) == len(adapters.modules):
            slices = {name: (layers[owners.get(name, name)], index) for name, (_, index) in places.items()}
            model.packed = pack(model.loras, slices)
            model.loras = {}
        else:
            adapters._create_merged_loras_inplace(model)
        return model


def _reason(error: Exception) -> tuple[str, str]:
    if type(error).__name__ == "LoRAAdapterNotFoundError":
        return "unavailable", "its files are missing"
    return "rejected", str(error)[:500]


def module_places(modules: dict[str, Any], packed: dict[str, list[str]]) -> dict[str, tuple[Any, int]]:
    """Module as adapters name it (q_proj, not qkv_proj) -> its wrapped layer and which slice of that."""
    places = {name: (layer, 0) for name, layer in modules.items() if name not in packed}
    for name, parts in packed.items():
        places.update({part: (modules[name], index) for index, part in enumerate(parts) if name in modules})
    return places


def check(model: Any, places: dict[str, tuple[Any, int]], max_rank: int) -> None:
    """Compares every tensor with the wrapped layer that it is for, before packing. Raises StageError.

    vLLM drops weights of other modules without a word, and takes a matrix that is too small into a corner of the slot.
    """
    if not model.loras:
        raise StageError("rejected", "it holds no weights for this base model")
    for name, weights in model.loras.items():
        if name not in places:
            raise StageError("rejected", f"this engine serves no adapter weights for {name}")
        _check_shapes(name, weights, *places[name], max_rank)


def _check_shapes(name: str, weights: Any, layer: Any, index: int, max_rank: int) -> None:
    a, b = weights.lora_a, weights.lora_b
    if a is None or b is None:
        raise StageError("rejected", f"{name} lacks lora_A or lora_B")
    if a.shape[0] > max_rank or a.shape[0] != b.shape[1]:
        raise StageError("rejected", f"{name}: rank {a.shape[0]}/{b.shape[1]}, at most {max_rank} can be served")
    if not (torch.isfinite(a).all() and torch.isfinite(b).all()):
        raise StageError("rejected", f"{name} holds NaN or infinite values")
    if getattr(layer, "tp_size", 1) == 1 and len(layer.lora_a_stacked) > index:
        expected = (layer.lora_a_stacked[index].shape[-1], layer.lora_b_stacked[index].shape[-2])
        if (a.shape[1], b.shape[0]) != expected:
            raise StageError("rejected", f"{name} is {a.shape[1]} -> {b.shape[0]}, the base model's is {expected}")
