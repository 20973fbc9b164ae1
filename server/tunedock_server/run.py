"""Runs a server until it is told to end: listen, start the engine, serve, drain, stop."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from tunedock_api.errors import BadInput, Unavailable

from .app import Server, build_app
from .rpc.server import RpcServer, Tls
from .settings import Settings

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
WORK_THREADS = 16  # for the registry and the disk; a check of an upload holds one for its whole time
CLOSE_S = 5.0  # for connections that are still open after the drain
# httpx, and so OpenAI's client, keeps an idle connection for 5 s, load balancers for 60. Whoever closes first must be the side
# that knows: a request sent into a connection that the server is just closing is lost. uvicorn's own 5 s lose that race.
KEEP_ALIVE_S = 75


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: it may stop accepting only after our drain."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def http_server(app: ASGIApp) -> HttpServer:
    """h11 on purpose: it bounds header bytes, httptools does not."""
    return HttpServer(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(CLOSE_S),
            backlog=2048,
        )
    )


class Listeners:
    """The ports of one server: HTTP and gRPC. Open before the engine is up, so that liveness can be asked."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        settings = server.settings
        self._sock = sock
        self._rpc = RpcServer(server)
        self._rpc_port = self._rpc.bind(settings.host, settings.grpc_port, tls_of(settings))
        self._http = http_server(build_app(server))
        self._serving: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._rpc.start()
        self._serving = asyncio.create_task(self._http.serve(sockets=[self._sock]))

    @property
    def ended(self) -> bool:
        return self._serving is None or self._serving.done()

    def describe(self) -> str:
        host, port = self._sock.getsockname()[:2]
        return f"http://{_shown(host, port)}/v1, gRPC at {_shown(host, self._rpc_port)}"

    async def drain(self) -> None:
        await self._rpc.drain()

    async def close(self, grace_s: float) -> None:
        """Gives open connections `grace_s`; 0 cuts them."""
        self._http.should_exit, self._http.force_exit = True, grace_s == 0
        if self._serving is not None:
            with suppress(asyncio.CancelledError):
                await self._serving
        await self._rpc.stop(grace_s)


def run_loop(work: Coroutine[Any, Any, None]) -> None:
    """As `asyncio.run`, on uvloop where it is installed (vLLM brings it): less time per token sent."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


async def serve(server: Server, sock: socket.socket, announce: Callable[[str], None]) -> None:
    """Returns after a clean end. Raises what the engine's start raises, Unavailable when the engine was given up.

    SIGTERM and SIGINT drain; a second one ends at once.
    """
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORK_THREADS, "work"))
    listeners, asked, grace_s = Listeners(server, sock), asyncio.Event(), CLOSE_S
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, _on_signal, asked, asyncio.current_task())
    await listeners.open()
    try:
        if await _started(server, asked):
            freeze_heap()
            announce(f"TuneDock is ready: {server.catalog.base_model} at {listeners.describe()}")
            await _until_asked(server, asked, listeners)
            await listeners.drain()
            await server.drain()
    except asyncio.CancelledError:
        grace_s = 0.0
    finally:
        await listeners.close(grace_s)
        await server.stop()


def freeze_heap() -> None:
    """What is there when the server is up stays: a collection that walks all of vLLM stops every stream for many steps."""
    gc.collect()
    gc.freeze()


async def _started(server: Server, asked: asyncio.Event) -> bool:
    """False when the end was asked for before the engine was up. Raises what the start raises."""
    starting, stop = asyncio.create_task(server.start()), asyncio.create_task(asked.wait())
    await asyncio.wait({starting, stop}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
        return False
    await starting
    return True


def tls_of(settings: Settings) -> Tls | None:
    """Raises BadInput when only one half of a certificate is given."""
    if not settings.grpc_tls_cert and not settings.grpc_tls_key:
        return None
    if not (settings.grpc_tls_cert and settings.grpc_tls_key):
        raise BadInput("--grpc-tls-cert and --grpc-tls-key go together.", param="grpc_tls_cert")
    client_ca = Path(settings.grpc_tls_client_ca) if settings.grpc_tls_client_ca else None
    return Tls(Path(settings.grpc_tls_cert), Path(settings.grpc_tls_key), client_ca)


def _on_signal(asked: asyncio.Event, main: asyncio.Task[None] | None) -> None:
    if asked.is_set() and main is not None:
        main.cancel()
    asked.set()


async def _until_asked(server: Server, asked: asyncio.Event, listeners: Listeners) -> None:
    while not asked.is_set() and not listeners.ended:
        if server.keeper.state == "failed":
            raise Unavailable("The engine keeps dying and was given up; the log above says why.")
        with suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), 0.5)


def _shown(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
