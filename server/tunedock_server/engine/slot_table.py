"""Slots of vLLM's LoRA manager, for packed adapters: which is free, who has which, and the copy into one.

Only the worker's main thread may call these; the copy itself can run on another thread while its slot is reserved. A
reserved slot carries a negative id in `lora_index_to_id`: no step looks it up, and no activation takes it.
"""

from __future__ import annotations

from typing import Any

from .slots import PackedAdapter


def activate(manager: Any, lora_id: int, packed: PackedAdapter) -> bool:
    """As upstream's `activate_adapter`, with one copy instead of hundreds. False when it already has a slot."""
    if lora_id in manager._active_adapters:
        manager._active_adapters.touch(lora_id)
        return False
    slot = _free_slot(manager)
    packed.copy_into(slot)
    _occupy(manager, slot, lora_id, packed)
    return True


def reserve(manager: Any, lora_id: int) -> int | None:
    """A slot for a copy on another thread. None when the adapter has one, or when none could be spared for a step."""
    taken = sum(1 for owner in manager.lora_index_to_id if owner is not None and owner < 0)
    if lora_id in manager._active_adapters or taken or manager.lora_slots < 2:
        return None
    slot = _free_slot(manager)
    manager.lora_index_to_id[slot] = -lora_id
    return slot


def settle(manager: Any, slot: int, lora_id: int, packed: PackedAdapter | None) -> None:
    """Ends a reservation: the slot is the adapter's, or free again when there is none or a step was faster."""
    manager.lora_index_to_id[slot] = None
    if packed is not None and lora_id not in manager._active_adapters:
        _occupy(manager, slot, lora_id, packed)


def _free_slot(manager: Any) -> int:
    """An empty slot; if there is none, that of the least recently used adapter that is not pinned."""
    if None not in manager.lora_index_to_id:
        manager._active_adapters.remove_oldest()
    return int(manager.lora_index_to_id.index(None))


def _occupy(manager: Any, slot: int, lora_id: int, packed: PackedAdapter) -> None:
    manager.lora_index_to_id[slot] = lora_id
    manager._active_adapters[lora_id] = None
    for wrapper in manager.punica_wrapper_mapping.values():
        if hasattr(wrapper, "ranks"):
            wrapper.ranks[slot] = packed.rank
