"""The adapters that one running engine holds: staged in host memory, in slots, pinned. Forgotten when the engine dies."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tunedock_api.errors import Conflict, Overloaded, Rejected, TuneDockError, Unavailable
from tunedock_registry import background
from vllm.lora.request import LoRARequest
from vllm.v1.engine.async_llm import AsyncLLM

from ..pool import EngineSettings, Pinned, Residency
from . import rpc
from .intake import VerifiedFiles

_POLL_FIRST_S, _POLL_LAST_S = 0.001, 0.02
_CHECKS = background.threads(4, "verify")
_PLACES: tuple[Residency, ...] = ("host", "slot", "pinned")


class HostedAdapters:
    """One name (the digest), one directory and one `lora_int_id` belong together for ever; ids come from `ids`.

    vLLM's caches key on each of the three, so none may ever be reused with another (vllm#42125, #47724).
    """

    def __init__(self, llm: AsyncLLM, settings: EngineSettings, files: VerifiedFiles, ids: Iterator[int]) -> None:
        self._llm, self._settings, self._files, self._ids = llm, settings, files, ids
        self._resident: dict[str, LoRARequest] = {}
        self._staging: dict[str, asyncio.Task[None]] = {}
        self._loaded: set[str] = set()
        self._pinned: set[str] = set()
        self._running: Counter[str] = Counter()

    async def stage(self, pinned: Pinned) -> None:
        if pinned.digest is not None and pinned.digest not in self._resident:
            await self._bring(pinned, pinned.digest, load=False)

    async def load(self, pinned: Pinned) -> None:
        if pinned.digest is not None:
            await self._bring(pinned, pinned.digest, load=True)
            if pinned.digest not in self._loaded:  # the caller that came first only wanted it staged
                await self._bring(pinned, pinned.digest, load=True)

    async def _bring(self, pinned: Pinned, digest: str, load: bool) -> None:
        """One piece of work for all who wait for the same version."""
        task = self._staging.get(digest)
        if task is None:
            self._admit(digest)
            task = self._staging[digest] = asyncio.create_task(self._stage(pinned, digest, load))
            task.add_done_callback(lambda done: self._work_is_over(digest, done))
        # One caller that gives up must not take the load away from the others.
        await asyncio.shield(task)

    def _work_is_over(self, digest: str, task: asyncio.Task[None]) -> None:
        del self._staging[digest]
        if not task.cancelled():
            task.exception()  # seen, even when every caller has gone

    def _admit(self, digest: str) -> None:
        taken = len(self._resident.keys() | self._staging.keys() | {digest})
        if taken > host_slots(self._settings):
            raise Overloaded(
                f"All {host_slots(self._settings)} host places for adapters are taken.",
                "adapter_queue_full",
                retry_after_s=1.0,
            )

    async def _stage(self, pinned: Pinned, digest: str, load: bool) -> None:
        lora = self._resident.get(digest)
        if lora is not None:
            state = await self._brought(lora, load, known=True)
        elif pinned.path is None:
            raise Unavailable(f"{pinned.public} has no files.", "adapter_unavailable")
        else:
            lora = LoRARequest(lora_name=digest, lora_int_id=next(self._ids), lora_path=str(pinned.path))
            state = await self._verified(pinned.path, pinned.public, lora, load)
        if "error" in state:
            message = f"{pinned.public} cannot be loaded: {state['error']}."
            raise Rejected(message) if state["kind"] == "rejected" else Unavailable(message, "adapter_unavailable")
        self._resident[digest] = lora
        if load:
            self._loaded.add(digest)

    async def _verified(self, path: Path, public: str, lora: LoRARequest, load: bool) -> dict[str, Any]:
        """Hashes the files while the engine reads them, on another core. No request can use them before both are done.

        Raises Unavailable when they are not what was published; the engine forgets them then.
        """
        if self._files.known(path, lora.lora_name):
            return await self._brought(lora, load, known=True)
        to_hash = await asyncio.to_thread(self._files.measure, path, lora.lora_name, public)
        bringing = asyncio.create_task(self._brought(lora, load, known=False))
        try:
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(_CHECKS, self._files.verify, path, lora.lora_name, public, to_hash)
        except Unavailable:
            with suppress(TuneDockError):
                await bringing
                await self._call("tunedock_unload", lora.lora_int_id)
            raise
        return await bringing

    async def _brought(self, lora: LoRARequest, load: bool, known: bool) -> dict[str, Any]:
        """`known`: these very files were checked before."""
        call = self._llm.engine_core.call_utility_async(
            "tunedock_bring", lora.lora_int_id, lora.lora_name, lora.lora_path, load, known
        )
        state = await rpc.wait(self._llm, call, timeout_s=self._settings.call_timeout_s)
        return dict(state) if state["done"] else await self._staged(lora.lora_int_id)

    async def _staged(self, lora_id: int) -> dict[str, Any]:
        """Where workers are processes of their own, which cannot answer by themselves."""
        wait_s = _POLL_FIRST_S
        while not (state := await self._call("tunedock_staged", lora_id))["done"]:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _POLL_LAST_S)
        return dict(state)

    async def unload(self, digest: str) -> None:
        if self._running[digest]:
            raise Conflict(f"Version {digest[:12]} still answers {self._running[digest]} requests.", "version_in_use")
        del self._running[digest]
        lora = self._resident.pop(digest, None)
        self._loaded.discard(digest)
        self._pinned.discard(digest)
        if lora is not None:
            await self._call("tunedock_unload", lora.lora_int_id)

    async def pin(self, digest: str) -> None:
        if digest in self._pinned:
            return
        if digest not in self._loaded:
            raise Conflict(f"Version {digest[:12]} is not loaded; load it before pinning it.", "version_not_ready")
        if len(self._pinned) >= self._settings.max_loras - 1:
            raise Conflict(
                f"{len(self._pinned)} of {self._settings.max_loras} slots are pinned and one must stay free; "
                "unload a pinned version first.",
                "version_not_ready",
            )
        self._pinned.add(digest)
        await self._call("tunedock_pin", self._resident[digest].lora_int_id)

    async def residency(self) -> dict[str, Residency]:
        places = await self._call("tunedock_residency")
        digest_of = {lora.lora_int_id: digest for digest, lora in self._resident.items()}
        return {digest_of[lora_id]: place for place in _PLACES for lora_id in places[place] if lora_id in digest_of}

    def request_for(self, pinned: Pinned) -> LoRARequest | None:
        """None for the base. Raises Unavailable: vLLM would read the directory in the middle of a step."""
        if pinned.digest is None:
            return None
        if pinned.digest not in self._resident:
            raise Unavailable(f"{pinned.public} is not in this engine's memory.", "adapter_unavailable")
        return self._resident[pinned.digest]

    def enter(self, pinned: Pinned) -> tuple[LoRARequest | None, Callable[[], None]]:
        """The adapter of a request that begins now, and what to call once when it is over."""
        lora = self.request_for(pinned)
        if lora is None:
            return None, lambda: None
        self._running[lora.lora_name] += 1
        return lora, lambda: self._running.subtract({lora.lora_name: 1})

    async def _call(self, method: str, *args: Any) -> Any:
        return await rpc.call(self._llm, method, *args, timeout_s=self._settings.call_timeout_s)


def host_slots(settings: EngineSettings) -> int:
    return max(settings.max_cpu_loras, settings.max_loras)
