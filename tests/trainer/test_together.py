"""Jobs that share passes through the base train as if each were alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.training import config, items, step, trainee
from support.training_jobs import chats, events, finished, open_home, preferences, queue_job, run_all, upload
from tunedock_registry.records import JobRecord
from tunedock_registry.registry import Registry
from tunedock_trainer.run import Limits
from tunedock_trainer.settings import LoraConfig, OptimConfig
from tunedock_trainer.together import Wanted, backward


@pytest.fixture
def registry(home_root: Path) -> Iterator[Registry]:
    opened = open_home(home_root)
    yield opened
    opened.close()


RUNS = [
    config(seed=1),
    config(seed=2, lora=LoraConfig(rank=2, alpha=8, target_modules=("q_proj", "v_proj"))),
    config(seed=3, batch_size=6, optim=OptimConfig(learning_rate=3e-2, schedule="constant")),
    config(seed=4, lora=LoraConfig(rank=4, alpha=8, dropout=0.2)),
    config(seed=5, packing=False),
]


@pytest.mark.parametrize("max_tokens", [4096, 40])
def test_losses_and_weights_equal_those_of_solo_runs(max_tokens: int) -> None:
    # How a batch is cut decides which dropout its tokens get, so that run is compared uncut.
    runs = [run for run in RUNS if max_tokens == 4096 or not run.lora.dropout]
    crew = [trainee(run, items(12, seed=run.seed)) for run in runs]
    solo = [trainee(run, items(12, seed=run.seed)) for run in runs]
    for _ in range(5):
        tallies = backward([Wanted(one, one.next_batch()) for one in crew], max_tokens)
        together = [one.finish_step(tally) for one, tally in zip(crew, tallies, strict=True)]
        alone = [step(one) for one in solo]
        for ours, theirs in zip(together, alone, strict=True):
            assert ours.tally.loss == pytest.approx(theirs.tally.loss, abs=1e-3)
            assert (ours.tally.num_tokens, ours.tally.num_labels) == (theirs.tally.num_tokens, theirs.tally.num_labels)
    if max_tokens == 4096:
        for one, two in zip(crew, solo, strict=True):
            assert torch.allclose(one.adapter.params, two.adapter.params, atol=1e-4)


def test_small_jobs_of_the_queue_train_side_by_side(registry: Registry) -> None:
    jobs = [
        queue_job(registry, chats(20, 100 * n), adapter=f"colours-{n}", seed=n, hyperparameters={"n_epochs": 20})
        for n in range(2)
    ]
    pairs = queue_job(registry, preferences(20), type="dpo", adapter="taste", hyperparameters={"n_epochs": 5})
    run_all(registry, Limits(together_tokens=4096))
    assert [finished(registry, job).status for job in (*jobs, pairs)] == ["succeeded"] * 3
    first, second = (seqs_of_steps(registry, job) for job in jobs)
    assert first[0] < second[0] < first[-1]


def test_large_jobs_wait_for_each_other(registry: Registry) -> None:
    jobs = [queue_job(registry, chats(20, 100 * n), adapter=f"colours-{n}") for n in range(2)]
    run_all(registry, Limits(together_tokens=60))
    first, second = (seqs_of_steps(registry, job) for job in jobs)
    assert first[-1] < second[0]


def test_a_job_that_fails_leaves_the_others_at_work(registry: Registry) -> None:
    good = queue_job(registry, chats(20), adapter="good", hyperparameters={"n_epochs": 20})
    bad = queue_job(registry, [], adapter="bad", training_file=upload(registry, preferences(20)).id)
    run_all(registry, Limits(together_tokens=4096))
    assert finished(registry, good).status == "succeeded"
    assert finished(registry, bad).status == "failed"


def seqs_of_steps(registry: Registry, job: JobRecord) -> list[int]:
    return [event.seq for event in events(registry, job) if event.type == "metrics"]
