"""The end of vLLM's engine client."""

from __future__ import annotations

import asyncio
from typing import Any

from tunedock_server.engine.llm import stop_llm
from vllm.v1.engine.exceptions import EngineDeadError


class Llm:
    """What `AsyncLLM` has: a task that reads outputs until its socket is closed, and somebody who waits for them."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.closed = asyncio.Event()
        self.failures: list[str] = []
        self.told: list[BaseException] = []
        self.output_processor = self
        self.output_handler = asyncio.create_task(self._read())

    async def _read(self) -> None:
        await self.closed.wait()
        self.failures.append("socket closed")

    def propagate_error(self, error: BaseException) -> None:
        self.told.append(error)

    def shutdown(self) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self.loop).result()

    async def _close(self) -> None:
        self.closed.set()
        await asyncio.sleep(0)


async def test_a_stop_is_no_failure_and_whoever_waits_is_told() -> None:
    llm: Any = Llm()
    await asyncio.sleep(0)
    await stop_llm(llm)
    assert llm.closed.is_set()
    assert llm.failures == []
    assert [type(error) for error in llm.told] == [EngineDeadError]
