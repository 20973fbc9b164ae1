"""Runs a server until it is told to end: listen, start the engine, serve, drain, stop."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp
from tunedock_api.errors import BadInput, Unavailable

from .app import Server, build_app
from .rpc.server import RpcServer, Tls
from .settings import Settings

log = logging.getLogger(__name__)

MAX_HEADER_BYTES = 64 * 1024
CLOSE_S = 5.0  # for connections that are still open after the drain


class HttpServer(uvicorn.Server):
    """uvicorn without its own signal handling: it may stop accepting only after our drain."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises BadInput in one sentence when the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise BadInput(
            f"Cannot listen on {host}:{port} ({error.strerror or error}): choose another --port, or stop what uses it.",
            param="port",
        ) from None
    sock.set_inheritable(False)
    return sock


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
            timeout_graceful_shutdown=int(CLOSE_S),
            backlog=2048,
        )
    )


async def serve(server: Server, sock: socket.socket, announce: Callable[[str], None]) -> None:
    """Returns after a clean end. Raises what the engine's start raises, Unavailable when the engine was given up.

    SIGTERM and SIGINT drain; a second one ends at once.
    """
    address, base = sock.getsockname()[:2], asyncio.get_running_loop()
    rpc = RpcServer(server)
    rpc_port = rpc.bind(server.settings.host, server.settings.grpc_port, tls_of(server.settings))
    await rpc.start()
    http = http_server(build_app(server))
    listening = asyncio.create_task(http.serve(sockets=[sock]))
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        base.add_signal_handler(number, _on_signal, asked, asyncio.current_task())
    try:
        starting = asyncio.create_task(server.start())
        await _first(starting, asked, listening)
        if starting.done():
            await starting
            announce(
                f"TuneDock is ready: http://{_shown(address)}/v1 serves {server.catalog.base_model}, "
                f"gRPC at {_shown((address[0], rpc_port))}"
            )
            await _until_asked(server, asked, listening)
            await rpc.drain()
            await server.drain()
        else:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
    finally:
        http.should_exit = True
        with suppress(asyncio.CancelledError):
            await listening
        await rpc.stop(CLOSE_S)
        await server.stop()


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


async def _first(work: asyncio.Task[None], asked: asyncio.Event, listening: asyncio.Task[None]) -> None:
    stop = asyncio.create_task(asked.wait())
    await asyncio.wait({work, stop, listening}, return_when=asyncio.FIRST_COMPLETED)
    stop.cancel()


async def _until_asked(server: Server, asked: asyncio.Event, listening: asyncio.Task[None]) -> None:
    while not asked.is_set() and not listening.done():
        if server.keeper.state == "failed":
            raise Unavailable("The engine keeps dying and was given up; the log above says why.")
        with suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), 0.5)


def _shown(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
