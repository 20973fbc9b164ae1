"""Slots of vLLM's LoRA manager where they hold nothing: which is free and who has which.

Only the worker's main thread may call these. An adapter gets a slot by a few dictionary writes, because it is computed from
host memory.
"""

from __future__ import annotations

from typing import Any

from .matrices import HostAdapter


def activate(manager: Any, lora_id: int, adapter: HostAdapter | None) -> bool:
    """As upstream's `activate_adapter`. False when it already has a slot. None is an adapter that changes nothing."""
    if lora_id in manager._active_adapters:
        manager._active_adapters.touch(lora_id)
        return False
    slot = _free_slot(manager)
    manager.lora_index_to_id[slot] = lora_id
    manager._active_adapters[lora_id] = None
    _put(manager, slot, adapter)
    return True


def forget(manager: Any, lora_id: int) -> None:
    """Lets go of the memory of an adapter that leaves; vLLM frees its slot."""
    if lora_id in manager.lora_index_to_id:
        _put(manager, manager.lora_index_to_id.index(lora_id), None)


def _free_slot(manager: Any) -> int:
    """An empty slot; if there is none, that of the least recently used adapter that is not pinned."""
    if None not in manager.lora_index_to_id:
        manager._active_adapters.remove_oldest()
    return int(manager.lora_index_to_id.index(None))


def _put(manager: Any, slot: int, adapter: HostAdapter | None) -> None:
    for wrapper in manager.punica_wrapper_mapping.values():
        if hasattr(wrapper, "put"):
            wrapper.put(slot, adapter)
