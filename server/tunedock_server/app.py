"""Puts a server together and runs it. The only place where the parts know each other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp
from tunedock_api.errors import BadInput, TuneDockError, Unavailable
from tunedock_registry.adapters.isolation import IsolatedIntake
from tunedock_registry.data.isolation import IsolatedInspector
from tunedock_registry.known import Known
from tunedock_registry.leases import HEARTBEAT_S
from tunedock_registry.registry import Registry

from .catalog import Catalog
from .evaluation.evaluator import Evaluator
from .gate.runner import Gate
from .http import adapters as adapter_routes
from .http import errors
from .http import files as file_routes
from .http import inference as inference_routes
from .http import jobs as job_routes
from .http import keys as key_routes
from .http import models as model_routes
from .http import ops as ops_routes
from .http import permissions as permission_routes
from .http import publishing as publishing_routes
from .http import uploads as upload_routes
from .http import webhooks as webhook_routes
from .http.auth import Authenticator
from .http.context import RequestContext
from .http.routing import Routes, check_all_guarded
from .keeper import EngineKeeper
from .leases import Leases
from .metrics import LoraReading, Metrics, Reading
from .pool import EnginePool, Pinned
from .residency.reconcile import Reconciler
from .residency.residents import ResidencyLimits, Residents
from .services.adapters import AdapterService
from .services.capacity import capacity
from .services.files import FileService, FileValidator
from .services.inference import Admission, Inference
from .services.inspection import FileInspector
from .services.jobs import JobService
from .services.models import ModelService
from .services.promotion import Promotion
from .services.publishing import Publisher
from .services.requests import RequestCaps
from .services.uploads import UploadService
from .services.webhooks import WebhookSender, WebhookService
from .settings import GateSettings, Settings
from .supervisor import Supervisor
from .watcher import Watcher

log = logging.getLogger(__name__)

SWEEP_EVERY_S = 3600.0  # blobs that nothing refers to, expired files and uploads


class Server:
    """One server: its parts, its background tasks, its end. Transports are built on its services."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        pool: EnginePool,
        base_model: str,
        *,
        gate_settings: GateSettings | None = None,
        trainer: Supervisor | None = None,
        intake: IsolatedIntake | None = None,
        inspector: IsolatedInspector | None = None,
        model_path: Path | None = None,
    ) -> None:
        """Without `model_path` (the base model's folder) finished jobs are not evaluated."""
        self.settings = settings
        self.registry = registry
        self.pool = pool
        self.trainer = trainer
        self.leases = Leases()
        self.catalog = Catalog(registry, base_model)
        self.residents = Residents(pool, _limits(settings), registry.adapters.fetch, here=registry.adapters.is_here)
        self.reconciler = Reconciler(self.residents, self.catalog.pinned)
        self.keeper = EngineKeeper(
            pool, self._restore, max_deaths=settings.engine_restarts, window_s=settings.engine_window_s
        )
        self.watcher = Watcher(registry, self.catalog, settings.poll_s, self._changed)
        self.evaluator = (
            Evaluator(registry, pool, self.residents, self.catalog, self.watcher.look, model_path)
            if model_path
            else None
        )
        self.promotion = Promotion(
            registry, self.watcher.look, self.evaluator.submit if self.evaluator else lambda _: None
        )
        self.gate = Gate(
            registry,
            pool,
            self.residents,
            self.catalog.pinned,
            gate_settings or GateSettings(),
            self.promotion.after_verdict,
            self.promotion.first_alias,
        )
        self.inference = Inference(
            self.catalog,
            pool,
            self.residents,
            self.leases,
            self.keeper,
            Admission(settings.max_inflight),
            RequestCaps(max_tokens=settings.max_completion_tokens),
        )
        self._add_use_cases(inspector, intake)
        self.authenticator = Authenticator(settings.api_key, self.catalog.keys)
        self.metrics = Metrics(self._readings, self._lora_reading)
        self.draining = False
        self._tasks: list[asyncio.Task[None]] = []

    def _add_use_cases(self, inspector: IsolatedInspector | None, intake: IsolatedIntake | None) -> None:
        """What the transports offer besides inference."""
        registry, pool, settings = self.registry, self.pool, self.settings
        self.inspector = FileInspector(registry, pool, inspector) if inspector is not None else None
        self.validator = FileValidator(registry, self.inspector)
        self.files = FileService(registry, self.validator, settings.max_upload_bytes, self.inspector)
        self.jobs = JobService(registry, self.files, self.catalog, pool, self.watcher.look)
        self.adapters = AdapterService(registry, self.catalog, self.residents, self.watcher)
        intake = intake or IsolatedIntake()
        self.publisher = Publisher(registry, pool, self.watcher.look, settings.max_adapter_bytes, intake)
        self.models = ModelService(self.catalog, self.adapters, int(time.time()))
        self.uploads = UploadService(registry, self.validator)
        self.sender = WebhookSender(registry, settings.webhooks_may_be_private())
        self.webhooks = WebhookService(registry, self.sender)

    async def start(self) -> None:
        """Engine up, registry's state loaded, residency restored. Raises what the engine's start raises.

        What needs no engine runs before: files can be uploaded and validated during its start.
        """
        await self.watcher.look()
        await self.validator.recover()
        await self.jobs.recover()
        self._spawn(self.watcher.run(), self.validator.run(), self.sender.run())
        self._spawn(self._collect_forever(), self._hold_forever())
        await self.keeper.start()
        self._spawn(self.keeper.run(), self.gate.run())
        if self.evaluator is not None:
            self._spawn(self.evaluator.run())
        if self.trainer is not None:
            self._spawn(self.trainer.run())

    def _spawn(self, *work: Coroutine[Any, Any, None]) -> None:
        for one in work:
            task = asyncio.create_task(one, name=getattr(one, "__qualname__", "a task"))
            task.add_done_callback(_say_if_broken)
            self._tasks.append(task)

    async def drain(self) -> None:
        """Readiness off; serve on for a while; refuse new work; wait for what runs. Returns when idle or out of time."""
        self.draining = True
        await asyncio.sleep(self.settings.drain_grace_s)
        self.inference.draining = True
        deadline = time.monotonic() + self.settings.drain_timeout_s
        # A lease may be given back on any thread (see Leases), so this looks instead of waiting for an event.
        while self.leases.total() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def stop(self) -> None:
        """Ends tasks, trainer and engine, in this order. The registry is the caller's to close."""
        if self.trainer is not None:
            await self.trainer.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.publisher.close)
        if self.inspector is not None:
            await asyncio.to_thread(self.inspector.close)
        await self.pool.stop()
        with suppress(Unavailable):
            await asyncio.to_thread(self.registry.adapters.hold, frozenset())

    def not_ready(self) -> str | None:
        """Why no traffic should come here, in one word; None when it may."""
        if self.draining:
            return "draining"
        return None if self.keeper.up else self.keeper.state

    async def _restore(self) -> None:
        recent = self.residents.last_known()
        self.residents.engine_started()
        await self._warm_up()
        await self.gate.engine_started()
        await self.reconciler.restore(self.catalog.snapshot, recent)
        self.gate.wake()

    async def _warm_up(self) -> None:
        """The first request pays for what is built on first use (seconds on CPU); better nobody's than a caller's."""
        body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
        try:
            await self.pool.chat(body, Pinned(self.catalog.base_model), "warm-up")
        except BadInput:
            log.info("the base model has no chat template; only completions will work")

    async def _changed(self, before: Known, now: Known) -> None:
        if now.waiting:
            self.gate.wake()
        if self.keeper.up:
            await self.reconciler.follow(before.snapshot, now.snapshot)

    async def _collect_forever(self) -> None:
        swept = time.monotonic()
        while True:
            await asyncio.sleep(self.settings.collect_every_s)
            try:
                await self.collect()
                if time.monotonic() - swept >= SWEEP_EVERY_S:
                    swept = time.monotonic()
                    await asyncio.to_thread(self.registry.collector.collect)
            except Exception:
                log.exception("collection failed; trying again in %.0f s", self.settings.collect_every_s)

    async def collect(self) -> None:
        """Unloads what no version stands for any more, then removes the files that nobody uses."""
        if self.keeper.up:
            await self.reconciler.evict_unoffered(self.catalog.snapshot)
        await asyncio.to_thread(self.registry.adapters.collect, self._in_use(), self.settings.collect_grace_s)

    async def hold(self) -> None:
        """Tells other servers which retired versions still answer here."""
        retired = self._in_use() - {version.digest for version in self.catalog.snapshot.versions()}
        await asyncio.to_thread(self.registry.adapters.hold, retired)

    def _in_use(self) -> set[str]:
        return self.leases.in_use() | self.residents.states().keys()

    async def _hold_forever(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_S)
            try:
                await self.hold()
            except TuneDockError as error:
                log.warning("other servers cannot be told what is in use here: %s", error.message)

    def _readings(self) -> Iterable[Reading]:
        states, stats = self.residents.states(), self.residents.stats
        yield "ready", "1 when requests can be answered", float(self.not_ready() is None)
        yield "leases", "Requests that hold a version", self.leases.total()
        yield "waiting_requests", "Requests that wait for their turn in a slot", self.residents.num_waiting()
        yield "resident_adapters", "Adapters in host memory or a slot", len(states)
        yield "slot_adapters", "Adapters in a slot", sum(1 for state in states.values() if state != "host")
        yield "adapter_loads_total", "Loads into host memory or a slot", stats.loads
        yield "adapter_load_seconds_total", "Time spent on those loads", stats.load_seconds
        yield "adapter_load_failures_total", "Loads that failed", stats.failures
        yield "adapter_evictions_total", "Adapters that made room for others", stats.evictions
        yield "engine_restarts_total", "Engine deaths that were repaired", self.keeper.restarts
        yield "trainer_restarts_total", "Trainer processes started again", self.trainer.restarts if self.trainer else 0

    def _lora_reading(self) -> LoraReading:
        names = {version.digest: version for version in self.catalog.snapshot.versions()}
        states = self.residents.states().items()
        loaded = [(names[digest].ref, state, names[digest].rank) for digest, state in states if digest in names]
        waiting = [names[digest].ref for digest in self.residents.waiting() if digest in names]
        max_loras = self.pool.facts.max_loras if self.keeper.state != "starting" else 0
        return LoraReading(max_loras, loaded, waiting)


