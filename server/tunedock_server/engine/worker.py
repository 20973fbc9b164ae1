"""Methods that we add to vLLM's worker (`worker_extension_cls`): called by name over RPC, between two engine steps.

Arguments and results are plain values. Each returns in microseconds; only the self-check at start takes longer.
"""

from __future__ import annotations

import gc
from concurrent.futures import Future
from typing import Any

from vllm.lora.request import LoRARequest
from vllm.platforms import current_platform

from . import affinity, patches, selfcheck
from .reading import StageError


class WorkerExtension:
    """`self.model_runner` is vLLM's; a worker without LoRA has no `lora_manager`."""

    model_runner: Any

    def tunedock_facts(self) -> dict[str, Any]:
        """What is active in this worker, with the result of the numeric self-check."""
        manager = self.model_runner.lora_manager
        if current_platform.is_cpu():
            affinity.bind_compute_threads()
        return {
            "patches": patches.installed(),
            "modules": sorted({name.rpartition(".")[2] for name in _served(manager)}),
            "bytes_per_slot": _bytes_per_slot(manager),
            **selfcheck.run(manager),
        }

    def tunedock_stage(self, lora_id: int, name: str, path: str, load: bool, known: bool) -> None:
        """Begins to bring an adapter into host memory and, with `load`, into a slot. `known`: see `Reader.read`."""
        request = LoRARequest(lora_name=name, lora_int_id=lora_id, lora_path=path)
        patches.staged_adapters(self.model_runner.lora_manager).begin(request, load, known)

    def tunedock_bring(
        self, lora_id: int, name: str, path: str, load: bool, known: bool
    ) -> Future[dict[str, str | bool]]:
        """The same where worker and scheduler share a process: the future answers when the work is done."""
        self.tunedock_stage(lora_id, name, path, load, known)
        return patches.staged_adapters(self.model_runner.lora_manager).reply(lora_id)

    def tunedock_staged(self, lora_id: int) -> dict[str, str | bool]:
        """`{"done": bool}`, or `{"done": True, "kind", "error"}` once after it failed."""
        staged = patches.staged_adapters(self.model_runner.lora_manager)
        try:
            return {"done": staged.finished(lora_id)}
        except StageError as error:
            return {"done": True, "kind": error.kind, "error": str(error)}

    def tunedock_unload(self, lora_id: int) -> None:
        manager = self.model_runner.lora_manager
        patches.staged_adapters(manager).drop(lora_id)
        manager.remove_adapter(lora_id)

    def tunedock_pin(self, lora_id: int) -> None:
        manager = self.model_runner.lora_manager
        patches.staged_adapters(manager).collect()
        manager.pin_adapter(lora_id)

    def tunedock_residency(self) -> dict[str, list[int]]:
        """Engine ids by place; `slot` includes the pinned ones."""
        manager = self.model_runner.lora_manager
        adapters = manager._adapter_manager
        return {
            "host": patches.staged_adapters(manager).ids(),
            "slot": [lora_id for lora_id in adapters.lora_index_to_id if lora_id is not None and lora_id > 0],
            "pinned": sorted(adapters._active_adapters.pinned_items),
        }

    def tunedock_collect_garbage(self) -> None:
        gc.collect()


def _served(manager: Any) -> list[str]:
    """Full names of the modules that can carry an adapter, as adapters name them (q_proj, not qkv_proj)."""
    adapters = manager._adapter_manager
    return [part for name in adapters.modules for part in adapters.packed_modules.get(name, [name])]


def _bytes_per_slot(manager: Any) -> int:
    """Nothing where slots only name what is in host memory."""
    adapters = manager._adapter_manager
    layers = {id(layer): layer for layer in adapters.modules.values()}.values()
    stacks = [t for layer in layers for t in (*_stack(layer, "lora_a_stacked"), *_stack(layer, "lora_b_stacked"))]
    return (
        int(sum(t.untyped_storage().nbytes() for t in stacks) // adapters.lora_slots) if _fills_slots(adapters) else 0
    )


def _fills_slots(adapters: Any) -> bool:
    return getattr(adapters, "tunedock_layers", None) is None


def _stack(layer: Any, name: str) -> tuple[Any, ...]:
    value = getattr(layer, name)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)
