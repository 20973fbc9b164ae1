"""Adapters in the worker's host memory: read and checked on a thread beside the engine's steps. A step then sees a loaded
adapter through a few dictionary writes, where the slots hold nothing; elsewhere vLLM copies it into its slot.

Nothing is ever evicted from host memory here: the engine pool decides that.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from tunedock_registry.background import give_way
from vllm.lora.request import LoRARequest

from . import affinity, slot_table
from .reading import Reader, Staged, StageError


@dataclass(frozen=True, slots=True)
class _Job:
    """`load`: into a slot as well."""

    work: Future[Staged]
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

    def begin(self, request: LoRARequest, load: bool, known: bool = False) -> None:
        """Into host memory, and with `load` into a slot. Does nothing while the same adapter is being worked on. `known`: see
        `Reader.read`."""
        self.collect()
        lora_id = request.lora_int_id
        if lora_id in self._jobs:
            return
        if lora_id not in self._staged:
            self._jobs[lora_id] = _Job(self._thread.submit(self._reader.read, request, known), load)
        elif load:
            self._load(lora_id)

    def finished(self, lora_id: int) -> bool:
        """Takes the thread's result over. Raises StageError when it failed, KeyError when it was never begun."""
        if lora_id not in self._jobs and lora_id in self._staged:
            return True
        if not self._jobs[lora_id].work.done():
            return False
        job = self._jobs.pop(lora_id)
        self._staged[lora_id] = job.work.result()
        if job.load:
            self._load(lora_id)
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
        """The thread may still be at work on it; what it finds is nobody's then."""
        slot_table.forget(self._manager._adapter_manager, lora_id)
        self._jobs.pop(lora_id, None)
        self._staged.pop(lora_id, None)

    def ids(self) -> list[int]:
        self.collect()
        return list(self._staged)

    def _load(self, lora_id: int) -> None:
        self._manager.add_adapter(LoRARequest(lora_name=str(lora_id), lora_int_id=lora_id, lora_path="staged"))


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
