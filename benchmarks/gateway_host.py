"""Our server, and callers of its engine inside the same process: what a gateway costs is the difference between the two.

    python -m benchmarks.gateway_host HOME PORT GRPC_PORT

Prints one JSON line when it is ready. Then every line `CALLERS ANSWERS` on its input is one load on the engine itself, and
its result one JSON line. Ends with its input.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import asdict
from pathlib import Path

from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL
from tunedock_registry.registry import Registry
from tunedock_server.app import Server
from tunedock_server.engine.start import create_engine
from tunedock_server.listen import bind
from tunedock_server.pool import EnginePool, GenerateRequest, Pinned, Sampling
from tunedock_server.run import Listeners, freeze_heap, run_loop
from tunedock_server.settings import Settings

from .gateway_callers import MAX_TOKENS, QUESTION, Answer
from .gateway_load import run_load
from .servers import model_path


class InProcess:
    """A caller of the engine without anything in front of it."""

    def __init__(self, pool: EnginePool, numbers: Iterator[int]) -> None:
        self._pool, self._numbers = pool, numbers

    async def ask(self) -> Answer:
        sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True)
        messages = [{"role": "user", "content": QUESTION}]
        request = GenerateRequest(f"bench-{next(self._numbers)}", messages=messages, sampling=sampling)
        answer, texts = Answer(), []
        async with aclosing(self._pool.generate(request, Pinned(DEFAULT_MODEL))) as deltas:
            async for delta in deltas:
                answer.times.append(time.perf_counter())
                texts.append(delta.text)
        answer.text = "".join(texts)
        return answer


async def obey(pool: EnginePool) -> None:
    """One load for every line of the input."""
    lines, numbers = asyncio.StreamReader(), itertools.count()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while line := await lines.readline():
        num_callers, answers = map(int, line.split())
        asks = [InProcess(pool, numbers).ask for _ in range(num_callers)]
        tell(asdict(await run_load(asks, answers, os.getpid())))


def tell(value: object) -> None:
    print(json.dumps(value), flush=True)


async def host(server: Server) -> None:
    listeners = Listeners(server, bind(server.settings.host, server.settings.port))
    await listeners.open()
    await server.start()
    freeze_heap()
    tell({"ready": True})
    try:
        await obey(server.pool)
    finally:
        await listeners.close(0)
        await server.stop()


def main() -> None:
    settings = Settings(port=int(sys.argv[2]), grpc_port=int(sys.argv[3]), trainer=False)
    registry = Registry.open(Home(Path(sys.argv[1])).create())
    try:
        pool = create_engine(settings.engine(str(model_path()), DEFAULT_MODEL))
        run_loop(host(Server(settings, registry, pool, DEFAULT_MODEL)))
    finally:
        registry.close()


if __name__ == "__main__":
    main()
