"""Streams over gRPC share one call, and each is still on its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from support.fake_server import BASE, FakeServer, fake_server
from tunedock import AsyncTuneDock, BadInput, NotFound
from tunedock.grpc_streams import Streams
from tunedock_api.v1 import inference_pb2 as pb
from tunedock_api.v1.inference_pb2_grpc import InferenceStub

HELLO = pb.ChatRequest(model=BASE, messages=[pb.Message(role="user", content="hello")])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    with fake_server(tmp_path_factory.mktemp("streams")) as running:
        yield running


class Counted:
    """Begins calls on a channel and remembers them."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = InferenceStub(channel)
        self.calls: list[Any] = []

    def __call__(self) -> Any:
        self.calls.append(self._stub.StreamMany())
        return self.calls[-1]


@asynccontextmanager
async def connected(live: FakeServer) -> AsyncIterator[tuple[Streams, Counted]]:
    async with grpc.aio.insecure_channel(live.grpc) as channel:
        begin = Counted(channel)
        streams = Streams(begin)
        yield streams, begin
        await streams.aclose()


async def text_of(streams: Streams) -> str:
    return "".join([c.text async for part in streams.stream(HELLO, 10) for c in part.chunk.choices])


async def test_streams_at_once_and_after_each_other_share_one_call(live: FakeServer) -> None:
    async with connected(live) as (streams, begin):
        texts = await asyncio.gather(*(text_of(streams) for _ in range(6)))
        texts.append(await text_of(streams))
        assert len(set(texts)) == 1
        assert len(begin.calls) == 1


async def test_a_call_that_broke_fails_its_streams_and_the_next_stream_begins_another(live: FakeServer) -> None:
    live.pool.behaviour.token_s = 0.2
    try:
        async with connected(live) as (streams, begin):
            running = streams.stream(HELLO, 10), streams.stream(HELLO, 10)
            for one in running:
                await anext(one)
            begin.calls[0].cancel()
            for one in running:
                with pytest.raises(grpc.aio.AioRpcError):
                    _ = [part async for part in one]
            live.pool.behaviour.token_s = 0.0
            assert await text_of(streams)
            assert len(begin.calls) == 2
    finally:
        live.pool.behaviour.token_s = 0.0


async def test_one_streams_error_is_its_own(live: FakeServer) -> None:
    async with AsyncTuneDock(live.url, grpc=live.grpc) as client:

        async def words(model: str) -> list[str]:
            return [piece.text async for piece in client.stream("hello", model=model)]

        good, bad = await asyncio.gather(words(BASE), words("nobody@9"), return_exceptions=True)
        assert isinstance(bad, NotFound)
        assert isinstance(good, list)
        assert "".join(good)


async def test_a_tool_call_arrives_as_openai_streams_it(live: FakeServer) -> None:
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    live.pool.behaviour.calls_tools = True
    try:
        found = []
        for target in (None, live.grpc):
            async with AsyncTuneDock(live.url, grpc=target) as client:
                raw = [piece.raw async for piece in client.stream("hi", model=BASE, tools=[tool])]
            found.append([piece["choices"][0]["delta"]["tool_calls"] for piece in raw if piece["choices"]])
        assert found[0] == found[1]
        assert found[1][0][0]["function"] == {"name": "weather", "arguments": ""}
    finally:
        live.pool.behaviour.calls_tools = False


async def test_an_option_that_grpc_does_not_carry_is_refused_before_anything_is_sent(live: FakeServer) -> None:
    asked = len(live.pool.requests)
    async with AsyncTuneDock(live.url, grpc=live.grpc) as client:
        with pytest.raises(BadInput, match="ask over REST") as caught:
            await client.chat("hi", model=BASE, echo=True)
    assert caught.value.param == "echo"
    assert len(live.pool.requests) == asked
