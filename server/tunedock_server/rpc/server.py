"""The gRPC side of a server: services, health, reflection, TLS, bounds, drain."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from tunedock_api.errors import BadInput
from tunedock_api.v1.adapters_pb2_grpc import add_AdaptersServicer_to_server
from tunedock_api.v1.fine_tuning_pb2_grpc import add_FineTuningServicer_to_server
from tunedock_api.v1.inference_pb2_grpc import add_InferenceServicer_to_server

from ..app import Server
from ..services.capacity import capacity
from ..services.transfers import Transfers
from .adapters import AdaptersRpc
from .guard import Guard
from .inference import InferenceRpc
from .jobs import FineTuningRpc
from .policies import SERVICES, check_complete, policies

MAX_MESSAGE_BYTES = 8 << 20
HEALTH_S = 0.25
_NAMES = tuple(service.full_name for service in SERVICES)
_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", 16 << 10),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.so_reuseport", 0),  # a taken port is an error, not a second server on it
)


@dataclass(frozen=True)
class Tls:
    """PEM files. With `client_ca`, callers must show a certificate that it signed (mutual TLS)."""

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """Raises BadInput when a file cannot be read."""
        try:
            pair = (self.key.read_bytes(), self.cert.read_bytes())
            ca = self.client_ca.read_bytes() if self.client_ca else None
        except OSError as error:
            raise BadInput(f"Cannot read the TLS file {error.filename}: {error.strerror}.", param="tls") from error
        return grpc.ssl_server_credentials([pair], ca, require_client_auth=ca is not None)


class RpcServer:
    """Serves `server`'s services. Call `bind`, `start`, then `drain` and `stop`."""

    def __init__(self, server: Server) -> None:
        settings, table = server.settings, policies()
        check_complete(table)
        guard = Guard(server.authenticator, table, settings.request_timeout_s)
        self._grpc = grpc.aio.server(interceptors=[guard], options=_OPTIONS)
        self._health = health.aio.HealthServicer()
        self._not_ready: Callable[[], str | None] = server.not_ready
        self._following: asyncio.Task[None] | None = None
        self._inference = _add_services(self._grpc, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        reflection.enable_server_reflection((*_NAMES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._grpc)

    def bind(self, host: str, port: int, tls: Tls | None = None) -> int:
        """The port that was taken (`port` 0: a free one). Raises BadInput when it cannot be had."""
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        try:
            if tls is not None:
                return self._grpc.add_secure_port(address, tls.credentials())
            return self._grpc.add_insecure_port(address)
        except RuntimeError:
            raise BadInput(
                f"Cannot listen on {address}: choose another --grpc-port, or stop what uses it.", param="grpc_port"
            ) from None

    async def start(self) -> None:
        """Answers from here on; health says NOT_SERVING until the engine is up."""
        await self._tell(False)
        await self._grpc.start()
        self._following = asyncio.create_task(self._follow())

    async def drain(self) -> None:
        """Health says NOT_SERVING for good; calls go on."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace_s: float) -> None:
        """New calls are refused, running ones get `grace_s` to end."""
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        self._inference.finish()
        await self._grpc.stop(grace_s)

    async def _follow(self) -> None:
        """Health follows readiness: start, engine loss, drain."""
        told = False
        while True:
            ready = self._not_ready() is None
            if ready != told:
                told = ready
                await self._tell(ready)
            await asyncio.sleep(HEALTH_S)

    async def _tell(self, ready: bool) -> None:
        states = health_pb2.HealthCheckResponse
        for name in ("", *_NAMES):
            await self._health.set(name, states.SERVING if ready else states.NOT_SERVING)


def _add_services(target: grpc.aio.Server, server: Server) -> InferenceRpc:
    def room() -> dict[str, object]:
        return capacity(server.pool.facts, server.residents, server.catalog)

    transfers = Transfers(server.registry, server.validator)
    inference = InferenceRpc(server.inference, server.models, room, server.settings.request_timeout_s)
    add_InferenceServicer_to_server(inference, target)
    add_FineTuningServicer_to_server(FineTuningRpc(server.files, transfers, server.jobs), target)
    adapters = AdaptersRpc(
        server.adapters, server.publisher, lambda: server.catalog.snapshot.counter, server.settings.max_adapter_bytes
    )
    add_AdaptersServicer_to_server(adapters, target)
    return inference
