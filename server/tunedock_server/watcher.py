"""Follows the registry's change counter, so that a promote anywhere is seen here within a quarter of a second.

While the registry cannot be read, the last snapshot keeps serving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from tunedock_registry.known import Known
from tunedock_registry.registry import Registry

from .catalog import Catalog

log = logging.getLogger(__name__)

OnChange = Callable[[Known, Known], Awaitable[None]]


class Watcher:
    """`look` may be called at any time, for example after our own write. `on_change` gets what was known before, and now.

    `news` is set at the next change, and replaced by another event for the one after it.
    """

    def __init__(
        self,
        registry: Registry,
        catalog: Catalog,
        poll_s: float,
        on_change: OnChange,
    ) -> None:
        self._registry = registry
        self._catalog = catalog
        self._poll_s = poll_s
        self._on_change = on_change
        self._seen = -1
        self._turn = asyncio.Lock()
        self.news = asyncio.Event()
        self.failing = False

    async def look(self) -> None:
        """Reads the state when the counter moved. `on_change` runs after requests can see the new state."""
        async with self._turn:
            known = await asyncio.to_thread(self._registry.known, self._seen)
            if known is None:
                return
            before = self._catalog.known
            self._catalog.take(known)
            self._seen = known.snapshot.counter
            news, self.news = self.news, asyncio.Event()
            news.set()
        await self._on_change(before, known)

    async def run(self) -> None:
        thread = ThreadPoolExecutor(1, "registry-watch")
        try:
            await self._run(thread)
        finally:
            thread.shutdown(wait=False)

    async def _run(self, thread: Executor) -> None:
        """The wait has a thread of its own: it would hold one of the loop's for good."""
        while True:
            try:
                counter = await asyncio.get_running_loop().run_in_executor(
                    thread, self._registry.wait_for_change, self._seen, self._poll_s
                )
                if counter != self._seen:
                    await self.look()
                self.failing = False
            except Exception:
                if not self.failing:
                    log.exception("the registry cannot be read; serving what is known")
                self.failing = True
                await asyncio.sleep(self._poll_s)
