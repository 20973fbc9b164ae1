"""What follows the gate's verdict: the job hears of it, and a first version goes live."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tunedock_api.errors import TuneDockError
from tunedock_api.names import DEFAULT_ALIAS
from tunedock_registry.records import Target, VersionRecord
from tunedock_registry.registry import Registry

from ..gate.judge import Verdict

log = logging.getLogger(__name__)

ACTOR = "tunedock"


class Promotion:
    """`changed` makes this server see the new state at once."""

    def __init__(self, registry: Registry, changed: Callable[[], Awaitable[None]]) -> None:
        self._registry = registry
        self._changed = changed

    async def after_verdict(self, version: VersionRecord, verdict: Verdict) -> None:
        await asyncio.to_thread(self._tell_job, version, verdict)
        if verdict.passed and version.number is not None:
            await asyncio.to_thread(self._promote, version, version.number)
        await self._changed()

    def _tell_job(self, version: VersionRecord, verdict: Verdict) -> None:
        if version.job_id is None:
            return
        data = {"version": version.ref, "parity": verdict.parity}
        if verdict.passed:
            message = f"Publish gate: {version.ref} is ready (parity: {verdict.parity.get('status')})"
            self._registry.jobs.emit_system(version.job_id, message, data=data)
        else:
            message = f"Publish gate: {version.ref} was rejected: {verdict.reason}"
            self._registry.jobs.emit_system(version.job_id, message, level="error", data=data)

    def _promote(self, version: VersionRecord, number: int) -> None:
        """`first`: only while the alias does not exist; the registry decides that in one transaction."""
        if self._policy(version) != "first":
            return
        try:
            self._registry.adapters.set_alias(
                version.project,
                version.adapter,
                DEFAULT_ALIAS,
                [Target(number)],
                expected_revision=0,
                actor=ACTOR,
                reason="first ready version",
            )
        except TuneDockError as error:
            log.debug("%s is not promoted: %s", version.ref, error.message)

    def _policy(self, version: VersionRecord) -> str:
        if version.job_id is None:
            return "first"
        return str(self._registry.jobs.find(version.job_id).knobs.get("promote", "first"))
