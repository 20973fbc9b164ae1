"""A small open client: streams with a time for every token, at little cost to the two cores it shares with the server."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

TIMEOUT_S = 1200.0  # stock takes minutes for 32 answers where bfloat16 is slow


@dataclass(frozen=True)
class Answer:
    """One streamed answer. `times` are those of its tokens on the monotonic clock, in seconds."""

    asked_for: str
    started: float
    times: tuple[float, ...]
    models: frozenset[str]
    text: str
    error: str | None = None

    @property
    def model(self) -> str:
        return "+".join(sorted(self.models))

    @property
    def first_token_s(self) -> float:
        return self.times[0] - self.started

    @property
    def gaps_s(self) -> list[float]:
        """Inter-token latencies."""
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


@dataclass
class Client:
    """Of one OpenAI-compatible server."""

    session: aiohttp.ClientSession
    base_url: str

    async def stream(self, model: str, messages: Sequence[dict[str, str]], max_tokens: int, **body: Any) -> Answer:
        """Streams one greedy answer. Errors become part of it."""
        request = {
            "model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0, "stream": True, **body
        }  # fmt: skip
        started, times, models, text = time.perf_counter(), [], set(), []
        error = None
        try:
            async for chunk in self._chunks(request):
                models.add(str(chunk["model"]))
                content = "".join(choice["delta"].get("content") or "" for choice in chunk["choices"])
                if content:
                    times.append(time.perf_counter())
                    text.append(content)
        except (aiohttp.ClientError, TimeoutError, RefusedError) as failure:
            error = f"{type(failure).__name__}: {failure}"
        return Answer(model, started, tuple(times), frozenset(models), "".join(text), error)

    async def _chunks(self, request: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        async with self.session.post(f"{self.base_url}/chat/completions", json=request) as response:
            if response.status != 200:
                raise RefusedError(f"{response.status} {(await response.text())[:500]}")
            async for line in response.content:
                if line.startswith(b"data: {"):
                    chunk: dict[str, Any] = json.loads(line[6:])
                    if "error" in chunk:
                        raise RefusedError(str(chunk["error"]))
                    yield chunk

    async def call(self, method: str, path: str, **body: Any) -> Any:
        """A JSON call. Raises RefusedError for any status but 2xx."""
        async with self.session.request(method, f"{self.base_url}{path}", json=body or None) as response:
            text = await response.text()
            if response.status >= 300:
                raise RefusedError(f"{method} {path}: {response.status} {text[:500]}")
            return json.loads(text) if text.startswith(("{", "[")) else text


class RefusedError(Exception):
    """The server said no."""


@asynccontextmanager
async def client(base_url: str) -> AsyncIterator[Client]:
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield Client(session, base_url)


@dataclass
class Streams:
    """`num` callers that stream one answer after the other until told to stop.

    With `least_tokens` the answers have lengths from there to `max_tokens`, always the same ones. Equal lengths keep all
    callers in step: every prompt is then computed while nobody streams, and no latency between tokens shows it.
    """

    client: Client
    pick: Callable[[int], tuple[str, Sequence[dict[str, str]]]]
    num: int
    max_tokens: int
    answers: list[Answer] = field(default_factory=list)
    body: dict[str, Any] = field(default_factory=dict)
    least_tokens: int | None = None
    _count: int = 0
    _stopping: bool = False
    _rng: random.Random = field(default_factory=lambda: random.Random(0))

    async def run_for(self, seconds: float) -> list[Answer]:
        """Streams for `seconds`, lets what runs finish, and returns every answer."""
        async with asyncio.TaskGroup() as group:
            for _ in range(self.num):
                group.create_task(self._ask_on())
            await asyncio.sleep(seconds)
            self._stopping = True
        return self.answers

    async def _ask_on(self) -> None:
        while not self._stopping:
            self._count += 1
            model, messages = self.pick(self._count)
            num_tokens = self._rng.randint(self.least_tokens or self.max_tokens, self.max_tokens)
            self.answers.append(await self.client.stream(model, messages, num_tokens, **self.body))


def gaps_ms(answers: Sequence[Answer]) -> list[float]:
    """All inter-token latencies, in ms."""
    return [1000 * gap for answer in answers for gap in answer.gaps_s]
