"""What we change inside vLLM 0.32, in one place. Each patch says why; a vLLM that we do not know is left alone.

Everywhere:
    LRUCacheWorkerLoRAManager._load_adapter    only what was staged: a step never reads a disk, so it cannot fail there
    LRUCacheWorkerLoRAManager._apply_adapters  takes over what was staged; a batch that needs every slot waits for it
    EngineCore.tunedock_bring                  new: answers when staging is done, also in the middle of a step
    LRUCacheWorkerLoRAManager.add_adapter      no copy of all registered adapters at each step and active adapter
On CPU:
    CpuPlatform.get_punica_wrapper             our wrapper: right base rows (vllm#48421), no gathered weights
    LRUCacheLoRAModelManager.__init__          slots in our shape (see slots.py) behind vLLM's tensors
    LRUCacheLoRAModelManager.activate_adapter  a packed adapter goes into a slot in one call
    CpuPlatform.get_default_ir_op_priority     RMSNorm through vLLM's own C kernels (see cpu_ops.py)
"""

from __future__ import annotations

import logging
from typing import Any

import vllm
from packaging.version import Version

from . import cpu_ops, slot_table
from .slots import LayerSlots
from .staging import StagedAdapters

SUPPORTED = (Version("0.32.0"), Version("0.33"))
CPU_WRAPPER = f"{__package__}.punica_cpu.TuneDockPunicaCPU"
_log = logging.getLogger("tunedock.engine")
_installed: list[str] = []


def installed() -> list[str]:
    """Names of the patches that are in place in this process."""
    return list(_installed)


def vllm_is_known() -> bool:
    low, high = SUPPORTED
    return low <= Version(Version(vllm.__version__).base_version) < high


def install() -> None:
    """Idempotent."""
    if _installed:
        return
    if not vllm_is_known():
        _log.warning("vLLM %s is not a version that TuneDock knows: LoRA runs on vLLM's own path.", vllm.__version__)
        return
    _load_only_what_was_staged()
    _answer_when_staged()
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: CPU_WRAPPER)
        _own_the_slots()
        _installed.append("cpu_lora")
        if cpu_ops.install():
            _installed.append("cpu_norm")


def staged_adapters(manager: Any) -> StagedAdapters:
    """The adapters in host memory of one `LRUCacheWorkerLoRAManager`."""
    if "tunedock_staged" not in manager.__dict__:
        manager.tunedock_staged = StagedAdapters(manager)
    return manager.tunedock_staged


def _load_only_what_was_staged() -> None:
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager as Manager

    Manager.read_from_disk = Manager._load_adapter
    Manager._load_adapter = lambda manager, request: staged_adapters(manager).get(request.lora_int_id)
    Manager.add_adapter = _add_adapter
    upstream_apply = Manager._apply_adapters

    def _apply_adapters(manager: Any, requests: Any) -> None:
        staged_adapters(manager).collect()
        if len(requests) >= manager._adapter_manager.lora_slots:
            staged_adapters(manager).settle_all()
        upstream_apply(manager, requests)

    Manager._apply_adapters = _apply_adapters
    _installed.extend(["staged_only", "constant_time_membership"])


def _answer_when_staged() -> None:
    from vllm.v1.engine.core import EngineCore

    EngineCore.tunedock_bring = _bring
    _installed.append("answer_when_staged")


def _bring(core: Any, lora_id: int, name: str, path: str, load: bool) -> Any:
    """vLLM answers a call that returns a future when that is done, and steps on meanwhile."""
    worker = getattr(getattr(core.model_executor, "driver_worker", None), "worker", None)
    if worker is not None:
        return worker.tunedock_bring(lora_id, name, path, load)
    core.collective_rpc("tunedock_stage", args=(lora_id, name, path, load))
    return {"done": False}


def _add_adapter(manager: Any, request: Any) -> bool:
    """As upstream without `list_adapters()`, and never beyond capacity: the engine counts what it stages."""
    adapters, lora_id = manager._adapter_manager, request.lora_int_id
    if lora_id not in adapters._registered_adapters:
        # Staging has already packed it, which is all that upstream's own `add_adapter` would do beside this.
        adapters._registered_adapters[lora_id] = manager._load_adapter(request)
    adapters.get_adapter(lora_id)  # most recently used
    adapters.activate_adapter(lora_id)
    return True


def _own_the_slots() -> None:
    from vllm.lora.model_manager import LRUCacheLoRAModelManager as Manager

    upstream_init, upstream_activate = Manager.__init__, Manager.activate_adapter

    def __init__(manager: Any, *args: Any, **kwargs: Any) -> None:
        upstream_init(manager, *args, **kwargs)
        manager.tunedock_layers = _reshape_slots(manager)

    def activate_adapter(manager: Any, lora_id: int) -> bool:
        model = manager._registered_adapters.cache.get(lora_id)
        packed = getattr(model, "packed", None)
        return slot_table.activate(manager, lora_id, packed) if packed else bool(upstream_activate(manager, lora_id))

    Manager.__init__, Manager.activate_adapter = __init__, activate_adapter


def _reshape_slots(manager: Any) -> dict[str, LayerSlots]:
    """Replaces the LoRA tensors of every plain linear layer; returns the layers by module name."""
    layers: dict[str, LayerSlots] = {}
    known: dict[int, LayerSlots] = {}
    for name, module in manager.modules.items():
        if _is_plain_linear(module):
            if id(module) not in known:
                known[id(module)] = _reshape(module)
            layers[name] = known[id(module)]
    for wrapper in manager.punica_wrapper_mapping.values():
        if hasattr(wrapper, "use_layers"):
            wrapper.use_layers(list(known.values()), only=len(layers) == len(manager.modules))
    return layers


def _is_plain_linear(module: Any) -> bool:
    from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA

    return (
        isinstance(module, BaseLinearLayerWithLoRA)
        and module.tp_size == 1
        and isinstance(module.lora_a_stacked, tuple)
        and all(tensor.dim() == 4 for tensor in (*module.lora_a_stacked, *module.lora_b_stacked))
        and len(module.lora_a_stacked) == len(module.output_slices) <= 7
    )


def _reshape(module: Any) -> LayerSlots:
    slots, _, max_rank, inner = module.lora_a_stacked[0].shape
    layer = LayerSlots.empty(slots, max_rank, inner, module.output_slices, module.lora_a_stacked[0].dtype)
    module.lora_a_stacked, module.lora_b_stacked = layer.a_views(), layer.b_views()
    return layer
