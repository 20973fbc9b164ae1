"""The training of one job, from its claim to its version. Read it from top to bottom: `train_job`.

A job is a generator: it yields the batches whose gradients it needs and gets their tallies back. So `crew` can train one
job, or the batches of several in one pass, and the code of a job knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

from tunedock_registry.records import Claim, Control
from tunedock_registry.registry import Registry

from .base import Base
from .job import Job, new_trainee, prepare_job
from .losses import Item, Tally
from .publish import Publisher
from .reporter import Reporter, Stopped
from .run import Limits, Run
from .sampler import Source
from .sweep import best_of, variants
from .together import Wanted
from .trackers import check_trackers
from .trainee import Trainee

Steps = Generator[Wanted, Tally, None]


def train_job(registry: Registry, base: Base, claim: Claim, limits: Limits, stopping: Callable[[], bool]) -> Steps:
    """Trains the claimed job and publishes its version. Raises Stopped when it has to let go of the job, with a state to
    resume from on disk; BadInput for what the caller has to mend."""
    with Reporter(registry.jobs, claim) as reporter:
        # 1. Settings and data, checked before the first step.
        job = prepare_job(registry, base, claim, limits.max_tokens)
        check_trackers(job)
        reporter.progress(hyperparameters=job.hyperparameters, method=job.method.as_body(job.hyperparameters))
        # 2. One run, or one for each combination of a sweep. Each goes on where an earlier try left off.
        publisher, runs = Publisher(registry, base, job), []
        for variant in variants(job):
            trainee = new_trainee(registry, base, variant)
            run = Run(registry, variant, trainee, with_references(trainee, variant), reporter, publisher, limits)
            # 3. Steps, with validation and checkpoints at the ends of epochs.
            with run.trackers:
                while not run.done:
                    tally = yield Wanted(trainee, trainee.next_batch())
                    reporter.check_claim()
                    run.after_step(tally)
                    _check(run, reporter, stopping)
            runs.append(run.close())
        # 4. The best weights become a version, and the job succeeds in the same transaction.
        winner = best_of(runs)
        winner.announce(len(runs))
        reporter.flush()
        publisher.final(winner.trainee, winner.history, winner.step)
        for run in runs:
            run.forget()


def with_references(trainee: Trainee, job: Job) -> list[Item]:
    """The validation items; for DPO all items get the log-probabilities of the adapter as it is before training."""
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
        if stop.control is not Control.CANCEL and not stop.lost:
            run.save()
        raise
