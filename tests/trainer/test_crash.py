"""Killed, stopped, paused, cancelled: a job ends once, with the weights of a run that nobody disturbed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from support.registry import FakeTime, open_registry
from support.training_jobs import (
    chats,
    events,
    finished,
    open_home,
    queue_job,
    run_all,
    speaking_base,
    start_child,
    wait_for,
)
from tunedock_api.errors import Unavailable
from tunedock_registry.records import JobRecord
from tunedock_registry.registry import Registry
from tunedock_registry.tables.jobs import EventRow
from tunedock_trainer.base import Base
from tunedock_trainer.process import Stop, work
from tunedock_trainer.run import Limits

NO_FUSS = {"num_samples": 0, "lora": {"dropout": 0.1}, "early_stopping": None}
NUM_STEPS = 22


@pytest.fixture
def registry(home_root: Path) -> Iterator[Registry]:
    opened = open_home(home_root)
    yield opened
    opened.close()


def queue(registry: Registry) -> JobRecord:
    return queue_job(registry, chats(24), knobs=NO_FUSS, hyperparameters={"n_epochs": 2, "batch_size": 2})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the version that a run without interruption publishes."""
    registry = open_home(tmp_path_factory.mktemp("calm") / "home")
    job = queue(registry)
    child = start_child(registry)
    child.join(120)
    digest = digest_of(registry, job)
    registry.close()
    return digest


def digest_of(registry: Registry, job: JobRecord) -> str:
    version_id = finished(registry, job).version_id
    assert version_id is not None
    return registry.adapters.by_id(version_id).digest


def steps_told(registry: Registry, job: JobRecord) -> list[int]:
    return [event.data["step"] for event in events(registry, job) if event.type == "metrics"]


def check_ended_once(registry: Registry, job: JobRecord, undisturbed: str) -> None:
    done = finished(registry, job)
    numbered = [v for v in registry.adapters.versions("default", "colours").items if v.number is not None]
    assert done.status == "succeeded"
    assert [version.digest for version in numbered] == [undisturbed]
    told = steps_told(registry, job)
    assert told == list(range(1, NUM_STEPS + 1))
    assert [e.message for e in events(registry, job)].count("The job has successfully completed") == 1


