"""Keeps the engine running: sees its death within a second, starts it again with back-off, brings its adapters back.

Liveness stays good meanwhile; readiness does not. After too many deaths in a window it stops and says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Literal

from tunedock_api.errors import TuneDockError, Unavailable

from .pool import EnginePool

log = logging.getLogger(__name__)

State = Literal["starting", "up", "down", "failed"]
CHECK_S = 0.2
FIRST_BACKOFF_S, LAST_BACKOFF_S = 0.5, 30.0


class EngineKeeper:
    """`restore` runs after every start and before anybody is told that the engine is up."""

    def __init__(
        self,
        pool: EnginePool,
        restore: Callable[[], Awaitable[None]],
        *,
        max_deaths: int = 5,
        window_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool = pool
        self._restore = restore
        self._max_deaths = max_deaths
        self._window_s = window_s
        self._clock = clock
        self._deaths: deque[float] = deque()
        self._up = asyncio.Event()
        self.state: State = "starting"
        self.restarts = 0

    async def start(self) -> None:
        """The first start. Raises what the engine raises: a configuration mistake is not repaired by trying again."""
        await self._pool.start()
        await self._now_up()

    async def _now_up(self) -> None:
        await self._restore()
        self.state = "up"
        self._up.set()

    async def run(self) -> None:
        """Watches until cancelled, or until the engine died too often."""
        while self.state != "failed":
            await asyncio.sleep(CHECK_S)
            if not self._pool.alive():
                await self._recover()

    async def _recover(self) -> None:
        self.state = "down"
        self._up.clear()
        log.error("the engine died; starting it again")
        backoff_s = FIRST_BACKOFF_S
        while self._may_try():
            await self._pool.stop()
            try:
                await self._pool.start()
                await self._now_up()
            except TuneDockError as error:
                log.error("the engine did not start: %s; next try in %.1f s", error.message, backoff_s)
                await asyncio.sleep(backoff_s)
                backoff_s = min(2 * backoff_s, LAST_BACKOFF_S)
                continue
            self.restarts += 1
            log.info("the engine is back")
            return
        self.state = "failed"
        log.critical("the engine died %d times within %.0f s; giving up", len(self._deaths), self._window_s)

    def _may_try(self) -> bool:
        now = self._clock()
        self._deaths.append(now)
        while self._deaths[0] < now - self._window_s:
            self._deaths.popleft()
        return len(self._deaths) <= self._max_deaths

    @property
    def up(self) -> bool:
        return self._up.is_set() and self._pool.alive()

    def require_up(self) -> None:
        """Raises Unavailable unless requests can run now."""
        if not self.up:
            raise self._unavailable()

    async def wait_up(self, timeout_s: float) -> None:
        """Raises Unavailable when the engine is not up within `timeout_s`."""
        if not self._pool.alive():
            self._up.clear()  # `run` has not noticed yet
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise self._unavailable() from None

    def _unavailable(self) -> Unavailable:
        if self.state == "failed":
            return Unavailable("The engine keeps dying and was given up; an operator must look at the server's log.")
        what = "starting" if self.state == "starting" else "restarting"
        return Unavailable(f"The engine is {what}: try again in a few seconds.", retry_after_s=5.0)
