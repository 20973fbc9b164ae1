"""Callers of the three gateways that do as little as they can: they share the cores with what is measured.

While an answer runs they only note when bytes came; what the bytes say is read when the answer is whole.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import grpc
from tunedock_api.v1 import inference_pb2 as pb
from tunedock_registry.models import DEFAULT_MODEL

MAX_TOKENS = 64
QUESTION = "Write down the numbers from one to a hundred, one after the other, in words."
ENDED = b"0\r\n\r\n"
_METHOD = "/tunedock_api.v1.Inference/"
_TOKEN = b'"delta":{"content":"'
_EVENT = re.compile(rb"data: (\{.*?\})\n\n", re.S)


@dataclass
class Answer:
    """`times` (seconds, monotonic) of the beginning and of every arrival of tokens."""

    times: list[float] = field(default_factory=lambda: [time.perf_counter()])
    text: str = ""


Ask = Callable[[], Awaitable[Answer]]


class RestCaller(asyncio.Protocol):
    """One connection that is kept, one request at a time."""

    def __init__(self, base_url: str) -> None:
        parts = urlsplit(base_url)
        body = json.dumps({
            "model": DEFAULT_MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": MAX_TOKENS,
            "temperature": 0, "stream": True, "ignore_eos": True,
        })  # fmt: skip
        head = (
            f"POST {parts.path}/chat/completions HTTP/1.1\r\nhost: {parts.netloc}\r\ncontent-type: application/json\r\n"
        )
        self._host, self._port = parts.hostname or "", parts.port or 0
        self._request = f"{head}content-length: {len(body)}\r\n\r\n{body}".encode()
        self._transport: Any = None
        self._answer = Answer()
        self._received: list[bytes] = []
        self._whole: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if _TOKEN in data:
            self._answer.times.append(time.perf_counter())
        self._received.append(data)
        if data.endswith(ENDED) and self._whole is not None and not self._whole.done():
            self._whole.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._whole is not None and not self._whole.done():
            self._whole.set_exception(exc or ConnectionResetError("the server hung up"))

    async def ask(self) -> Answer:
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():  # servers close what was idle for seconds
            await loop.create_connection(lambda: self, self._host, self._port)
        self._answer, self._received, self._whole = Answer(), [], loop.create_future()
        self._transport.write(self._request)
        await self._whole
        chunks = [json.loads(event) for event in _EVENT.findall(b"".join(self._received))]
        choices = (choice for chunk in chunks for choice in chunk["choices"])
        self._answer.text = "".join(choice["delta"].get("content") or "" for choice in choices)
        return self._answer


def _asked() -> pb.ChatRequest:
    sampling = pb.Sampling(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True)
    return pb.ChatRequest(model=DEFAULT_MODEL, messages=[pb.Message(role="user", content=QUESTION)], sampling=sampling)


class CallEach:
    """gRPC, one StreamChat call for every answer, on one connection for all."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.unary_stream(f"{_METHOD}StreamChat")
        self._request = _asked().SerializeToString()

    async def ask(self) -> Answer:
        answer, received = Answer(), []
        async for message in self._call(self._request):
            answer.times.append(time.perf_counter())
            received.append(message)
        answer.times.pop()  # the usage
        chunks = map(pb.GenerateChunk.FromString, received)
        answer.text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        return answer


class CallForAll:
    """gRPC, one StreamMany call for all answers."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._call: Any = channel.stream_stream(f"{_METHOD}StreamMany")()
        self._running: dict[int, tuple[Answer, asyncio.Future[None]]] = {}
        self._count = 0
        self._writing = asyncio.Lock()
        self._reading = asyncio.create_task(self._read())

    async def ask(self) -> Answer:
        self._count += 1
        number, whole = self._count, asyncio.get_running_loop().create_future()
        answer, _ = self._running[number] = Answer(), whole
        async with self._writing:
            await self._call.write(pb.StreamManyRequest(stream=number, chat=_asked()).SerializeToString())
        await whole
        return answer

    async def _read(self) -> None:
        async for raw in self._call:
            now = time.perf_counter()
            for part in pb.StreamManyResponse.FromString(raw).parts:
                answer, whole = self._running[part.stream]
                if part.chunk.choices:
                    answer.times.append(now)
                    answer.text += part.chunk.choices[0].text
                if part.HasField("end"):
                    del self._running[part.stream]
                    whole.set_result(None)

    async def close(self) -> None:
        self._call.cancel()
        await asyncio.gather(self._reading, return_exceptions=True)
