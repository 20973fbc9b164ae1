"""Adapters in the worker's host memory: read, checked and packed on a thread beside the engine's steps, and, where the
slots are ours, copied into a reserved slot there too. A step then sees a loaded adapter through a few dictionary writes.

Nothing is ever evicted from host memory here: the engine pool decides that.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from tunedock_registry.background import give_way
from vllm.lora.request import LoRARequest

from . import affinity, slot_table
from .reading import Reader, Staged, StageError


@dataclass(frozen=True, slots=True)
class _Job:
    """`slot`: reserved for the copy, or None when only host memory is asked for or no slot could be spared."""

    work: Future[Staged]
    slot: int | None
    load: bool


class StagedAdapters:
    """`manager` is vLLM's worker LoRA manager. Every method belongs to the worker's main thread.

    One thread does the work, so loads are serial, in the order in which they were asked for.
    """

    def __init__(self, manager: Any) -> None:
        self._manager = manager
        self._reader = Reader(manager)
        self._staged: dict[int, Staged] = {}
        self._jobs: dict[int, _Job] = {}
        self._thread = ThreadPoolExecutor(1, "tunedock-stage", _keep_out_of_the_way)

    def begin(self, request: LoRARequest, load: bool) -> None:
        """Into host memory, and with `load` into a slot. Does nothing while the same adapter is being worked on."""
        self.collect()
        lora_id = request.lora_int_id
        if lora_id in self._jobs or (lora_id in self._staged and not load):
            return
        slot = slot_table.reserve(self._manager._adapter_manager, lora_id) if load and self._has_own_slots() else None
        work = self._thread.submit(_work, self._reader, request, self._staged.get(lora_id), slot)
        self._jobs[lora_id] = _Job(work, slot, load)

    def finished(self, lora_id: int) -> bool:
        """Takes the thread's result over. Raises StageError when it failed, KeyError when it was never begun."""
        if lora_id not in self._jobs and lora_id in self._staged:
            return True
        if not self._jobs[lora_id].work.done():
            return False
        self._settle(lora_id)
        job = self._jobs.pop(lora_id)
        self._staged[lora_id] = job.work.result()
        if job.load:
            self._manager.add_adapter(LoRARequest(lora_name=str(lora_id), lora_int_id=lora_id, lora_path="staged"))
        return True

    def reply(self, lora_id: int) -> Future[dict[str, str | bool]]:
        """Done as soon as the thread is, also in the middle of a step: what `outcome` says."""
        answer: Future[dict[str, str | bool]] = Future()
        if lora_id in self._jobs:
            self._jobs[lora_id].work.add_done_callback(lambda work: answer.set_result(outcome(work)))
        else:
            answer.set_result({"done": True})
        return answer

    def collect(self) -> None:
        """Takes over what the thread has finished; failures were already answered."""
        for lora_id in [lora_id for lora_id, job in self._jobs.items() if job.work.done()]:
            with suppress(StageError):
                self.finished(lora_id)

    def get(self, lora_id: int) -> Any:
        """What vLLM registers. Raises LookupError when it is not staged, which admission makes impossible in a step."""
        if lora_id not in self._staged:
            raise LookupError(f"adapter {lora_id} is not staged")
        staged = self._staged[lora_id]
        return staged if staged.model is None else staged.model

    def drop(self, lora_id: int) -> None:
        """Waits for the thread if it is at work on that very adapter: its slot must not be given away under it."""
        self._settle(lora_id, keep=False)
        self._jobs.pop(lora_id, None)
        self._staged.pop(lora_id, None)

    def settle_all(self) -> None:
        """Waits (milliseconds) until no slot is reserved: for the rare batch that needs every slot."""
        for lora_id in list(self._jobs):
            self._settle(lora_id)

    def _settle(self, lora_id: int, keep: bool = True) -> None:
        job = self._jobs.get(lora_id)
        if job is not None and job.slot is not None:
            packed = job.work.result().packed if job.work.exception() is None and keep else None
            slot_table.settle(self._manager._adapter_manager, job.slot, lora_id, packed)
            self._jobs[lora_id] = replace(job, slot=None)

    def ids(self) -> list[int]:
        self.collect()
        return list(self._staged)

    def _has_own_slots(self) -> bool:
        adapters = self._manager._adapter_manager
        layers = getattr(adapters, "tunedock_layers", {})
        return bool(layers) and len(layers) == len(adapters.modules)


def outcome(work: Future[Staged]) -> dict[str, str | bool]:
    """`{"done": True}`, with `kind` and `error` when it failed."""
    error = work.exception()
    if error is None:
        return {"done": True}
    return {"done": True, "kind": error.kind if isinstance(error, StageError) else "rejected", "error": str(error)}


def _keep_out_of_the_way() -> None:
    """On the thread. An OpenMP team of its own would make more compute threads than processors: libgomp stops spinning in
    the whole process then, and every operator of every later step has to wake its threads."""
    affinity.run_anywhere()
    give_way()
    torch.set_num_threads(1)


def _work(reader: Reader, request: LoRARequest, staged: Staged | None, slot: int | None) -> Staged:
    """On the thread. Torch gives the interpreter back while it copies, so steps run on."""
    staged = staged or reader.read(request)
    if slot is not None and staged.packed is not None:
        staged.packed.copy_into(slot)
    return staged
