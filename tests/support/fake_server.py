"""The real server on a real socket, in a thread of the test process: only the engine behind it is a fake."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from tunedock_api.manifest import Lineage
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.layout import Home
from tunedock_registry.records import Target, VersionRecord
from tunedock_registry.registry import Registry
from tunedock_server.app import Server, build_app
from tunedock_server.rpc.server import RpcServer, Tls
from tunedock_server.settings import Settings

from .bases import tiny_base, write_adapter
from .fake_pool import FakePool

T = TypeVar("T")
BASE = "tiny-base"


@dataclass
class FakeServer:
    """`run` runs something on the server's own loop."""

    url: str
    grpc: str
    server: Server
    registry: Registry
    pool: FakePool
    loop: asyncio.AbstractEventLoop
    folder: Path
    rpc: RpcServer

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def peft_folder(self, seed: int = 0) -> Path:
        """Another adapter for every seed."""
        return write_adapter(self.folder / f"peft-{seed}", tiny_base(BASE), seed)

    def ready(self, name: str = "support", seed: int = 0, *, production: bool = True) -> VersionRecord:
        """A version that passed the gate; the first one of a name is in production."""
        folder = self.peft_folder(seed)
        parts = ManifestParts(Lineage(origin="imported"))
        config = (folder / "adapter_config.json").read_bytes()
        prepared = prepare(config, folder / "adapter_model.safetensors", tiny_base(BASE), parts)
        version = self.registry.adapters.publish("default", name, prepared, origin="imported")
        while version.state not in ("ready", "rejected"):
            threading.Event().wait(0.02)
            version = self.registry.adapters.by_id(version.id)
        if production and version.number and version.number > 1:
            self.registry.adapters.set_alias("default", name, "production", [Target(version.number)])
        self.run(self.server.watcher.look())
        return version


@contextmanager
def fake_server(folder: Path, tls: Tls | None = None, **settings: Any) -> Iterator[FakeServer]:
    """Starts on free ports and ends with everything released."""
    registry = Registry.open(Home(folder / "home"))
    started: list[FakeServer] = []
    failed: list[BaseException] = []
    up, stop = threading.Event(), threading.Event()

    async def serve() -> None:
        pool = FakePool(tiny_base(BASE))
        server = Server(Settings(poll_s=0.05, **settings), registry, pool, BASE)
        await server.start()
        http = uvicorn.Server(uvicorn.Config(build_app(server), port=0, log_level="warning", lifespan="off"))
        task = asyncio.create_task(http.serve())
        while not http.started:  # noqa: ASYNC110 (uvicorn has no event for it)
            await asyncio.sleep(0.01)
        port = http.servers[0].sockets[0].getsockname()[1]
        rpc = RpcServer(server)
        grpc = f"127.0.0.1:{rpc.bind('127.0.0.1', 0, tls)}"
        await rpc.start()
        loop = asyncio.get_running_loop()
        started.append(FakeServer(f"http://127.0.0.1:{port}/v1", grpc, server, registry, pool, loop, folder, rpc))
        up.set()
        await asyncio.to_thread(stop.wait)
        await rpc.stop(1.0)
        http.should_exit = True
        await task
        await server.stop()

    def body() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
            up.set()

    thread = threading.Thread(target=body, name="fake-server")
    thread.start()
    up.wait(30)
    try:
        if failed:
            raise failed[0]
        yield started[0]
    finally:
        stop.set()
        thread.join(30)
        registry.close()
