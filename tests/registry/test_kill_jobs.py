"""kill -9 of a worker at random moments: every write happened or did not, and the next worker finishes the job."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
from sqlalchemy import text
from support.killing_jobs import STEPS, wake_up_late, work_for_ever, work_off
from support.processes import CONTEXT
from support.registry import FakeTime, open_registry, queued_job
from support.sizes import sized
from tunedock_registry.job_queue import MAX_ATTEMPTS
from tunedock_registry.records import JobRecord
from tunedock_registry.registry import Registry

KILLS = {"sqlite": 20, "postgres": 8}


def _kill_often(root: Path, database_url: str | None, kills: int) -> None:
    registry = open_registry(root, database_url=database_url)
    seed = random.SystemRandom().randrange(2**32)
    moments = random.Random(seed)
    for kill in range(kills):
        worker = f"worker-{kill}"
        _run_and_kill(root, database_url, worker, moments.uniform(0.0, 0.2))
        for job in registry.jobs.with_status("validating_files"):
            registry.jobs.mark_validated(job.id)
        held = registry.jobs.release_worker(worker)
        assert len(held) <= 1
        _check_all(registry, f"kill {kill} of seed {seed}")
    registry.close()
    _finish(root, database_url)


def _finish(root: Path, database_url: str | None) -> None:
    """A worker that lives finishes what the dead ones left, when the delays are over."""
    registry = open_registry(root, FakeTime(wall_s=time.time() + 1_000), database_url=database_url)
    work_off(registry, "survivor")
    _check_all(registry, "at the end")
    jobs = _all_jobs(registry)
    assert jobs
    assert all(job.status == "succeeded" or (job.status == "failed" and job.attempts == MAX_ATTEMPTS) for job in jobs)
    registry.close()


def _run_and_kill(root: Path, database_url: str | None, worker: str, delay_s: float) -> None:
    here, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=work_for_ever, args=(root, database_url, worker, there))
    child.start()
    assert here.poll(30)
    assert here.recv() == "working"
    time.sleep(delay_s)
    child.kill()
    child.join(10)
    assert child.exitcode == -signal.SIGKILL


def _all_jobs(registry: Registry) -> list[JobRecord]:
    return registry.jobs.list("default", limit=10_000).items


def _check_all(registry: Registry, hint: str) -> None:
    for job in _all_jobs(registry):
        _check(registry, job, hint)


def _check(registry: Registry, job: JobRecord, hint: str) -> None:
    """What is written in one transaction is there together or not at all."""
    messages = [event.message for event in registry.jobs.events_since(job.id)]
    checkpoints = registry.jobs.checkpoints("default", job.id, limit=100).items

    def told(beginning: str) -> int:
        return sum(message.startswith(beginning) for message in messages)

    assert (told("Created fine-tuning job"), told("Validating training file")) == (1, 1), hint
    assert job.metadata is not None, hint
    assert [found.id for found in registry.jobs.list("default", metadata=job.metadata, limit=10_000).items].count(
        job.id
    ) == 1, hint
    assert told("Fine-tuning job started") + told("Fine-tuning job continues") == job.epoch, hint
    assert told("Checkpoint created at step") == len(checkpoints), hint
    assert (job.saved_step or 0) <= len(checkpoints), hint
    done = job.status == "succeeded"
    assert told("New fine-tuned model created") == told("The job has successfully completed") == int(done), hint
    assert (job.version_id is not None) == (job.finished_at is not None) == done or job.status == "failed", hint
    assert not done or (job.trained_tokens, len(checkpoints)) == (STEPS, STEPS), hint


def test_a_killed_worker_leaves_the_queue_whole_on_sqlite(home_root: Path) -> None:
    _kill_often(home_root, None, KILLS["sqlite"])
    registry = open_registry(home_root)
    with registry.db.read() as session:
        assert session.scalar(text("PRAGMA integrity_check")) == "ok"
        assert session.execute(text("PRAGMA foreign_key_check")).all() == []
    registry.close()


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
def test_a_killed_worker_leaves_the_queue_whole_on_postgres(home_root: Path, database_url: str) -> None:
    _kill_often(home_root, database_url, KILLS["postgres"])


@pytest.mark.parametrize("kills", sized(campaign=40, slow=400))
def test_a_worker_killed_very_often_leaves_the_queue_whole(home_root: Path, kills: int) -> None:
    _kill_often(home_root, None, kills)


def test_a_stopped_worker_that_wakes_up_can_write_nothing(registry: Registry, database_url: str | None) -> None:
    job = queued_job(registry)
    here, there = CONTEXT.Pipe()
    child = CONTEXT.Process(target=wake_up_late, args=(registry.home.root, database_url, there))
    child.start()
    try:
        assert here.poll(30)
        assert here.recv() == "claimed"
        assert child.pid is not None
        os.kill(child.pid, signal.SIGSTOP)
        here.send("wake up")
        assert registry.jobs.release_worker("zombie") == [job.id]
        frozen = (registry.jobs.find(job.id), registry.jobs.events_since(job.id))
        os.kill(child.pid, signal.SIGCONT)
        assert here.poll(30)
        assert set(here.recv().values()) == {"stale_lease"}
        assert (registry.jobs.find(job.id), registry.jobs.events_since(job.id)) == frozen
    finally:
        child.kill()
        child.join(10)
