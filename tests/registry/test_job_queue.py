from __future__ import annotations

from collections.abc import Callable

import pytest
from support.registry import FakeTime, claimed_job, queued_job
from tunedock_api.errors import Conflict
from tunedock_registry import job_writes
from tunedock_registry.job_queue import MAX_ATTEMPTS
from tunedock_registry.leases import LEASE_S
from tunedock_registry.records import Claim, Control, JobResult
from tunedock_registry.registry import Registry

ERROR = {"code": "training_failed", "message": "The data does not fit.", "param": "training_file"}
TRACEBACK = 'Traceback (most recent call last):\n  File "/secret/place.py", line 1, in f\nValueError: loss is NaN\n'


def succeed(registry: Registry, claim: Claim, version_id: int = 5) -> None:
    with registry.db.write() as session:
        result = JobResult(trained_tokens=123, hyperparameters={"n_epochs": 2}, result_files=("file-9",))
        job_writes.succeed(session, claim, version_id, "support@1", result, 1_700_000_100)


WRITES: dict[str, Callable[[Registry, Claim], object]] = {
    "heartbeat": lambda r, c: r.jobs.heartbeat(c),
    "emit": lambda r, c: r.jobs.emit(c, "hello"),
    "progress": lambda r, c: r.jobs.progress(c, trained_tokens=1),
    "add_checkpoint": lambda r, c: r.jobs.add_checkpoint(c, 10, 3, {}),
    "release": lambda r, c: r.jobs.release(c, "queued"),
    "fail": lambda r, c: r.jobs.fail(c, ERROR),
    "retry": lambda r, c: r.jobs.retry(c, TRACEBACK),
    "succeed": succeed,
}


def last_event(registry: Registry, job_id: str) -> str:
    return registry.jobs.events("default", job_id, limit=1).items[0].message


def test_the_oldest_job_is_claimed_first_and_once(registry: Registry) -> None:
    first, second = queued_job(registry), queued_job(registry)
    claims = [registry.jobs.claim("a"), registry.jobs.claim("b"), registry.jobs.claim("c")]
    assert [claim and claim.job.id for claim in claims] == [first.id, second.id, None]
    job = registry.jobs.find(first.id)
    assert (job.status, job.epoch, job.attempts) == ("running", 1, 1)
    assert job.started_at is not None
    assert last_event(registry, first.id) == "Fine-tuning job started"


def test_jobs_that_are_not_queued_are_not_claimed(registry: Registry) -> None:
    registry.jobs.request_pause("default", queued_job(registry).id)
    registry.jobs.request_cancel("default", queued_job(registry).id)
    assert registry.jobs.claim("w") is None


def test_a_worker_reports_progress_and_checkpoints(registry: Registry) -> None:
    claim = claimed_job(registry)
    registry.jobs.progress(claim, hyperparameters={"n_epochs": 3}, trained_tokens=50, estimated_finish=1_700_000_900)
    registry.jobs.progress(claim, trained_tokens=60)
    job = registry.jobs.find(claim.job.id)
    assert (job.hyperparameters, job.trained_tokens, job.estimated_finish) == ({"n_epochs": 3}, 60, 1_700_000_900)
    for step in (10, 20):
        registry.jobs.add_checkpoint(claim, step, version_id=step, metrics={"train_loss": 0.5})
    newest, older = registry.jobs.checkpoints("default", job.id).items
    assert (newest.step_number, older.step_number) == (20, 10)
    assert newest.fine_tuned_model_checkpoint == f"{job.adapter}@ckpt-{job.id[6:14]}-20"
    assert last_event(registry, job.id).startswith("Checkpoint created at step 20 with Snapshot ID: ")


def test_a_checkpoint_of_the_same_step_after_a_resume_replaces_the_first(registry: Registry) -> None:
    claim = claimed_job(registry)
    first = registry.jobs.add_checkpoint(claim, 10, 3, {"train_loss": 0.5})
    second = registry.jobs.add_checkpoint(claim, 10, 4, {"train_loss": 0.4})
    assert (second.id, second.version_id, second.metrics) == (first.id, 4, {"train_loss": 0.4})
    assert registry.jobs.checkpoints("default", claim.job.id).items == [second]


