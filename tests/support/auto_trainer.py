"""A thread that works off the queue like a trainer process: steps, checkpoints, result file, cancel and pause."""

from __future__ import annotations

import threading
from pathlib import Path

from tunedock_api.errors import Conflict
from tunedock_registry.models.facts import BaseFacts
from tunedock_registry.records import Claim, Control, JobResult
from tunedock_registry.registry import Registry

from .fake_trainer import HYPERPARAMETERS, FakeTrainer

STEPS, STEP_S = 6, 0.05
RESULT_HEADER = "step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy\n"


class AutoTrainer:
    """Use as a context manager. One job at a time, oldest first."""

    def __init__(self, registry: Registry, base: BaseFacts, folder: Path) -> None:
        self._registry = registry
        self._trainer = FakeTrainer(registry, base, folder, STEPS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="auto-trainer")

    def __enter__(self) -> AutoTrainer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.wait(0.05):
            claim = self._registry.jobs.claim("auto-trainer")
            if claim is not None:
                try:
                    self._train(claim)
                except Conflict:  # cancelled under our hands
                    continue

    def _train(self, claim: Claim) -> None:
        jobs = self._registry.jobs
        method = {"type": "supervised", "supervised": {"hyperparameters": HYPERPARAMETERS}}
        jobs.progress(claim, hyperparameters=HYPERPARAMETERS, method=method)
        rows = [RESULT_HEADER]
        for step in range(1, STEPS + 1):
            if self._must_let_go(claim):
                return
            loss = 1.0 / step
            data = {"step": step, "total_steps": STEPS, "train_loss": loss}
            jobs.emit(claim, f"Step {step}/{STEPS}: training loss={loss:.2f}", "metrics", data=data)
            rows.append(f"{step},{loss},0.5,,\n")
            if step == STEPS // 2:
                self._trainer.checkpoint(claim, step)
            self._stop.wait(STEP_S)
        result = self._registry.files.create(
            claim.job.project, f"{claim.job.id}.csv", "fine-tune-results", ["".join(rows).encode()]
        )
        self._registry.files.set_result(result.id, "processed", None, {})
        self._trainer.result = JobResult(123, HYPERPARAMETERS, (result.id,))
        self._trainer.publish(claim)

    def _must_let_go(self, claim: Claim) -> bool:
        match self._registry.jobs.heartbeat(claim):
            case Control.CONTINUE:
                return False
            case Control.PAUSE:
                self._registry.jobs.release(claim, "paused")
            case Control.CANCEL:
                self._registry.jobs.release(claim, "cancelled")
        return True
