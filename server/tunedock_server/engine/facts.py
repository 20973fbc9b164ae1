"""What a started engine can do, as it says itself."""

from __future__ import annotations

import asyncio

from tunedock_registry.models.facts import base_facts
from vllm import __version__ as vllm_version
from vllm.v1.engine.async_llm import AsyncLLM

from ..pool import EngineFacts, EngineSettings
from . import rpc
from .hosted import host_slots


async def read_facts(llm: AsyncLLM, settings: EngineSettings) -> EngineFacts:
    """Asks the worker which wrapper and patches are active and how its self-check went."""
    worker = await rpc.call(llm, "tunedock_facts", timeout_s=settings.call_timeout_s)
    config = llm.vllm_config
    return EngineFacts(
        model_id=settings.model_id,
        base=await asyncio.to_thread(base_facts, settings.model_path, settings.model_id, settings.max_lora_rank),
        max_model_len=config.model_config.max_model_len,
        max_loras=settings.max_loras,
        max_cpu_loras=host_slots(settings),
        max_lora_rank=settings.max_lora_rank,
        lora_modules=tuple(worker["modules"]),
        dtype=str(config.model_config.dtype).removeprefix("torch."),
        bytes_per_slot=worker["bytes_per_slot"],
        kv_blocks=config.cache_config.num_gpu_blocks or 0,
        block_size=config.cache_config.block_size,
        lora_backend="tunedock-cpu" if worker["ours"] and worker["right"] else "vllm",
        device=worker["device"],
        degraded=worker["degraded"] or None,
        versions={"vllm": vllm_version},
    )
