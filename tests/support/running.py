"""A whole server in this process and on this event loop, on a free port, with a fake engine behind the seam.

Real registry, real HTTP, unmodified openai client; tests may look into the server while it runs.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI
from support.bases import adapter_config, tiny_base, write_adapter
from support.fake_pool import FakePool
from tunedock_api.manifest import WEIGHTS_FILE, Lineage
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.adapters.isolation import IsolatedIntake
from tunedock_registry.data.isolation import IsolatedInspector
from tunedock_registry.layout import Home
from tunedock_registry.models.facts import BaseFacts
from tunedock_registry.records import VersionRecord
from tunedock_registry.registry import Registry
from tunedock_server.app import Server, build_app
from tunedock_server.listen import bind
from tunedock_server.run import http_server
from tunedock_server.settings import Settings

PROJECT = "default"


class SharedIntake(IsolatedIntake):
    """One for all tests of a process: its child takes a second to start, and `close` belongs to the interpreter."""

    def close(self) -> None:
        return


INTAKE = SharedIntake()
atexit.register(IsolatedIntake.close, INTAKE)


@dataclass
class Running:
    """What a test gets. `client` is the unmodified openai client; `raw` speaks plain HTTP."""

    server: Server
    pool: FakePool
    base: BaseFacts
    url: str
    client: AsyncOpenAI
    raw: httpx2.AsyncClient
    home: Path

    def publish(self, name: str = "support", seed: int = 0) -> VersionRecord:
        """A version straight into the registry, as a trainer would; the gate picks it up."""
        folder = write_adapter(self.home / "src" / f"{name}-{seed}", self.base, seed)
        prepared = prepare(
            adapter_config(base=self.base.identity.id),
            folder / WEIGHTS_FILE,
            self.base,
            ManifestParts(Lineage(origin="imported")),
        )
        return self.server.registry.adapters.publish(PROJECT, name, prepared, origin="imported")

    async def ready(self, name: str = "support", seed: int = 0) -> VersionRecord:
        """Published, through the gate and visible."""
        version = await asyncio.to_thread(self.publish, name, seed)
        return await self.settled(version.id)

    async def settled(self, version_id: int) -> VersionRecord:
        """The version once the gate has decided."""
        by_id = self.server.registry.adapters.by_id

        async def decided() -> bool:
            return (await asyncio.to_thread(by_id, version_id)).state not in ("published", "verifying")

        await eventually(decided)
        await self.server.watcher.look()
        return await asyncio.to_thread(by_id, version_id)

    async def ask(self, model: str, **options: Any) -> Any:
        """One chat completion; returns the openai object."""
        return await self.client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "hello"}], **options
        )


async def eventually(condition: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    """Waits until `condition` holds. Fails the test when it does not."""
    async with asyncio.timeout(timeout_s):
        while not await condition():  # noqa: ASYNC110 - what is waited for has no event
            await asyncio.sleep(0.02)


def quick(home: Path, **changes: Any) -> Settings:
    """Settings with short waits."""
    chosen = {
        "home": str(home),
        "poll_s": 0.05,
        "adapter_wait_s": 2.0,
        "slot_patience_s": 0.05,
        "drain_timeout_s": 5.0,
        "collect_every_s": 3600.0,
        "collect_grace_s": 0.0,
    }
    return Settings.model_validate({**chosen, **changes})


@asynccontextmanager
async def running(
    tmp_path: Path,
    *,
    pool: FakePool | None = None,
    registry: Registry | None = None,
    inspector: IsolatedInspector | None = None,
    model_path: Path | None = None,
    wait: bool = True,
    **changes: Any,
) -> AsyncIterator[Running]:
    """`changes` are settings. Give `registry` to put a second server on the first one's; `wait` False: do not wait for
    the engine."""
    base = tiny_base()
    pool = pool or FakePool(base)
    settings = quick(tmp_path, **changes)
    shared = registry if registry is not None else await asyncio.to_thread(Registry.open, Home(tmp_path))
    server = Server(settings, shared, pool, base.identity.id, intake=INTAKE, inspector=inspector, model_path=model_path)
    sock = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{sock.getsockname()[1]}"
    http = http_server(build_app(server))
    listening = asyncio.create_task(http.serve(sockets=[sock]))
    key = settings.api_key or "any"
    starting = asyncio.create_task(server.start())
    try:
        if wait:
            await starting
        async with (
            AsyncOpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client,
            httpx2.AsyncClient(base_url=url, headers={"authorization": f"Bearer {key}"}) as raw,
        ):
            yield Running(server, pool, base, url, client, raw, tmp_path)
    finally:
        http.should_exit = True
        http.force_exit = True
        starting.cancel()
        await asyncio.gather(listening, starting, return_exceptions=True)
        await server.stop()
        if registry is None:
            shared.close()
