"""A lease comes back on every path, and exactly once."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator

import pytest
from tunedock_server.leases import LeasedStream, Leases

DIGEST = "d" * 64


async def three_chunks() -> AsyncIterator[bytes]:
    for chunk in (b"a", b"b", b"c"):
        yield chunk


def stream_of(leases: Leases) -> LeasedStream[bytes]:
    return LeasedStream(three_chunks(), leases.acquire(DIGEST).release)


def test_released_twice_counts_once() -> None:
    leases = Leases()
    first, second = leases.acquire(DIGEST), leases.acquire(DIGEST)
    first.release()
    first.release()
    assert leases.count(DIGEST) == 1
    assert not first.held
    second.release()
    assert leases.in_use() == set()


def test_an_error_inside_hold_releases() -> None:
    leases = Leases()
    with pytest.raises(ZeroDivisionError), leases.hold(DIGEST):
        _ = 1 / 0
    assert leases.total() == 0


def test_a_lease_that_is_dropped_gives_itself_back() -> None:
    leases = Leases()
    leases.acquire(DIGEST)
    gc.collect()
    assert leases.count(DIGEST) == 0


async def test_a_stream_read_to_its_end_releases() -> None:
    leases = Leases()
    assert [chunk async for chunk in stream_of(leases)] == [b"a", b"b", b"c"]
    assert leases.count(DIGEST) == 0


async def test_a_stream_that_was_never_iterated_releases_on_close_and_on_drop() -> None:
    leases = Leases()
    await stream_of(leases).aclose()
    assert leases.count(DIGEST) == 0
    dropped = stream_of(leases)
    assert leases.count(DIGEST) == 1
    del dropped
    gc.collect()
    assert leases.count(DIGEST) == 0


async def test_a_stream_that_fails_or_is_cancelled_releases() -> None:
    leases = Leases()

    async def failing() -> AsyncIterator[bytes]:
        yield b"a"
        raise RuntimeError("engine died")

    stream = LeasedStream(failing(), leases.acquire(DIGEST).release)
    with pytest.raises(RuntimeError):
        _ = [chunk async for chunk in stream]
    assert leases.count(DIGEST) == 0

    async def endless() -> AsyncIterator[bytes]:
        yield b"a"
        await asyncio.sleep(60)

    hanging = LeasedStream(endless(), leases.acquire(DIGEST).release)
    task = asyncio.create_task(_drain(hanging))
    await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert leases.count(DIGEST) == 0


async def _drain(stream: LeasedStream[bytes]) -> None:
    async for _ in stream:
        pass


def test_the_base_model_has_leases_but_is_no_digest_in_use() -> None:
    leases = Leases()
    with leases.hold(None):
        assert leases.total() == 1
        assert leases.in_use() == set()
