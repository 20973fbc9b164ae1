"""Starts vLLM as an `AsyncLLM` in this process, with settings chosen by platform."""

from __future__ import annotations

import asyncio
import os
from typing import Any

from tunedock_api.errors import BadInput, Unavailable
from tunedock_registry.processor import multiplies_bfloat16
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from ..pool import MAX_SLOTS, EngineSettings
from .environment import on_cpu, process_variables, temporarily
from .progress import Progress

DEFAULT_CPU_KV_BYTES = 1 << 30


def with_slots(settings: EngineSettings) -> EngineSettings:
    """Unless their number is given, as many as could ever be used, where they hold nothing: nobody waits for one then."""
    if "max_loras" in settings.model_fields_set or settings.lora_modules is None or not on_cpu():
        return settings
    return settings.model_copy(update={"max_loras": min(settings.max_num_seqs, MAX_SLOTS)})


def start_llm(settings: EngineSettings, progress: Progress) -> AsyncLLM:
    """Blocks until the model is loaded (seconds to minutes). Raises BadInput, Unavailable."""
    try:
        with temporarily(os.environ, process_variables(settings)):
            return AsyncLLM.from_engine_args(engine_args(settings), stat_loggers=[progress.logger_factory()])
    except (ValueError, TypeError, NotImplementedError, OSError) as error:
        raise BadInput(
            f"vLLM cannot serve this model with these settings: {_first_line(error)}", param="model"
        ) from error
    except RuntimeError as error:
        raise Unavailable(f"The engine did not start: {_first_line(error)} The log has the reason.") from error


async def stop_llm(llm: AsyncLLM) -> None:
    """Whoever still waits for tokens gets vLLM's EngineDeadError.

    vLLM's own task for outputs does that too, but only by failing on a closed socket, with a traceback in the log.
    """
    if llm.output_handler is not None:
        llm.output_handler.cancel()
    llm.output_processor.propagate_error(EngineDeadError())
    await asyncio.to_thread(llm.shutdown)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:400] if lines else type(error).__name__


def engine_args(settings: EngineSettings) -> AsyncEngineArgs:
    """Common arguments plus those of the platform."""
    return AsyncEngineArgs(
        model=str(settings.model_path),
        served_model_name=[settings.model_id],
        seed=settings.seed,
        max_model_len=settings.max_model_len,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        max_num_queued_reqs=settings.max_num_seqs + settings.max_queued_requests,
        enable_prefix_caching=settings.prefix_caching,
        enable_lora=True,
        max_loras=settings.max_loras,
        max_cpu_loras=max(settings.max_cpu_loras, settings.max_loras),
        max_lora_rank=settings.max_lora_rank,
        lora_target_modules=list(settings.lora_modules) if settings.lora_modules else None,
        worker_extension_cls="tunedock_server.engine.worker.WorkerExtension",
        **(_cpu_args(settings) if on_cpu() else _gpu_args(settings)),
    )


def _cpu_args(settings: EngineSettings) -> dict[str, Any]:
    return {
        "distributed_executor_backend": "uni",
        "dtype": "float32" if settings.dtype == "auto" and not multiplies_bfloat16() else settings.dtype,
        "enforce_eager": settings.enforce_eager is not False,
        "kv_cache_memory_bytes": settings.kv_cache_bytes or DEFAULT_CPU_KV_BYTES,
    }


def _gpu_args(settings: EngineSettings) -> dict[str, Any]:
    return {
        "dtype": settings.dtype,
        "enforce_eager": settings.enforce_eager is True,
        "kv_cache_memory_bytes": settings.kv_cache_bytes,
        "gpu_memory_utilization": settings.gpu_memory_utilization,
    }
