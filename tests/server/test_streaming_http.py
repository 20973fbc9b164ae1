"""`SseResponse`: readers that stall, readers that go away, and answers that run out of time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, MutableMapping
from typing import Any

from tunedock_server.http.streaming import SseResponse
from tunedock_server.leases import LeasedStream, Leases

Message = MutableMapping[str, Any]


class Reader:
    """The other end of a connection: each write takes `write_s`; it hangs up after `stays_s`."""

    def __init__(self, write_s: float = 0.0, stays_s: float = 60.0) -> None:
        self._write_s, self._stays_s = write_s, stays_s
        self.got: list[Message] = []

    async def send(self, message: Message) -> None:
        await asyncio.sleep(self._write_s)
        self.got.append(message)

    async def receive(self) -> Message:
        await asyncio.sleep(self._stays_s)
        return {"type": "http.disconnect"}

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.got)


async def numbers(count: int, every_s: float = 0.0) -> AsyncGenerator[bytes, None]:
    for number in range(count):
        await asyncio.sleep(every_s)
        yield b"data: %d\n\n" % number


async def answered(
    reader: Reader, source: AsyncGenerator[bytes, None], *, write_timeout_s: float = 60.0, deadline_s: float = 60.0
) -> float:
    """Seconds until the response was over, its lease given back."""
    leases = Leases()
    stream = LeasedStream(source, leases.acquire(None).release)
    began = time.monotonic()
    response = SseResponse(stream, {}, write_timeout_s=write_timeout_s, deadline=began + deadline_s)
    await response({"type": "http"}, reader.receive, reader.send)
    assert leases.total() == 0
    return time.monotonic() - began


async def test_a_reader_who_reads_gets_everything() -> None:
    reader = Reader()
    await answered(reader, numbers(3))
    assert reader.body == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert reader.got[-1]["more_body"] is False


async def test_a_reader_who_takes_nothing_is_dropped_after_the_limit() -> None:
    reader = Reader(write_s=60.0)
    assert 0.2 <= await answered(reader, numbers(3), write_timeout_s=0.2) < 2.0
    assert reader.got == []


async def test_a_slow_reader_is_not_a_stalled_one() -> None:
    reader = Reader(write_s=0.15)
    assert await answered(reader, numbers(4), write_timeout_s=0.4) > 0.6
    assert reader.got[-1]["more_body"] is False


async def test_a_slow_engine_is_not_a_stalled_reader() -> None:
    reader = Reader()
    await answered(reader, numbers(3, every_s=0.2), write_timeout_s=0.1)
    assert reader.body.endswith(b"data: 2\n\n")


async def test_an_answer_that_runs_out_of_time_ends_with_an_error_event() -> None:
    reader = Reader()
    await answered(reader, numbers(100, every_s=0.05), deadline_s=0.2)
    assert b"deadline_exceeded" in reader.body
    assert reader.got[-1]["more_body"] is False


async def test_nothing_runs_on_for_a_reader_who_has_gone() -> None:
    assert await answered(Reader(stays_s=0.1), numbers(100, every_s=0.05)) < 2.0