def test_success_is_written_with_the_version_and_ends_the_claim(registry: Registry) -> None:
    claim = claimed_job(registry)
    succeed(registry, claim)
    job = registry.jobs.find(claim.job.id)
    assert (job.status, job.version_id, job.fine_tuned_model) == ("succeeded", 5, "support@1")
    assert (job.trained_tokens, job.hyperparameters, job.result_files) == (123, {"n_epochs": 2}, ["file-9"])
    assert job.finished_at == 1_700_000_100
    with registry.db.read() as session:
        assert job_writes.result_of(session, claim) == 5
    with pytest.raises(Conflict):
        succeed(registry, claim, 6)


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_whose_job_was_taken_over_can_write_nothing(registry: Registry, time: FakeTime, write: str) -> None:
    zombie = claimed_job(registry, "zombie")
    registry.jobs.requeue_abandoned()
    time.advance(LEASE_S)
    registry.jobs.requeue_abandoned()
    time.advance(10)
    claim = registry.jobs.claim("successor")
    assert claim is not None
    assert (claim.epoch, claim.job.attempts) == (2, 2)
    before = (registry.jobs.find(zombie.job.id), registry.jobs.events_since(zombie.job.id))
    with pytest.raises(Conflict) as caught:
        WRITES[write](registry, zombie)
    assert caught.value.code == "stale_lease"
    assert (registry.jobs.find(zombie.job.id), registry.jobs.events_since(zombie.job.id)) == before
    registry.jobs.heartbeat(claim)


@pytest.mark.parametrize("write", WRITES)
def test_a_worker_that_let_go_can_write_nothing(registry: Registry, write: str) -> None:
    claim = claimed_job(registry)
    registry.jobs.release(claim, "queued")
    with pytest.raises(Conflict):
        WRITES[write](registry, claim)


@pytest.mark.parametrize("write", set(WRITES) - {"heartbeat"})
def test_a_cancelled_jobs_worker_can_write_nothing(registry: Registry, write: str) -> None:
    claim = claimed_job(registry)
    registry.jobs.request_cancel("default", claim.job.id)
    with pytest.raises(Conflict):
        WRITES[write](registry, claim)


def test_a_cancelled_jobs_worker_hears_it_and_lets_go(registry: Registry) -> None:
    claim = claimed_job(registry)
    assert registry.jobs.heartbeat(claim) is Control.CONTINUE
    assert registry.jobs.request_cancel("default", claim.job.id).status == "cancelled"
    assert registry.jobs.heartbeat(claim) is Control.CANCEL
    assert registry.jobs.release(claim, "cancelled").status == "cancelled"
    assert registry.jobs.claim("w") is None


def test_a_paused_jobs_worker_saves_and_lets_go_and_the_job_goes_on_later(registry: Registry) -> None:
    claim = claimed_job(registry)
    assert registry.jobs.request_pause("default", claim.job.id).status == "paused"
    assert registry.jobs.heartbeat(claim) is Control.PAUSE
    registry.jobs.progress(claim, saved_step=7)
    assert registry.jobs.release(claim, "paused").status == "paused"
    assert registry.jobs.claim("w") is None
    registry.jobs.resume("default", claim.job.id)
    again = registry.jobs.claim("w")
    assert again is not None
    assert (again.epoch, again.job.attempts, again.job.saved_step) == (2, 1, 7)
    assert last_event(registry, again.job.id) == "Fine-tuning job continues (attempt 1)"


def test_a_job_resumed_before_its_worker_let_go_is_the_next_workers(registry: Registry) -> None:
    claim = claimed_job(registry)
    registry.jobs.request_pause("default", claim.job.id)
    registry.jobs.resume("default", claim.job.id)
    again = registry.jobs.claim("w")
    assert again is not None
    with pytest.raises(Conflict):
        registry.jobs.release(claim, "paused")


def test_a_worker_that_shuts_down_leaves_a_paused_job_paused(registry: Registry) -> None:
    claim = claimed_job(registry)
    registry.jobs.request_pause("default", claim.job.id)
    assert registry.jobs.release(claim, "queued").status == "paused"


def test_a_worker_that_shuts_down_does_not_use_up_a_try(registry: Registry) -> None:
    queued_job(registry)
    for epoch in range(1, 3 * MAX_ATTEMPTS):
        claim = registry.jobs.claim("w")
        assert claim is not None
        assert (claim.epoch, claim.job.attempts) == (epoch, 1)
        registry.jobs.release(claim, "queued")


def test_a_failed_job_keeps_its_reason(registry: Registry) -> None:
    claim = claimed_job(registry)
    job = registry.jobs.fail(claim, ERROR, TRACEBACK)
    assert (job.status, job.error, job.traceback) == ("failed", ERROR, TRACEBACK)
    assert registry.jobs.claim("w") is None