def kill_until_done(registry: Registry, job: JobRecord, rng: random.Random) -> int:
    """Kills trainers at random moments until one comes through. Returns the number of kills.

    Every other one is killed anywhere, while it starts or publishes too; the ones between live until they have saved
    something new: a job that gets nowhere three times in a row is given up, and rightly so.
    """
    kills = 0
    while finished(registry, job).status not in ("succeeded", "failed"):
        child = start_child(registry, ahead_s=100.0 * kills, save_every_s=0.05)
        before = finished(registry, job).saved_step
        if kills % 2:
            wait_for(lambda: not child.is_alive() or finished(registry, job).saved_step != before)  # noqa: B023  # at once
        child.join(rng.uniform(0.0, 0.3) if kills < 2 else rng.uniform(0.0, 1.0) * kills)
        if child.is_alive():
            child.kill()
            kills += 1
        child.join()
        registry.jobs.release_worker(f"{os.uname().nodename}-{child.pid}")
    return kills


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.campaign) for seed in (1, 2, 3))])
def test_killed_at_random_points_the_job_ends_once_with_the_same_weights(
    registry: Registry, undisturbed: str, seed: int
) -> None:
    job = queue(registry)
    assert kill_until_done(registry, job, random.Random(seed)) >= 2
    check_ended_once(registry, job, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_killed_two_hundred_times_every_job_ends_once_with_the_same_weights(home_root: Path, undisturbed: str) -> None:
    kills = num_jobs = 0
    while kills < 200:
        registry = open_home(home_root / str(num_jobs))
        job = queue(registry)
        kills += kill_until_done(registry, job, random.Random(100 + num_jobs))
        check_ended_once(registry, job, undisturbed)
        registry.close()
        num_jobs += 1
    print(f"{kills} kills, {num_jobs} jobs")


def test_steps_that_a_kill_kept_from_being_told_are_told_by_the_next_trainer(
    registry: Registry, undisturbed: str
) -> None:
    """Events are written beside training, so that a state can be on disk before the registry knows of its step."""
    job = queue(registry)
    child = start_child(registry, save_every_s=0.05)
    wait_for(lambda: (finished(registry, job).saved_step or 0) >= 10)
    child.kill()
    child.join()
    with registry.db.write() as session:
        told = select(EventRow).where(EventRow.job_id == job.id, EventRow.type == "metrics")
        for event in session.scalars(told):
            if event.data["step"] > 7:
                session.delete(event)
    registry.jobs.release_worker(f"{os.uname().nodename}-{child.pid}")
    start_child(registry, ahead_s=100.0).join(60)
    check_ended_once(registry, job, undisturbed)


def test_sigterm_saves_the_step_and_gives_the_job_back(registry: Registry, undisturbed: str) -> None:
    job = queue(registry)
    child = start_child(registry, save_every_s=3600)
    wait_for(lambda: len(steps_told(registry, job)) >= 3)
    child.terminate()
    child.join(10)
    released = finished(registry, job)
    assert (child.exitcode, released.status, released.attempts) == (0, "queued", 0)
    assert released.saved_step is not None
    start_child(registry).join(60)
    check_ended_once(registry, job, undisturbed)


def test_pause_saves_the_step_and_resume_goes_on_from_it(registry: Registry, undisturbed: str) -> None:
    job = queue(registry)
    child = start_child(registry, save_every_s=3600)
    wait_for(lambda: len(steps_told(registry, job)) >= 3)
    registry.jobs.request_pause("default", job.id)
    child.join(20)
    assert finished(registry, job).status == "paused"
    assert finished(registry, job).saved_step
    registry.jobs.resume("default", job.id)
    start_child(registry).join(60)
    check_ended_once(registry, job, undisturbed)


def test_cancel_ends_the_run_and_nothing_is_published(registry: Registry) -> None:
    job = queue(registry)
    child = start_child(registry)
    wait_for(lambda: len(steps_told(registry, job)) >= 2)
    registry.jobs.request_cancel("default", job.id)
    told = len(steps_told(registry, job))
    child.join(20)
    assert (child.exitcode, finished(registry, job).status) == (0, "cancelled")
    assert len(steps_told(registry, job)) == told
    assert finished(registry, job).version_id is None


def stop_outside_a_transaction(registry: Registry, pid: int) -> None:
    """Whoever is stopped while it writes to SQLite keeps everybody from writing until it goes on: that is not what is tested."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            with registry.db.write():
                return
        except Unavailable:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)


def test_a_stopped_trainer_that_wakes_up_can_write_nothing(registry: Registry, undisturbed: str) -> None:
    job = queue(registry)
    sleeper = start_child(registry)
    wait_for(lambda: len(steps_told(registry, job)) >= 3)
    assert sleeper.pid is not None
    stop_outside_a_transaction(registry, sleeper.pid)
    # Its clock runs a hundred times as fast: a lease of 25 s has stood still after a quarter of a second.
    heir = start_child(registry, ahead_s=1000.0, hurry=100.0, once=False)
    try:
        wait_for(lambda: finished(registry, job).status == "succeeded")
        before = events(registry, job)
    finally:
        os.kill(sleeper.pid, signal.SIGCONT)
        heir.terminate()
    sleeper.join(30)
    heir.join(30)
    assert (sleeper.exitcode, heir.exitcode) == (0, 0)
    assert events(registry, job) == before
    check_ended_once(registry, job, undisturbed)


def test_a_poison_job_fails_after_three_tries_with_its_traceback(tmp_path: Path) -> None:
    clock = FakeTime()
    registry = open_registry(tmp_path / "home", clock)
    job = queue_job(registry, chats(12))

    def broken() -> Base:
        raise RuntimeError("the base model exploded")

    for _ in range(4):
        work(registry, broken, Limits(), Stop(), once=True)
        clock.advance(100)
    failed = finished(registry, job)
    assert (failed.status, failed.attempts) == ("failed", 3)
    assert failed.error is not None
    assert failed.error["code"] == "training_failed"
    assert "the base model exploded" in failed.error["message"]
    assert failed.traceback is not None
    assert "in broken" in failed.traceback
    registry.close()


def test_a_trainer_that_is_told_to_stop_claims_nothing(registry: Registry) -> None:
    job, stop = queue(registry), Stop()
    stop.set()
    run_all(registry, stop=stop)
    assert finished(registry, job).status == "queued"


def test_a_registry_that_is_away_does_not_end_the_trainer(registry: Registry) -> None:
    stop = Stop()
    asked: list[float] = []

    def away(worker: str) -> None:
        asked.append(time.monotonic())
        if len(asked) == 2:
            stop.set()
        raise Unavailable("The database does not answer.", "storage_unavailable")

    registry.jobs.claim = away  # type: ignore[method-assign,assignment]  # a registry whose database is gone
    work(registry, speaking_base, Limits(), stop)
    assert len(asked) == 2
