"""The training loop of one job. Read it from top to bottom: `run_job`."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from tunedock_registry.records import Claim, Control, VersionRecord
from tunedock_registry.registry import Registry

from .base import Base
from .checkpoint import Checkpoints
from .history import History, Row
from .job import Job, new_trainee, prepare_job
from .losses import Item
from .pace import Pace
from .plots import RunBoard, write_plot
from .publish import Publisher
from .reporter import Reporter, Stopped
from .sampler import Source
from .samples import show_samples
from .trainee import StepResult, Trainee

log = logging.getLogger(__name__)
KEEP_CHECKPOINTS = 3


@dataclass
class Limits:
    """`save_every_s`: seconds between states to resume from; `max_tokens`: of one forward pass."""

    save_every_s: float = 60.0
    max_tokens: int = 4096


@dataclass
class Best:
    """The lowest full validation loss so far; `stale` counts epochs without a better one."""

    loss: float | None = None
    step: int = 0
    stale: int = 0
    weights: Tensor | None = None

    def see(self, loss: float, step: int, weights: Tensor, min_delta: float) -> None:
        if self.loss is None or loss < self.loss - min_delta:
            self.loss, self.step, self.stale, self.weights = loss, step, 0, weights.clone()
        else:
            self.stale += 1


def run_job(registry: Registry, base: Base, claim: Claim, limits: Limits, stopping: Callable[[], bool]) -> None:
    """Trains the claimed job and publishes its version. Raises Stopped when it has to let go of the job, with a state to
    resume from on disk; BadInput for what the caller has to mend."""
    with Reporter(registry.jobs, claim) as reporter:
        # 1. Settings, data and adapter, checked before the first step.
        job = prepare_job(registry, base, claim, limits.max_tokens)
        reporter.progress(hyperparameters=job.hyperparameters, method=job.method.as_body(job.hyperparameters))
        trainee = new_trainee(registry, base, job)
        data = _with_references(trainee, job)
        # 2. Where an earlier try left off.
        run = Run(registry, base, job, trainee, data, reporter, limits)
        run.resume()
        # 3. Steps, with validation and checkpoints at the ends of epochs.
        while trainee.step < trainee.total_steps and not run.stopped_early:
            run.step()
            _check(run, reporter, stopping)
        # 4. The best weights become a version, and the job succeeds in the same transaction.
        run.finish()


def _with_references(trainee: Trainee, job: Job) -> list[Item]:
    """Validation items; for DPO all items get the log-probabilities of the adapter as it is before training."""
    validation = list(job.data.validation)
    if job.config.objective != "dpo":
        return validation
    sources = trainee.sampler.sources
    trainee.sampler.sources = [Source(trainee.with_reference(source.items), source.weight) for source in sources]
    return trainee.with_reference(validation)


def _check(run: Run, reporter: Reporter, stopping: Callable[[], bool]) -> None:
    """Cancel, pause and shutdown are answered here, after every step."""
    try:
        reporter.check()
        if stopping():
            raise Stopped(Control.CONTINUE, "the trainer shuts down")
    except Stopped as stop:
        if stop.control is not Control.CANCEL:
            run.save()
        raise


class Run:
    """The state of one job's training that is not weights."""

    def __init__(
        self,
        registry: Registry,
        base: Base,
        job: Job,
        trainee: Trainee,
        validation: list[Item],
        reporter: Reporter,
        limits: Limits,
    ) -> None:
        self._job, self._trainee, self._validation = job, trainee, validation
        self._reporter, self._limits = reporter, limits
        self._base = base
        self._checkpoints: Checkpoints = job.checkpoints()
        self._publisher = Publisher(registry, base, job)
        self._best = Best()
        self._saved_at = time.monotonic()
        self._told = self._last_told(registry)

    def _last_told(self, registry: Registry) -> int:
        """The last step that an earlier try has reported: a resumed run does not report it again."""
        told, seq = 0, 0
        while events := registry.jobs.events_since(self._job.record.id, seq):
            seq = events[-1].seq
            told = max([told, *(int(event.data.get("step", 0)) for event in events if event.type == "metrics")])
        return told

    @property
    def stopped_early(self) -> bool:
        return bool(self._job.config.patience) and self._best.stale >= self._job.config.patience

    def resume(self) -> None:
        saved = self._checkpoints.restore(self._trainee)
        step = saved.step if saved else 0
        self._history = History(self._job.folder / "metrics.jsonl", step)
        self._board = RunBoard(self._job.folder / "tensorboard", step)
        if saved is not None:
            self._best = Best(**saved.notes["best"], weights=saved.best)
            self._reporter.event(f"Training continues after step {step}", data={"step": step})
        self._pace = Pace(self._trainee.total_steps - step)

    def step(self) -> None:
        started = time.perf_counter()
        result = self._trainee.train_step()
        row = self._row(result, time.perf_counter() - started)
        self._history.add(row)
        self._board.add(row)
        self._tell(row)
        if row.full_valid_loss is not None:
            params = self._trainee.adapter.params
            self._best.see(row.full_valid_loss, row.step, params, self._job.config.min_delta)
        if self._trainee.at_epoch_end and self._trainee.step < self._trainee.total_steps and not self.stopped_early:
            self._checkpoint(row)
            self.save()
        elif time.monotonic() - self._saved_at > self._limits.save_every_s:
            self.save()

    def _row(self, result: StepResult, seconds: float) -> Row:
        tally = result.tally
        measured: dict[str, float] = {}
        if self._validation and self._job.config.eval_interval and result.step % self._job.config.eval_interval == 0:
            sample = self._trainee.evaluate(self._sample(result.step))
            measured |= {"valid_loss": sample.loss, "valid_mean_token_accuracy": sample.accuracy}
        if self._validation and self._trainee.at_epoch_end:
            full = self._trainee.evaluate(self._validation)
            measured |= {"full_valid_loss": full.loss, "full_valid_mean_token_accuracy": full.accuracy}
        return Row(
            step=result.step,
            train_loss=tally.loss,
            train_accuracy=tally.accuracy,
            learning_rate=result.learning_rate,
            grad_norm=result.grad_norm,
            num_tokens=tally.num_tokens,
            num_labels=tally.num_labels,
            seconds=seconds,
            **measured,
        )

    def _sample(self, step: int) -> list[Item]:
        """One batch of the validation set; the next one at the next look."""
        size = min(self._job.config.batch_size, len(self._validation))
        start = step // self._job.config.eval_interval * size
        return [self._validation[(start + number) % len(self._validation)] for number in range(size)]

    def _tell(self, row: Row) -> None:
        total = self._trainee.total_steps
        if row.step > self._told:
            self._reporter.event(row.message(total), "metrics", data=row.data(total))
        finish = self._pace.estimate()
        if finish is not None:
            self._reporter.progress(estimated_finish=finish)

    def _checkpoint(self, row: Row) -> None:
        """A version that can be called at once; only the last ones stay."""
        self._reporter.flush()
        self._publisher.checkpoint(self._trainee, row.metrics())
        self._samples()

    def _samples(self) -> None:
        for text, data in show_samples(
            self._base, self._trainee, self._job.data.held_out, self._job.config.num_samples
        ):
            self._reporter.event(text, data=data)

    def save(self) -> None:
        """A state to resume from."""
        best = {"loss": self._best.loss, "step": self._best.step, "stale": self._best.stale}
        saved = self._checkpoints.save(self._trainee, {"best": best}, self._best.weights)
        self._reporter.progress(saved_step=saved.step)
        self._saved_at = time.monotonic()

    def finish(self) -> VersionRecord:
        """Publishes the best weights when validation chose some, else the last ones."""
        self._samples()
        step = self._trainee.step
        if self._job.config.patience and self._best.weights is not None and self._best.step != step:
            self._trainee.adapter.params.copy_(self._best.weights)
            self._trainee.adapter.refresh()
            step = self._best.step
            self._reporter.event(
                f"The weights of step {step} had the lowest full validation loss and are published",
                data={"step": step, "full_valid_loss": self._best.loss},
            )
        self._board.close()
        write_plot(self._history.rows, self._job.folder / "plot.png")
        self._reporter.flush()
        version = self._publisher.final(self._trainee, self._history, step)
        self._checkpoints.clear()
        return version
