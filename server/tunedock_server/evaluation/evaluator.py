"""The verdict at a job's end: base, production and the new version on what the job held back, one version at a time.

It runs after the gate, beside people's requests, and changes nothing about the version itself: its numbers are stored with
the version, told to the job as an event and, when the job asked `promote: if_better`, decide about production.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from tunedock_api.errors import TuneDockError
from tunedock_api.names import DEFAULT_ALIAS
from tunedock_registry.data.render import Renderer
from tunedock_registry.models.tokenizer import load_renderer
from tunedock_registry.records import AliasRecord, JobRecord, Target, VersionRecord
from tunedock_registry.registry import Registry

from ..catalog import Catalog
from ..pool import EnginePool, Pinned
from ..residency.residents import Residents
from .cases import Case, Row, cases_of, general_rows
from .measure import Bench, Outcome, comparison, summary

log = logging.getLogger(__name__)

ACTOR = "tunedock"
MAX_CASES = 32
RECENT_S = 24 * 3600


class Evaluator:
    """`changed` makes this server see a moved alias at once; `model_path` holds the tokenizer."""

    def __init__(
        self,
        registry: Registry,
        pool: EnginePool,
        residents: Residents,
        catalog: Catalog,
        changed: Callable[[], Awaitable[None]],
        model_path: Path,
        max_cases: int = MAX_CASES,
    ) -> None:
        self._registry, self._pool, self._residents, self._catalog = registry, pool, residents, catalog
        self._model_path = model_path
        self._changed = changed
        self._max_cases = max_cases
        self._bench = Bench(pool)
        self._queue: asyncio.Queue[int] = asyncio.Queue()

    def submit(self, version: VersionRecord) -> None:
        """Takes a ready version that a job made."""
        self._queue.put_nowait(version.id)

    async def run(self) -> None:
        since = int(time.time()) - RECENT_S
        for version_id in await asyncio.to_thread(self._registry.adapters.unevaluated, since):
            self._queue.put_nowait(version_id)
        while True:
            version_id = await self._queue.get()
            try:
                await self.evaluate(version_id)
            except TuneDockError as error:
                log.warning("version %d could not be evaluated: %s", version_id, error.message)
            except Exception:
                log.exception("evaluating version %d failed", version_id)

    async def evaluate(self, version_id: int) -> dict[str, Any] | None:
        """Measures, stores, tells, perhaps promotes. None when there is nothing to measure, or it was measured before.

        Raises TuneDockError when the engine cannot answer.
        """
        version = await asyncio.to_thread(self._registry.adapters.by_id, version_id)
        if version.state != "ready" or version.job_id is None or "evaluation" in version.metrics:
            return None
        job = await asyncio.to_thread(self._registry.jobs.find, version.job_id)
        cases, general = await asyncio.to_thread(self._material, version, job)
        if not cases:
            return None
        production = await asyncio.to_thread(self._production, version)
        report = await self._report(version, production[1], cases, general)
        await asyncio.to_thread(self._registry.adapters.add_metrics, version.id, {"evaluation": report})
        await asyncio.to_thread(self._tell, job, version, report)
        await self._promote(job, version, production, report)
        return report

    def _material(self, version: VersionRecord, job: JobRecord) -> tuple[list[Case], list[Row]]:
        renderer = self._renderer(version)
        longest = self._pool.facts.max_model_len
        return cases_of(self._registry, job, renderer, self._max_cases, longest), general_rows(renderer)

    def _renderer(self, version: VersionRecord) -> Renderer:
        return load_renderer(self._model_path, version.manifest.identity.serving.chat_template_kwargs)

    def _production(self, version: VersionRecord) -> tuple[AliasRecord | None, VersionRecord | None]:
        """The alias, and the version that most of its traffic goes to unless that is `version` itself."""
        adapters = self._registry.adapters
        alias = next(
            (one for one in adapters.aliases(version.project, version.adapter) if one.alias == DEFAULT_ALIAS), None
        )
        if alias is None or not alias.targets:
            return alias, None
        number = max(alias.targets, key=lambda target: target.weight).version
        return alias, None if number == version.number else adapters.version(version.project, version.adapter, number)

    async def _report(
        self, version: VersionRecord, previous: VersionRecord | None, cases: list[Case], general: list[Row]
    ) -> dict[str, Any]:
        base = Pinned(self._pool.facts.model_id)
        arms = {"base": await self._bench.outcomes(cases, base, f"eval-{version.id}-base")}
        plain = await self._bench.losses(general, base)
        if previous is not None:
            arms["previous"] = await self._with(previous, cases)
        arms["new"] = await self._with(version, cases)
        tuned = await self._general(version, general)
        drift = sum(tuned) / len(tuned) - sum(plain) / len(plain)
        return {
            "num_examples": len(cases),
            "previous": previous.ref if previous else None,
            **{f"{name}_metrics": summary(outcomes) for name, outcomes in arms.items()},
            **{f"vs_{name}": comparison(arms["new"], outcomes) for name, outcomes in arms.items() if name != "new"},
            "forgetting": {"general_loss_change": round(drift, 6), "num_texts": len(general)},
        }

    async def _with(self, version: VersionRecord, cases: list[Case]) -> list[Outcome]:
        pinned = self._catalog.pinned(version)
        leave = await self._residents.use(pinned)
        try:
            return await self._bench.outcomes(cases, pinned, f"eval-{version.id}")
        finally:
            leave()

    async def _general(self, version: VersionRecord, general: list[Row]) -> list[float]:
        pinned = self._catalog.pinned(version)
        leave = await self._residents.use(pinned)
        try:
            return await self._bench.losses(general, pinned)
        finally:
            leave()

    def _tell(self, job: JobRecord, version: VersionRecord, report: dict[str, Any]) -> None:
        said = [
            f"{name} {report[f'{name}_metrics']['loss']:.3f}"
            for name in ("base", "previous", "new")
            if f"{name}_metrics" in report
        ]
        message = f"Evaluation of {version.ref} on {report['num_examples']} held-out examples: loss {', '.join(said)}"
        self._registry.jobs.emit_system(job.id, message, data={"version": version.ref, **report})

    async def _promote(
        self,
        job: JobRecord,
        version: VersionRecord,
        production: tuple[AliasRecord | None, VersionRecord | None],
        report: dict[str, Any],
    ) -> None:
        alias, previous = production
        if job.knobs.get("promote") != "if_better" or previous is None or alias is None or version.number is None:
            return
        gain = report["vs_previous"]["loss"]
        if gain["high"] >= 0:
            text = f"{version.ref} is not surely better than {previous.ref}: production stays"
        else:
            await asyncio.to_thread(
                self._registry.adapters.set_alias, version.project, version.adapter, DEFAULT_ALIAS,
                [Target(version.number)], alias.revision, ACTOR, f"validation loss {gain['mean']:+.4f} nats",
            )  # fmt: skip
            await self._changed()
            text = f"{version.ref} is better than {previous.ref}: promoted to production"
        await asyncio.to_thread(self._registry.jobs.emit_system, job.id, text, data={"loss_change": gain})