def _say_if_broken(task: asyncio.Task[None]) -> None:
    """Nobody waits for a task of the background, so its end by an error would stay unseen until the server's."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("%s has ended and is needed: restart the server", task.get_name(), exc_info=error)


def _limits(settings: Settings) -> ResidencyLimits:
    # A few more than the engine runs, so that it never waits for the next one.
    seats = settings.max_num_seqs + max(1, settings.max_num_seqs // 8)
    waiting = settings.max_waiting_per_adapter
    return ResidencyLimits(settings.slot_patience_s, settings.adapter_wait_s, waiting, seats)


def build_app(server: Server) -> ASGIApp:
    """The HTTP side. Raises Internal when a route has no access policy."""
    settings = server.settings
    app = FastAPI(title="TuneDock", version="1", docs_url=None, redoc_url=None, openapi_url=None)
    errors.install(app)
    routes = Routes(app, server.authenticator, settings.max_request_bytes, lambda: server.leases.total() > 0)
    inference_routes.declare(
        routes,
        server.inference,
        request_timeout_s=settings.request_timeout_s,
        write_timeout_s=settings.write_timeout_s,
    )
    model_routes.declare(routes, server.models)
    file_routes.declare(routes, server.files, settings.max_upload_bytes)
    upload_routes.declare(routes, server.uploads)
    job_routes.declare(routes, server.jobs)
    permission_routes.declare(routes, server.registry.permissions, server.watcher.look)
    webhook_routes.declare(routes, server.webhooks)
    key_routes.declare(routes, server.registry.keys, server.watcher.look)
    adapter_routes.declare(
        routes, server.adapters, lambda: capacity(server.pool.facts, server.residents, server.catalog)
    )
    publishing_routes.declare(routes, server.publisher, settings.max_adapter_bytes)
    ops_routes.declare(routes, app, server.not_ready, server.metrics.render)
    check_all_guarded(app.routes)
    return RequestContext(app, server.metrics.observe_request)
