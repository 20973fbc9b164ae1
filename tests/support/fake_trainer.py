"""A trainer without training: claims a job, writes what a real one writes, publishes a version whose probe is true."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from tunedock_api.manifest import WEIGHTS_FILE, Lineage, Probe, ProbeExample
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.models.facts import BaseFacts
from tunedock_registry.records import Claim, JobResult, VersionRecord
from tunedock_registry.registry import Registry

from .bases import adapter_config, write_adapter
from .fake_pool import logprob_of, top1_of

TEXTS = tuple(tuple((7 * text + 3 * i) % 120 for i in range(24)) for text in range(3))
HYPERPARAMETERS = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}


@dataclass
class FakeTrainer:
    """Runs jobs of `registry` step by step, as the test says."""

    registry: Registry
    base: BaseFacts
    folder: Path
    steps: int = 3
    result: JobResult = field(default_factory=lambda: JobResult(123, HYPERPARAMETERS))

    def claim(self) -> Claim:
        claim = self.registry.jobs.claim("fake-trainer")
        assert claim is not None, "no job waits"
        jobs = self.registry.jobs
        method = {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}
        jobs.progress(claim, hyperparameters=HYPERPARAMETERS, method=method, estimated_finish=2_000_000_000)
        return claim

    def train(self, claim: Claim) -> None:
        for step in range(1, self.steps + 1):
            loss = round(1.0 / step, 2)
            data = {"step": step, "total_steps": self.steps, "train_loss": loss}
            message = f"Step {step}/{self.steps}: training loss={loss:.2f}"
            self.registry.jobs.emit(claim, message, "metrics", data=data)

    def checkpoint(self, claim: Claim, step: int) -> VersionRecord:
        return self._publish(claim, step)

    def publish(self, claim: Claim) -> VersionRecord:
        return self._publish(claim, None)

    def run(self) -> VersionRecord:
        """One whole job."""
        claim = self.claim()
        self.train(claim)
        return self.publish(claim)

    def run_when_asked(self, timeout_s: float = 20.0) -> VersionRecord:
        """Waits for a job, as a trainer process does, and runs it."""
        deadline = time.monotonic() + timeout_s
        while not self.registry.jobs.with_status("queued"):
            assert time.monotonic() < deadline, "no job came"
            time.sleep(0.05)
        return self.run()

    def _publish(self, claim: Claim, step: int | None) -> VersionRecord:
        job = claim.job
        seed = sum(job.id.encode()) * 1000 + (step or 0)
        folder = write_adapter(self.folder / f"{job.id}-{step or 'final'}", self.base, seed)
        lineage = Lineage(origin="checkpoint" if step else "trained", job_id=job.id, step=step)
        config = adapter_config(base=self.base.identity.id)
        bare = prepare(config, folder / WEIGHTS_FILE, self.base, ManifestParts(lineage))
        parts = ManifestParts(lineage, base=self.base.identity, probe=true_probe(bare.digest))
        prepared = prepare(config, folder / WEIGHTS_FILE, self.base, parts)
        return self.registry.adapters.publish(
            job.project,
            job.adapter,
            prepared,
            origin=lineage.origin,
            claim=claim,
            job_result=None if step else self.result,
            checkpoint_step=step,
        )


def true_probe(digest: str) -> Probe:
    """What the fake engine will say about this digest (a probe is no part of the identity)."""
    examples = []
    for text in TEXTS:
        positions = range(1, len(text))
        examples.append(
            ProbeExample(
                token_ids=text,
                start=1,
                adapter_logprobs=tuple(logprob_of(digest, text, i) for i in positions),
                base_logprobs=tuple(logprob_of(None, text, i) for i in positions),
                adapter_top1=tuple(top1_of(digest, text, i) for i in positions),
            )
        )
    return Probe(dtype="bfloat16", examples=tuple(examples))
