"""What we change inside vLLM 0.32, in one place. Each patch says why; a vLLM that we do not know is left alone.

CpuPlatform.get_punica_wrapper          our wrapper: right base rows (vllm#48421), no gathered weights
LRUCacheWorkerLoRAManager._load_adapter only what was staged: a step never reads a disk, so it cannot fail there
LRUCacheWorkerLoRAManager.add_adapter   no copy of all registered adapters at each step and active adapter
LRUCacheLoRAModelManager.activate_adapter  tells our wrapper the rank of what is in a slot
"""

from __future__ import annotations

import logging
from typing import Any

import vllm
from packaging.version import Version

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
    _use_our_wrapper_on_cpu()
    _load_only_what_was_staged()
    _keep_ranks_of_slots()


def staged_adapters(manager: Any) -> StagedAdapters:
    """The adapters in host memory of one `LRUCacheWorkerLoRAManager`."""
    if "tunedock_staged" not in manager.__dict__:
        manager.tunedock_staged = StagedAdapters(manager)
    return manager.tunedock_staged


def _use_our_wrapper_on_cpu() -> None:
    from vllm.platforms import current_platform

    if current_platform.is_cpu():
        type(current_platform).get_punica_wrapper = classmethod(lambda cls: CPU_WRAPPER)
        _installed.append("cpu_wrapper")


def _load_only_what_was_staged() -> None:
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager as Manager

    Manager.read_from_disk = Manager._load_adapter
    Manager._load_adapter = lambda manager, request: staged_adapters(manager).get(request.lora_int_id)
    Manager.add_adapter = _add_adapter
    _installed.extend(["staged_only", "constant_time_membership"])


def _add_adapter(manager: Any, request: Any) -> bool:
    """As upstream without `list_adapters()`, and never beyond capacity: the engine counts what it stages."""
    adapters, lora_id = manager._adapter_manager, request.lora_int_id
    if lora_id not in adapters._registered_adapters:
        adapters.add_adapter(manager._load_adapter(request))
    adapters.get_adapter(lora_id)  # most recently used
    adapters.activate_adapter(lora_id)
    return True


def _keep_ranks_of_slots() -> None:
    from vllm.lora.model_manager import LRUCacheLoRAModelManager as Manager

    activate = Manager.activate_adapter

    def activate_adapter(manager: Any, lora_id: int) -> bool:
        changed = bool(activate(manager, lora_id))
        if changed:
            slot = manager.lora_index_to_id.index(lora_id)
            for wrapper in manager.punica_wrapper_mapping.values():
                if hasattr(wrapper, "ranks"):
                    wrapper.ranks[slot] = manager._registered_adapters.cache[lora_id].rank
        return changed

    Manager.activate_adapter = activate_adapter
    _installed.append("real_ranks")
