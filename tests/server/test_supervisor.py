"""The process beside the server: started again when it ends, tried again when it cannot be started, never left behind."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import psutil
import pytest
from support.running import eventually
from tunedock_api.errors import Unavailable
from tunedock_server import supervisor
from tunedock_server.supervisor import Supervisor

SLEEPS = "import time; time.sleep(60)"
FORKS_AND_SLEEPS = "import os, time; os.fork(); time.sleep(60)"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_S", 0.01)


@asynccontextmanager
async def supervised(code: str, ended: Callable[[int], None] = lambda pid: None) -> AsyncIterator[Supervisor]:
    """Runs `python -c code` until the end of the block."""
    watched = Supervisor([sys.executable, "-c", code], parent_pid=os.getpid(), stop_s=0.5, ended=ended)
    running = asyncio.create_task(watched.run())
    try:
        yield watched
    finally:
        await watched.stop()
        await running


async def pid_of(watched: Supervisor) -> int:
    async def there() -> bool:
        return watched.pid is not None

    await eventually(there)
    assert watched.pid is not None
    return watched.pid


async def test_a_process_that_ends_is_told_and_started_again() -> None:
    ended: list[int] = []
    async with supervised(SLEEPS, ended.append) as watched:
        first = await pid_of(watched)
        psutil.Process(first).kill()

        async def again() -> bool:
            return watched.pid not in (None, first)

        await eventually(again)
        assert (ended, watched.restarts) == ([first], 1)


async def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start, refusals = asyncio.create_subprocess_exec, [OSError(12, "no memory"), OSError(11, "too many processes")]

    async def starved(*args: object, **kwargs: object) -> asyncio.subprocess.Process:
        if refusals:
            raise refusals.pop()
        return await start(*args, **kwargs)  # type: ignore[arg-type]  # handed on as it came

    monkeypatch.setattr(asyncio, "create_subprocess_exec", starved)
    async with supervised(SLEEPS) as watched:
        assert psutil.pid_exists(await pid_of(watched))
        assert (refusals, watched.restarts) == ([], 2)


async def test_a_registry_that_is_away_when_it_ends_does_not_keep_it_from_starting_again() -> None:
    def away(pid: int) -> None:
        raise Unavailable("The database does not answer.", "storage_unavailable")

    async with supervised(SLEEPS, away) as watched:
        first = await pid_of(watched)
        psutil.Process(first).kill()

        async def again() -> bool:
            return watched.pid not in (None, first)

        await eventually(again)


async def test_it_leads_a_group_within_the_session_of_the_server_so_that_its_nice_value_counts() -> None:
    async with supervised(SLEEPS) as watched:
        pid = await pid_of(watched)

        async def leads() -> bool:
            return os.getpgid(pid) == pid

        await eventually(leads)
        assert os.getsid(pid) == os.getsid(0)


async def test_its_end_takes_what_it_started_with_it() -> None:
    async with supervised(FORKS_AND_SLEEPS) as watched:
        parent = psutil.Process(await pid_of(watched))

        async def forked() -> bool:
            return bool(parent.children())

        await eventually(forked)
        (child,) = parent.children()
    assert not parent.is_running()

    async def gone() -> bool:
        return not child.is_running() or child.status() == psutil.STATUS_ZOMBIE

    await eventually(gone)
