"""From trained weights to a version in the registry: export, read back, probe, card, publish."""

from __future__ import annotations

import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

from tunedock_api.manifest import WEIGHTS_FILE, Lineage, ServingProfile
from tunedock_registry.adapters.intake import ManifestParts, PreparedAdapter, prepare
from tunedock_registry.records import JobResult, VersionRecord
from tunedock_registry.registry import Registry

from .base import Base
from .card import model_card
from .export import export_config, export_weights, served_adapter
from .history import History
from .job import Job
from .probe import make_probe
from .trainee import Trainee

KEEP_CHECKPOINTS = 3
_PACKAGES = ("tunedock", "torch", "transformers", "safetensors")


class Publisher:
    """Publishes checkpoints and the final version of one job."""

    def __init__(self, registry: Registry, base: Base, job: Job) -> None:
        self._registry, self._base, self._job = registry, base, job

    def checkpoint(self, trainee: Trainee, metrics: dict[str, float]) -> VersionRecord:
        """A version that can be called at once; of several, the last three stay. Raises Conflict (stale_lease)."""
        version = self._publish(trainee, trainee.step, metrics, None)
        for old in self._checkpoints()[KEEP_CHECKPOINTS:]:
            self._registry.adapters.retire(old.id, "a later checkpoint of the same job took its place")
        return version

    def _checkpoints(self) -> list[VersionRecord]:
        """Newest first."""
        record = self._job.record
        page = self._registry.jobs.checkpoints(record.project, record.id, limit=100)
        versions = [self._registry.adapters.by_id(checkpoint.version_id) for checkpoint in page.items]
        return [version for version in versions if version.state not in ("retiring", "retired")]

    def final(self, trainee: Trainee, history: History, step: int) -> VersionRecord:
        """The job's result: the version, the result file and the job's success. Raises Conflict (stale_lease)."""
        record = self._job.record
        file = self._registry.files.create(
            record.project, f"{record.id}-results.csv", "fine-tune-results", [history.csv()]
        )
        self._registry.files.set_result(file.id, "processed", None, {})
        result = JobResult(history.trained_tokens, self._job.hyperparameters, (file.id,))
        rows = [row for row in history.rows if row.step <= step]
        metrics = rows[-1].metrics() if rows else {}
        return self._publish(trainee, step, metrics, result)

    def _publish(
        self, trainee: Trainee, step: int, metrics: dict[str, float], result: JobResult | None
    ) -> VersionRecord:
        record, claim = self._job.record, self._job.claim
        with tempfile.TemporaryDirectory(dir=self._registry.home.tmp, prefix="export-") as folder:
            prepared = self._prepare(trainee, step, metrics, Path(folder), final=result is not None)
            return self._registry.adapters.publish(
                record.project,
                record.adapter,
                prepared,
                origin="checkpoint" if result is None else "trained",
                claim=claim,
                job_result=result,
                checkpoint_step=step if result is None else None,
            )

    def _prepare(
        self, trainee: Trainee, step: int, metrics: dict[str, float], folder: Path, *, final: bool
    ) -> PreparedAdapter:
        """Everything that is measured is measured with the file as written, read back."""
        weights = folder / WEIGHTS_FILE
        config = trainee.config
        export_weights(trainee.adapter, weights, self._base.served_dtype)
        served = served_adapter(weights, self._base.groups, dtype=self._base.dtype, device=self._base.device)
        lora = config.lora
        lineage = self._lineage(step, final=final)
        parts = ManifestParts(
            lineage=lineage,
            base=self._base.facts.identity,
            serving=ServingProfile(chat_template_kwargs=self._job.knobs.chat_template_kwargs),
            probe=make_probe(self._base, served, self._job.data.held_out),
            training=self._training(trainee, step),
            metrics=metrics,
            packages={name: importlib.metadata.version(name) for name in _PACKAGES},
            trained_rank=lora.rank,
            trained_alpha=lora.alpha,
            trained_rslora=lora.rslora,
            readme=model_card(self._job, config, self._base.facts.identity.id, lineage, metrics),
        )
        peft = export_config(trainee.adapter.modules.values(), self._base.facts.identity.id)
        return prepare(peft, weights, self._base.facts, parts)

    def _lineage(self, step: int, *, final: bool) -> Lineage:
        return Lineage(
            origin="trained" if final else "checkpoint",
            job_id=self._job.record.id,
            step=step,
            parents=(self._job.parent.ref,) if self._job.parent else (),
            datasets=self._job.data.digests,
            seed=self._job.config.seed,
        )

    def _training(self, trainee: Trainee, step: int) -> dict[str, Any]:
        config = trainee.config.model_dump(mode="json")
        data = self._job.data
        return {
            **config,
            "steps": step,
            "num_examples": data.num_examples,
            "num_validation": len(data.validation),
            "num_dropped": data.num_dropped,
        }