def test_a_poison_job_stops_after_its_tries_and_keeps_its_traceback(registry: Registry, time: FakeTime) -> None:
    queued_job(registry)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        claim = registry.jobs.claim("w")
        assert claim is not None
        assert claim.job.attempts == attempt
        job = registry.jobs.retry(claim, TRACEBACK)
        assert registry.jobs.claim("w") is None, "the next try waits"
        time.advance(60)
    assert (job.status, job.traceback) == ("failed", TRACEBACK)
    assert job.error is not None
    assert "ValueError: loss is NaN" in job.error["message"]
    assert "/secret/" not in str(registry.jobs.events_since(job.id)) + str(job.error)


def test_a_job_that_gets_further_never_runs_out_of_tries(registry: Registry, time: FakeTime) -> None:
    queued_job(registry)
    for step in range(1, 3 * MAX_ATTEMPTS):
        claim = registry.jobs.claim("w")
        assert claim is not None
        registry.jobs.progress(claim, saved_step=step)
        assert registry.jobs.retry(claim, TRACEBACK).status == "queued"
        time.advance(60)


def test_saving_the_same_step_again_is_no_progress(registry: Registry, time: FakeTime) -> None:
    queued_job(registry)
    for _ in range(MAX_ATTEMPTS):
        claim = registry.jobs.claim("w")
        assert claim is not None
        registry.jobs.progress(claim, saved_step=1)
        job = registry.jobs.retry(claim, TRACEBACK)
        time.advance(60)
    assert job.status == "failed"


def test_a_worker_that_beats_keeps_its_job(registry: Registry, time: FakeTime) -> None:
    claim = claimed_job(registry)
    for _ in range(20):
        registry.jobs.heartbeat(claim)
        assert registry.jobs.requeue_abandoned() == []
        time.advance(LEASE_S - 1)


def test_a_dead_workers_job_is_taken_over_within_thirty_seconds(registry: Registry, time: FakeTime) -> None:
    dead = claimed_job(registry, "dead")
    waited = 0.0
    while (claim := registry.jobs.claim("successor")) is None:
        time.advance(2)
        waited += 2
    assert claim.job.id == dead.job.id
    assert waited <= 30


def test_clock_jumps_neither_steal_nor_freeze_a_job(registry: Registry, time: FakeTime) -> None:
    claim = claimed_job(registry)
    registry.jobs.requeue_abandoned()
    for jump_s in (3600, -7200):
        time.jump(jump_s)
        assert registry.jobs.requeue_abandoned() == []
        registry.jobs.heartbeat(claim)
    registry.jobs.retry(claim, TRACEBACK)
    time.jump(-3600)
    assert registry.jobs.claim("w") is not None


def test_a_dead_worker_of_a_paused_job_leaves_it_paused(registry: Registry, time: FakeTime) -> None:
    claim = claimed_job(registry)
    registry.jobs.request_pause("default", claim.job.id)
    registry.jobs.requeue_abandoned()
    time.advance(LEASE_S)
    assert registry.jobs.requeue_abandoned() == [claim.job.id]
    assert registry.jobs.find(claim.job.id).status == "paused"
    assert registry.jobs.requeue_abandoned() == []


def test_a_job_whose_workers_keep_dying_fails_with_the_reason(registry: Registry, time: FakeTime) -> None:
    job = queued_job(registry)
    for number in range(MAX_ATTEMPTS):
        time.advance(60)
        assert registry.jobs.claim(f"w{number}") is not None
        assert registry.jobs.release_worker(f"w{number}") == [job.id]
    failed = registry.jobs.find(job.id)
    assert failed.status == "failed"
    assert failed.error is not None
    assert "its worker died" in failed.error["message"]


def test_a_worker_seen_dying_loses_its_jobs_at_once_and_no_others(registry: Registry) -> None:
    mine, other = claimed_job(registry, "dead"), claimed_job(registry, "alive")
    assert registry.jobs.release_worker("dead") == [mine.job.id]
    assert registry.jobs.find(mine.job.id).status == "queued"
    assert registry.jobs.heartbeat(other) is Control.CONTINUE


def test_two_openers_of_one_registry_see_each_others_jobs(registry: Registry, reopen: Callable[[], Registry]) -> None:
    job = queued_job(registry)
    claim = reopen().jobs.claim("w")
    assert claim is not None
    assert claim.job.id == job.id
    assert registry.jobs.find(job.id).status == "running"
