"""`LocalEngine`: the one-machine engine pool, an `AsyncLLM` in this process."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from tunedock_api.errors import Unavailable
from vllm.v1.engine.async_llm import AsyncLLM

from ..pool import EngineFacts, EngineSettings, GenerateRequest, Pinned, Residency, Scores, SseStream
from . import errors
from .facts import read_facts
from .generate import Deltas
from .hosted import HostedAdapters
from .intake import VerifiedFiles
from .llm import start_llm, stop_llm, with_slots
from .openai import OpenAIFrontEnd
from .progress import Progress
from .score import score
from .streams import Tracked

# vLLM's own warm-up adapters use the ids from 1 to max_loras.
_FIRST_ID = 1_000


@dataclass(frozen=True, slots=True)
class _Run:
    """One life of the engine."""

    llm: AsyncLLM
    front: OpenAIFrontEnd
    adapters: HostedAdapters
    progress: Progress

    def alive(self) -> bool:
        return not self.llm.errored and not self.progress.hangs(self.llm.get_num_unfinished_requests())


class LocalEngine:
    """Implements `EnginePool`. All methods belong to the event loop that called `start`."""

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = with_slots(settings)
        self._ids = itertools.count(_FIRST_ID)
        self._scores = itertools.count()
        self._files = VerifiedFiles()
        self._facts: EngineFacts | None = None
        self._run: _Run | None = None

    @property
    def facts(self) -> EngineFacts:
        if self._facts is None:
            raise Unavailable("The engine has not started yet.", retry_after_s=5.0)
        return self._facts

    async def start(self) -> None:
        await self.stop()
        progress = Progress(self._settings.hang_s)
        llm = await asyncio.to_thread(start_llm, self._settings, progress)
        adapters = HostedAdapters(llm, self._settings, self._files, self._ids)
        self._run = _Run(llm, OpenAIFrontEnd(llm, self._settings), adapters, progress)
        self._facts = await read_facts(llm, self._settings)

    async def stop(self) -> None:
        run, self._run = self._run, None
        if run is not None:
            await stop_llm(run.llm)

    def alive(self) -> bool:
        return self._run is not None and self._run.alive()

    async def stage(self, pinned: Pinned) -> None:
        await self._live().adapters.stage(pinned)

    async def load(self, pinned: Pinned) -> None:
        await self._live().adapters.load(pinned)

    async def unload(self, digest: str) -> None:
        if self.alive():
            await self._live().adapters.unload(digest)

    async def pin(self, digest: str) -> None:
        await self._live().adapters.pin(digest)

    async def residency(self) -> dict[str, Residency]:
        return await self._live().adapters.residency()

    async def chat(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        return await self._answer("chat", body, pinned, request_id)

    async def complete(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        return await self._answer("complete", body, pinned, request_id)

    async def respond(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        return await self._answer("respond", body, pinned, request_id)

    def generate(self, request: GenerateRequest, pinned: Pinned) -> Deltas:
        run = self._live()
        return Deltas(run.llm, run.front, request, pinned, partial(run.adapters.enter, pinned))

    async def score(self, token_ids: Sequence[int], pinned: Pinned) -> Scores:
        run = self._live()
        lora, done = run.adapters.enter(pinned)
        try:
            return await score(run.llm, token_ids, lora, f"score-{next(self._scores)}")
        except Exception as error:  # edge to vLLM
            raise errors.from_exception(error) from error
        finally:
            done()

    async def _answer(
        self, kind: str, body: dict[str, Any], pinned: Pinned, request_id: str
    ) -> dict[str, Any] | SseStream:
        run = self._live()
        lora, done = run.adapters.enter(pinned)
        handlers = {"chat": run.front.chat, "complete": run.front.complete, "respond": run.front.respond}
        try:
            answer = await handlers[kind](body, pinned, lora, request_id)
        except BaseException:
            done()
            raise
        if isinstance(answer, dict):
            done()
            return answer
        return Tracked(answer, done)

    def _live(self) -> _Run:
        if self._run is None or not self._run.alive():
            raise errors.engine_down()
        return self._run
