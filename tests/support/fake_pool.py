"""An engine pool without an engine that really behaves: it holds to its limits, answers differently for each digest,
reads the version's files when it stages one, and fails or dies on command."""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import Counter
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunedock_api.errors import BadInput, Conflict, Overloaded, Rejected, TuneDockError, Unavailable
from tunedock_api.manifest import WEIGHTS_FILE
from tunedock_registry.models.facts import BaseFacts
from tunedock_server.pool import (
    EngineFacts,
    FinishReason,
    GenerateDelta,
    GenerateRequest,
    Pinned,
    Residency,
    Scores,
    SseStream,
)


def word_of(digest: str | None) -> str:
    """What every answer under that digest consists of."""
    return "base" if digest is None else f"w{digest[:8]}"


def logprob_of(digest: str | None, tokens: Sequence[int], position: int) -> float:
    """A stable number in (-2, 0) for one token under one digest."""
    text = f"{digest}:{list(tokens[: position + 1])}".encode()
    return -2.0 * int.from_bytes(hashlib.sha256(text).digest()[:4], "big") / 2**32


def top1_of(digest: str | None, tokens: Sequence[int], position: int) -> int:
    return hashlib.sha256(f"{digest}:{position}:{tokens[position]}".encode()).digest()[0] % 128


@dataclass
class Behaviour:
    """What a test may turn. Times in seconds."""

    tokens: int = 5
    token_s: float = 0.0
    load_s: float = 0.0
    start_s: float = 0.0
    same_as_base: set[str] = field(default_factory=set)  # digests without effect
    all_wrong: bool = False  # every adapter's scores differ from any probe
    load_error: TuneDockError | None = None
    start_error: TuneDockError | None = None
    start_errors_left: int = 0
    stream_error_after: int | None = None
    calls_tools: bool = False  # a streamed chat with tools calls the first of them, in pieces
    unloaded: asyncio.Event | None = None  # when set, unloads are answered after it; their places are free before
    hold: asyncio.Event | None = None  # when set, generations wait for it after their first token


