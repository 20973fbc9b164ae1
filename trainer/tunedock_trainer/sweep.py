"""A sweep trains one job several times, with another learning rate or rank each time, and keeps the best."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from .job import Job
from .run import Run


def variants(job: Job) -> Iterator[Job]:
    """The job itself, or one job for each combination, with a folder and a digest of its own."""
    sweep = job.knobs.sweep
    if sweep is None:
        yield job
        return
    asked = job.hyperparameters["learning_rate_multiplier"]
    combinations = list(product(sweep.learning_rate_multiplier or (asked,), sweep.rank or (job.config.lora.rank,)))
    for number, (multiplier, rank) in enumerate(combinations):
        optim = job.config.optim
        rate = optim.learning_rate * multiplier / asked
        config = job.config.model_copy(
            update={
                "optim": optim.model_copy(update={"learning_rate": rate}),
                "lora": job.config.lora.model_copy(update={"rank": rank}),
            }
        )
        yield replace(
            job,
            config=config,
            folder=job.folder / f"sweep-{number}",
            number=number,
            num_runs=len(combinations),
            variant={"learning_rate_multiplier": multiplier, "rank": rank},
        )


def best_of(runs: Sequence[Run]) -> Run:
    """The run with the lowest loss; the first one of equals."""
    return min(runs, key=lambda run: run.loss)
