"""What surrounds the gate's verdict: whether a first version goes live, and that the job hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from tunedock_api.names import DEFAULT_ALIAS
from tunedock_registry.records import VersionRecord
from tunedock_registry.registry import Registry

from ..gate.judge import Verdict


class Promotion:
    """`changed` makes this server see the new state at once; `evaluate` takes a job's version that is ready."""

    def __init__(
        self,
        registry: Registry,
        changed: Callable[[], Awaitable[None]],
        evaluate: Callable[[VersionRecord], None] = lambda _: None,
    ) -> None:
        self._registry = registry
        self._changed = changed
        self._evaluate = evaluate

    def first_alias(self, version: VersionRecord) -> str | None:
        """`production` for the first ready version of an adapter, unless its job asked otherwise. Reads the registry."""
        if version.job_id is None:
            return DEFAULT_ALIAS
        policy = self._registry.jobs.find(version.job_id).knobs.get("promote", "first")
        return DEFAULT_ALIAS if policy != "never" else None

    async def after_verdict(self, version: VersionRecord, verdict: Verdict) -> None:
        if version.job_id is not None:
            await asyncio.to_thread(self._tell_job, version, version.job_id, verdict)
        await self._changed()
        if verdict.passed and version.job_id is not None and version.number is not None:
            self._evaluate(version)

    def _tell_job(self, version: VersionRecord, job_id: str, verdict: Verdict) -> None:
        data = {"version": version.ref, "parity": verdict.parity}
        if verdict.passed:
            message = f"Publish gate: {version.ref} is ready (parity: {verdict.parity.get('status')})"
            self._registry.jobs.emit_system(job_id, message, data=data)
        else:
            message = f"Publish gate: {version.ref} was rejected: {verdict.reason}"
            self._registry.jobs.emit_system(job_id, message, level="error", data=data)
