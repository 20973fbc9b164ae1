"""What we change inside vLLM 0.32, in one place. Each patch says why; a vLLM that we do not know is left alone.

Everywhere:
    LRUCacheWorkerLoRAManager._load_adapter    only what was staged: a step never reads a disk, so it cannot fail there
    LRUCacheWorkerLoRAManager._apply_adapters  takes over what was staged
    EngineCore.tunedock_bring                  new: answers when staging is done, also in the middle of a step
    LRUCacheWorkerLoRAManager.add_adapter      no copy of all registered adapters at each step and active adapter
    engine.utils.get_mp_context                engines are forked from a process that has imported vLLM (see forking.py)
On CPU:
    CpuPlatform.get_punica_wrapper             our wrapper: right base rows (vllm#48421), no gathered weights
    LRUCacheLoRAModelManager.__init__          slots that hold nothing where that is possible (see wrapped.py)
    LRUCacheLoRAModelManager.activate_adapter  an adapter in host memory gets a slot in a few dictionary writes
    CpuPlatform.get_default_ir_op_priority     RMSNorm through vLLM's own C kernels (see cpu_ops.py)
"""

from __future__ import annotations

import logging
from typing import Any

import vllm
from packaging.version import Version

from . import cpu_ops, forking, slot_table, wrapped
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
    _fork_engines()
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
        upstream_apply(manager, requests)

    Manager._apply_adapters = _apply_adapters
    _installed.extend(["staged_only", "constant_time_membership"])


def _answer_when_staged() -> None:
    from vllm.v1.engine.core import EngineCore

    EngineCore.tunedock_bring = _bring
    _installed.append("answer_when_staged")


def _fork_engines() -> None:
    from vllm.v1.engine import utils

    utils.get_mp_context = forking.engine_context
    _installed.append("forked_engines")


def _bring(core: Any, lora_id: int, name: str, path: str, load: bool, known: bool) -> Any:
    """vLLM answers a call that returns a future when that is done, and steps on meanwhile."""
    worker = getattr(getattr(core.model_executor, "driver_worker", None), "worker", None)
    if worker is not None:
        return worker.tunedock_bring(lora_id, name, path, load, known)
    core.collective_rpc("tunedock_stage", args=(lora_id, name, path, load, known))
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
        manager.tunedock_layers = wrapped.adopt(manager)

    def activate_adapter(manager: Any, lora_id: int) -> bool:
        if manager.tunedock_layers is None:
            return bool(upstream_activate(manager, lora_id))
        # vLLM's own adapters for its warm-up have no place in host memory; there they may be nothing.
        return slot_table.activate(
            manager, lora_id, getattr(manager._registered_adapters.cache.get(lora_id), "host", None)
        )

    Manager.__init__, Manager.activate_adapter = __init__, activate_adapter
