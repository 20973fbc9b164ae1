"""A tracked stream reports its end exactly once on every path."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import pytest
from tunedock_server.engine.streams import Tracked


async def _three() -> AsyncGenerator[bytes, None]:
    for number in range(3):
        yield str(number).encode()


async def _fails() -> AsyncGenerator[bytes, None]:
    yield b"0"
    raise RuntimeError("engine")


async def test_a_stream_read_to_its_end_is_over_once() -> None:
    ended: list[int] = []
    stream = Tracked(_three(), lambda: ended.append(1))
    assert [chunk async for chunk in stream] == [b"0", b"1", b"2"]
    await stream.aclose()
    assert ended == [1]


async def test_a_stream_that_nobody_read_is_over_when_closed() -> None:
    ended: list[int] = []
    await Tracked(_three(), lambda: ended.append(1)).aclose()
    assert ended == [1]


async def test_a_stream_closed_half_way_is_over() -> None:
    ended: list[int] = []
    stream = Tracked(_three(), lambda: ended.append(1))
    assert await anext(stream) == b"0"
    assert ended == []
    await stream.aclose()
    assert ended == [1]


async def test_a_stream_that_fails_is_over() -> None:
    ended: list[int] = []
    stream = Tracked(_fails(), lambda: ended.append(1))
    await anext(stream)
    with pytest.raises(RuntimeError):
        await anext(stream)
    assert ended == [1]
