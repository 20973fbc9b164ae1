"""What this server can hold, in numbers that can be checked."""

from __future__ import annotations

from ..catalog import Catalog
from ..pool import EngineFacts
from ..residency.residents import Residents
from .wire import Json

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def capacity(facts: EngineFacts, residents: Residents, catalog: Catalog) -> Json:
    """Sizes in bytes. `bytes_per_slot` is what one more slot costs at the engine's rank cap: nothing on CPU, where adapters are
    computed from their mapped files."""
    states = residents.states()
    slots_used = sum(1 for state in states.values() if state != "host")
    return {
        "object": "capacity",
        "base_model": facts.model_id,
        "device": facts.device,
        "dtype": facts.dtype,
        "lora_backend": facts.lora_backend,
        "degraded": facts.degraded,
        "slots": facts.max_loras,
        "slots_used": slots_used,
        "slots_pinned": sum(1 for state in states.values() if state == "pinned"),
        "host_slots": facts.max_cpu_loras,
        "host_slots_used": len(states),
        "max_lora_rank": facts.max_lora_rank,
        "lora_modules": list(facts.lora_modules),
        "bytes_per_slot": facts.bytes_per_slot,
        "bytes_per_slot_by_rank": {str(rank): bytes_at(facts, rank) for rank in RANKS if rank <= facts.max_lora_rank},
        "kv_blocks": facts.kv_blocks,
        "kv_block_tokens": facts.block_size,
        "kv_tokens": facts.kv_blocks * facts.block_size,
        "max_model_len": facts.max_model_len,
        "registered_versions": sum(1 for _ in catalog.snapshot.versions()),
        "waiting_requests": residents.num_waiting(),
    }


def bytes_at(facts: EngineFacts, rank: int) -> int:
    """A slot's size grows with the rank and nothing else."""
    return facts.bytes_per_slot * rank // facts.max_lora_rank