class FakePool:
    """`calls` counts what was asked; `busy` is the number of running generations per digest."""

    def __init__(self, base: BaseFacts, max_loras: int = 2, max_cpu_loras: int = 4, max_model_len: int = 2048) -> None:
        self._facts = EngineFacts(
            model_id=base.identity.id,
            base=base,
            max_model_len=max_model_len,
            max_loras=max_loras,
            max_cpu_loras=max_cpu_loras,
            max_lora_rank=base.max_rank,
            lora_modules=("q_proj", "v_proj"),
            dtype="bfloat16",
            bytes_per_slot=1 << 20,
            kv_blocks=128,
            block_size=16,
            lora_backend="tunedock-cpu",
        )
        self.behaviour = Behaviour()
        self.calls: Counter[str] = Counter()
        self.busy: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.requests: list[GenerateRequest] = []
        self.most_distinct_busy = 0
        self._alive = False
        self._host: dict[str, float] = {}
        self._slots: dict[str, float] = {}
        self._staging: set[str] = set()
        self.most_staging = 0
        self._pins: set[str] = set()

    @property
    def facts(self) -> EngineFacts:
        return self._facts

    def degrade(self, why: str) -> None:
        self._facts = replace(self._facts, degraded=why)

    async def start(self) -> None:
        self.calls["start"] += 1
        await asyncio.sleep(self.behaviour.start_s)
        if self.behaviour.start_error and self.behaviour.start_errors_left:
            self.behaviour.start_errors_left -= 1
            raise self.behaviour.start_error
        self._host.clear()
        self._slots.clear()
        self._pins.clear()
        self._alive = True

    async def stop(self) -> None:
        self._alive = False

    def die(self) -> None:
        """The engine process is gone: running generations fail, everything in memory is lost."""
        self._alive = False

    def alive(self) -> bool:
        return self._alive

    async def stage(self, pinned: Pinned) -> None:
        self.calls["stage"] += 1
        await self._stage(pinned)

    async def _stage(self, pinned: Pinned) -> None:
        self._check_alive()
        digest, path = _adapter(pinned)
        if digest in self._host:
            return
        # Before it waits for anything, as the engine says it.
        if len(self._host.keys() | self._staging | {digest}) > self._facts.max_cpu_loras:
            raise Overloaded("host memory is full", "adapter_queue_full", retry_after_s=1)
        self._staging.add(digest)
        self.most_staging = max(self.most_staging, len(self._staging))
        try:
            await asyncio.sleep(self.behaviour.load_s)
            if self.behaviour.load_error:
                raise self.behaviour.load_error
            _read_weights(path, pinned.public)
            self._host[digest] = time.monotonic()
        finally:
            self._staging.discard(digest)

    async def load(self, pinned: Pinned) -> None:
        self.calls["load"] += 1
        await self._stage(pinned)
        digest, _ = _adapter(pinned)
        if digest not in self._slots and len(self._slots) >= self._facts.max_loras:
            free = [(used, other) for other, used in self._slots.items() if other not in self._pins]
            del self._slots[min(free)[1]]
        self._slots[digest] = time.monotonic()

    async def unload(self, digest: str) -> None:
        self.calls["unload"] += 1
        if self.busy[digest]:
            raise AssertionError("unloaded while a request was running")
        for place in (self._host, self._slots):
            place.pop(digest, None)
        self._pins.discard(digest)
        if self.behaviour.unloaded is not None:
            await self.behaviour.unloaded.wait()

    async def pin(self, digest: str) -> None:
        if digest not in self._slots or len(self._pins | {digest}) >= self._facts.max_loras:
            raise Conflict("not loaded, or no pins left", "version_in_use")
        self._pins.add(digest)

    async def residency(self) -> dict[str, Residency]:
        states: dict[str, Residency] = dict.fromkeys(self._host, "host")
        states |= dict.fromkeys(self._slots, "slot")
        return states | dict.fromkeys(self._pins, "pinned")

    async def chat(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        if not body.get("messages"):
            raise BadInput("messages must not be empty", param="messages")
        return await self._answer(body, pinned, request_id, chat=True)

    async def complete(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        return await self._answer(body, pinned, request_id, chat=False)

    async def respond(self, body: dict[str, Any], pinned: Pinned, request_id: str) -> dict[str, Any] | SseStream:
        """The whole answer only: what streams is tried on the real engine."""
        self.bodies.append(body)
        words = [word async for word in self._words(pinned, body.get("max_output_tokens"))]
        part = {"type": "output_text", "text": " ".join(words), "annotations": []}
        item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        head = {"id": f"resp_{request_id}", "object": "response", "created_at": 0.0, "model": pinned.public}
        rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "status": "completed"}
        return {**head, **rest, "output": [item]}

    async def _answer(
        self, body: dict[str, Any], pinned: Pinned, request_id: str, chat: bool
    ) -> dict[str, Any] | SseStream:
        self.bodies.append(body)
        self._check_alive()
        if len(json.dumps(body)) > 4 * self._facts.max_model_len:
            raise BadInput(
                f"The prompt is longer than the context of {self._facts.max_model_len} tokens.",
                "context_length_exceeded",
                param="messages" if chat else "prompt",
            )
        if body.get("stream"):
            return self._stream(body, pinned, request_id, chat)
        words = [word async for word in self._words(pinned, body.get("max_tokens"))]
        text = " ".join(words)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
        usage = {"prompt_tokens": 3, "completion_tokens": len(words), "total_tokens": 3 + len(words)}
        kind = "chat.completion" if chat else "text_completion"
        choices = [{**choice, "index": i} for i in range(body.get("n") or 1)]
        head = {"id": request_id, "object": kind, "created": int(time.time()), "model": pinned.public}
        return {**head, "choices": choices, "usage": usage}

    async def _stream(
        self, body: dict[str, Any], pinned: Pinned, request_id: str, chat: bool
    ) -> AsyncGenerator[bytes, None]:
        kind = "chat.completion.chunk" if chat else "text_completion"
        head = {"id": request_id, "object": kind, "created": 0, "model": pinned.public}
        count = 0
        async for word in self._words(pinned):
            choice: dict[str, Any] = {"index": 0, "finish_reason": None, "token_ids": [count]}
            choice |= {"delta": self._delta(body, word, count)} if chat else {"text": word}
            count += 1
            yield _event({**head, "choices": [choice]})
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
            yield _event({**head, "choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    def _delta(self, body: dict[str, Any], word: str, place: int) -> dict[str, Any]:
        if not (self.behaviour.calls_tools and body.get("tools")):
            return {"role": "assistant", "content": word}
        name = body["tools"][0]["function"]["name"]
        first = {"id": "call_1", "type": "function", "function": {"name": name, "arguments": ""}}
        rest = {"function": {"arguments": "{" if place == 1 else " "}}
        return {"tool_calls": [{"index": 0, **(rest if place else first)}]}

    async def _words(self, pinned: Pinned, most: int | None = None) -> AsyncGenerator[str, None]:
        digest = pinned.digest
        self._check_runnable(digest)
        self.busy[digest or ""] += 1
        self.most_distinct_busy = max(self.most_distinct_busy, sum(1 for d, n in self.busy.items() if d and n))
        try:
            for index in range(min(self.behaviour.tokens, most or self.behaviour.tokens)):
                await asyncio.sleep(self.behaviour.token_s)
                self._check_runnable(digest)
                if self.behaviour.stream_error_after == index:
                    raise Unavailable("the engine stopped in the middle of this answer", retry_after_s=1)
                yield word_of(digest)
                if self.behaviour.hold is not None:
                    await self.behaviour.hold.wait()
        finally:
            self.busy[digest or ""] -= 1

    def _check_runnable(self, digest: str | None) -> None:
        self._check_alive()
        if digest is not None and digest not in self._host:
            raise Unavailable("that version is not staged in this engine", "adapter_unavailable")

    def _check_alive(self) -> None:
        if not self._alive:
            raise Unavailable("the engine is not running", "engine_unavailable", retry_after_s=1)

    async def generate(self, request: GenerateRequest, pinned: Pinned) -> AsyncGenerator[GenerateDelta, None]:
        """The words of `chat`, in one delta per word and answer."""
        self.requests.append(request)
        count = 0
        async for word in self._words(pinned):
            count += 1
            finish: FinishReason | None = "length" if count == self.behaviour.tokens else None
            for index in range(request.sampling.n):
                text = word if count == 1 else f" {word}"
                yield GenerateDelta(
                    index,
                    text,
                    (count,),
                    finish_reason=finish,
                    prompt_tokens=3,
                    completion_tokens=count,
                    more=index + 1 < request.sampling.n,
                )

    async def score(self, token_ids: Sequence[int], pinned: Pinned) -> Scores:
        self.calls["score"] += 1
        self._check_runnable(pinned.digest)
        digest = pinned.digest
        if digest in self.behaviour.same_as_base:
            digest = None
        if digest is not None and self.behaviour.all_wrong:
            digest = "wrong"
        positions = range(1, len(token_ids))
        return Scores(
            tuple(logprob_of(digest, token_ids, i) for i in positions),
            tuple(top1_of(digest, token_ids, i) for i in positions),
        )


def _event(shown: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(shown)}\n\n".encode()


def _adapter(pinned: Pinned) -> tuple[str, Path]:
    if pinned.digest is None or pinned.path is None:
        raise Rejected("the base model is not an adapter")
    return pinned.digest, pinned.path


def _read_weights(path: Path, public: str) -> Mapping[str, Any]:
    """The header of the weights, as a real engine would read it."""
    try:
        raw = (path / WEIGHTS_FILE).read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header: dict[str, Any] = json.loads(raw[8 : 8 + length])
    except OSError as error:
        raise Unavailable(f"the files of {public} cannot be read", "adapter_unavailable") from error
    except ValueError as error:
        raise Rejected(f"the files of {public} are damaged") from error
    return header
