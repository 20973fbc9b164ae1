"""What one training run keeps beside the weights: history, events, the best epoch, checkpoints."""

from __future__ import annotations

import time
from dataclasses import dataclass

from torch import Tensor
from tunedock_registry.registry import Registry

from .checkpoint import Checkpoints
from .history import History, Row
from .job import Job
from .losses import Item, Tally
from .pace import Pace
from .plots import write_plot
from .publish import Publisher
from .reporter import Reporter
from .samples import show_samples
from .trackers import trackers_of
from .trainee import StepResult, Trainee

MAX_SAMPLE = 8
"""Validation items of one look between epochs."""


@dataclass(frozen=True)
class Limits:
    """`save_every_s`: seconds between states to resume from; `max_tokens`: of one forward pass; jobs whose steps are
    together no larger than `together_tokens` train side by side (0 is off)."""

    save_every_s: float = 60.0
    max_tokens: int = 2048
    together_tokens: int = 1024


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


class Run:
    """One trainee of one job. Opening it resumes the state that an earlier try has saved."""

    def __init__(
        self,
        registry: Registry,
        job: Job,
        trainee: Trainee,
        validation: list[Item],
        reporter: Reporter,
        publisher: Publisher,
        limits: Limits,
    ) -> None:
        self.trainee = trainee
        self._job, self._validation, self._reporter = job, validation, reporter
        self._publisher, self._limits = publisher, limits
        self._checkpoints = Checkpoints(job.folder / "state", job.digest, job.claim.epoch)
        saved = self._checkpoints.restore(trainee)
        self._best = Best(**saved.notes["best"], weights=saved.best) if saved else Best()
        self.history = History(job.folder / "metrics.jsonl", trainee.step)
        self.trackers = trackers_of(job, trainee.step, reporter)
        self._pace = Pace((job.num_runs - job.number) * trainee.total_steps - trainee.step)
        self._told = last_told(registry, job.record.id)
        self._saved_at = self._began = time.monotonic()
        for row in self.history.rows:  # a state can be on disk before its step is told
            self._tell(row)
        if saved is not None:
            reporter.event(f"Training continues after step {saved.step}", data={"step": saved.step})

    @property
    def done(self) -> bool:
        return self.trainee.step >= self.trainee.total_steps or self._stopped_early

    @property
    def _stopped_early(self) -> bool:
        return bool(self._job.config.patience) and self._best.stale >= self._job.config.patience

    @property
    def loss(self) -> float:
        """What runs of a sweep are compared by: the lowest full validation loss, else the last training loss."""
        if self._best.loss is not None:
            return self._best.loss
        return self.history.rows[-1].train_loss if self.history.rows else float("inf")

    @property
    def step(self) -> int:
        """The step whose weights the run stands for: the best epoch's when early stopping watches, else the last."""
        chosen = self._job.config.patience and self._best.weights is not None
        return self._best.step if chosen else self.trainee.step

    def after_step(self, tally: Tally) -> None:
        """Optimizer, validation, events, and a state or a checkpoint when one is due."""
        result = self.trainee.finish_step(tally)
        row = self._row(result, self._lap())
        self.history.add(row)
        self.trackers.add(row)
        self._tell(row)
        self._tell_pace()
        if row.full_valid_loss is not None:
            self._best.see(row.full_valid_loss, row.step, self.trainee.adapter.params, self._job.config.min_delta)
        if self.trainee.at_epoch_end and not self.done:
            self._checkpoint(row)
            self.save()
        elif time.monotonic() - self._saved_at > self._limits.save_every_s:
            self.save()
        self._began = time.monotonic()

    def _lap(self) -> float:
        return time.monotonic() - self._began

    def _row(self, result: StepResult, seconds: float) -> Row:
        tally = result.tally
        measured: dict[str, float] = {}
        interval = self._job.config.eval_interval
        if self._validation and interval and result.step % interval == 0:
            sample = self.trainee.evaluate(self._sample(result.step // interval))
            measured |= {"valid_loss": sample.loss, "valid_mean_token_accuracy": sample.accuracy}
        if self._validation and self.trainee.at_epoch_end:
            full = self.trainee.evaluate(self._validation)
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

    def _sample(self, look: int) -> list[Item]:
        """Some validation items; the next ones at the next look."""
        size = min(MAX_SAMPLE, self._job.config.batch_size, len(self._validation))
        return [self._validation[(look * size + number) % len(self._validation)] for number in range(size)]

    def _tell(self, row: Row) -> None:
        """Steps of a sweep are counted on from one run to the next."""
        before, total = self._job.number * self.trainee.total_steps, self._job.num_runs * self.trainee.total_steps
        if before + row.step > self._told:
            text, data = row.message(before + row.step, total), row.data(before + row.step, total)
            self._reporter.event(text, "metrics", data=data)

    def _tell_pace(self) -> None:
        finish = self._pace.estimate()
        if finish is not None:
            self._reporter.progress(estimated_finish=finish)

    def _checkpoint(self, row: Row) -> None:
        """A version that can be called at once; a sweep has none before its end."""
        if self._job.num_runs == 1:
            self._reporter.flush()
            self._publisher.checkpoint(self.trainee, row.metrics())
            self._samples()

    def _samples(self) -> None:
        count, held_out = self._job.config.num_samples, self._job.data.held_out
        for text, data in show_samples(self.trainee, held_out, count):
            self._reporter.event(text, data=data)

    def save(self) -> None:
        """A state to resume from. The history of its steps is on disk before it is."""
        self.history.sync()
        best = {"loss": self._best.loss, "step": self._best.step, "stale": self._best.stale}
        saved = self._checkpoints.save(self.trainee, {"best": best}, self._best.weights)
        self._reporter.progress(saved_step=self._job.number * self.trainee.total_steps + saved.step)
        self._saved_at = time.monotonic()

    def close(self) -> Run:
        """The run is over: its chosen weights are the adapter's, its plot is drawn, its state is on disk."""
        write_plot(self.history.rows, self._job.folder / "plot.png")
        if self._job.num_runs > 1:
            self.save()
        if self.step != self.trainee.step and self._best.weights is not None:
            self._publish_last()
            self.trainee.adapter.params.copy_(self._best.weights)
            self.trainee.adapter.refresh()
        return self

    def _publish_last(self) -> None:
        """The last weights are not the best: they stay available as a checkpoint."""
        if self._job.num_runs == 1:
            self._reporter.flush()
            self._publisher.checkpoint(self.trainee, self.history.rows[-1].metrics())

    def announce(self, num_runs: int) -> None:
        """Says what is going to be published, and shows what it answers."""
        if num_runs > 1:
            chosen = self._job.variant
            self._reporter.event(
                f"The best of {num_runs} runs has {chosen}: loss {self.loss:.4f}",
                data={"sweep": chosen, "loss": self.loss},
            )
        if self.step != self.trainee.step:
            self._reporter.event(
                f"The weights of step {self.step} had the lowest full validation loss and are published",
                data={"step": self.step, "full_valid_loss": self._best.loss},
            )
        self._samples()

    def forget(self) -> None:
        """The job is over: nothing to resume."""
        self._checkpoints.clear()


def last_told(registry: Registry, job_id: str) -> int:
    """The last step that an earlier try has reported: a resumed run does not report it again."""
    told, seq = 0, 0
    while events := registry.jobs.events_since(job_id, seq):
        seq = events[-1].seq
        told = max([told, *(int(event.data.get("step", 0)) for event in events if event.type == "metrics")])
    return told
