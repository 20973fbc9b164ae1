"""Uploads leave the loop to running streams; what is small, and what has the server for itself, is not delayed."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message
from tunedock_server.http.routing import BESIDE_STREAMS_BYTES_PER_S, LARGE_BYTES, paced


@pytest.fixture
def pauses_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was slept, one number a pause."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return pauses


async def read(body: list[bytes], streaming: bool) -> bytes:
    pieces = iter(body)

    async def receive() -> Message:
        return {"type": "http.request", "body": next(pieces)}

    slowly = paced(receive, lambda: streaming)
    return b"".join([(await slowly())["body"] for _ in body])


async def test_a_large_body_beside_streams_comes_at_the_chosen_pace(pauses_s: list[float]) -> None:
    body = [b"a" * 100_000, b"b" * 200_000]
    assert await read(body, streaming=True) == b"".join(body)
    assert sum(pauses_s) == pytest.approx(300_000 / BESIDE_STREAMS_BYTES_PER_S)


async def test_without_streams_nothing_is_delayed(pauses_s: list[float]) -> None:
    await read([b"a" * 100_000], streaming=False)
    assert pauses_s == []


async def test_a_question_is_not_delayed(pauses_s: list[float]) -> None:
    await read([b"a" * (LARGE_BYTES - 1)], streaming=True)
    assert pauses_s == []


async def test_the_end_of_a_connection_goes_through(pauses_s: list[float]) -> None:
    async def receive() -> Message:
        return {"type": "http.disconnect"}

    assert await paced(receive, lambda: True)() == {"type": "http.disconnect"}
    assert pauses_s == []
