"""Uploads leave the loop to running streams; what is small, and what has the server for itself, is not delayed."""

from __future__ import annotations

import pytest
from starlette.types import Message
from tunedock_server.http.routing import BESIDE_STREAMS_BYTES_PER_S, LARGE_BYTES, paced


class Pauses:
    """Sleeps not, but remembers for how long it was asked to."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.seconds.append(seconds)


async def read(body: list[bytes], streaming: bool, pauses: Pauses) -> bytes:
    pieces = iter(body)

    async def receive() -> Message:
        return {"type": "http.request", "body": next(pieces)}

    slowly = paced(receive, lambda: streaming, pauses.sleep)
    return b"".join([(await slowly())["body"] for _ in body])


async def test_a_large_body_beside_streams_comes_at_the_chosen_pace() -> None:
    body, pauses = [b"a" * 100_000, b"b" * 200_000], Pauses()
    assert await read(body, True, pauses) == b"".join(body)
    assert sum(pauses.seconds) == pytest.approx(300_000 / BESIDE_STREAMS_BYTES_PER_S)


async def test_without_streams_nothing_is_delayed() -> None:
    pauses = Pauses()
    await read([b"a" * 100_000], False, pauses)
    assert pauses.seconds == []


async def test_a_question_is_not_delayed() -> None:
    pauses = Pauses()
    await read([b"a" * (LARGE_BYTES - 1)], True, pauses)
    assert pauses.seconds == []


async def test_the_end_of_a_connection_goes_through() -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    pauses = Pauses()
    assert await paced(receive, lambda: True, pauses.sleep)() == {"type": "http.disconnect"}
    assert pauses.seconds == []
