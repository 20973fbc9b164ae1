from __future__ import annotations

import threading

import pytest
from support.registry import FakeTime, claimed_job, queued_job, spec
from tunedock_api.errors import BadInput, Conflict, NotFound
from tunedock_registry.records import JobRecord
from tunedock_registry.registry import Registry


def messages(registry: Registry, job: JobRecord) -> list[str]:
    return [event.message for event in registry.jobs.events(job.project, job.id, order="asc", limit=100).items]


def test_a_new_job_waits_for_its_files_to_be_validated(registry: Registry) -> None:
    job = registry.jobs.create("default", spec(adapter="support", metadata={"team": "a"}, knobs={"lora": {"rank": 8}}))
    assert job.status == "validating_files"
    assert (job.adapter, job.metadata, job.knobs, job.result_files) == (
        "support",
        {"team": "a"},
        {"lora": {"rank": 8}},
        [],
    )
    assert (job.error, job.fine_tuned_model, job.started_at, job.finished_at) == (None, None, None, None)
    assert registry.jobs.get("default", job.id) == job == registry.jobs.find(job.id)
    assert registry.jobs.with_status("validating_files") == [job]
    assert messages(registry, job) == [f"Created fine-tuning job: {job.id}", "Validating training file: file-1"]


def test_the_events_name_both_files(registry: Registry) -> None:
    job = registry.jobs.create("default", spec(validation_file="file-2"))
    assert messages(registry, job)[-1] == "Validating training file: file-1 and validation file: file-2"


def test_an_adapter_without_a_name_is_called_after_its_job(registry: Registry) -> None:
    job = registry.jobs.create("default", spec())
    assert job.adapter == f"ft-{job.id.removeprefix('ftjob-')[:8]}"


def test_validated_files_put_the_job_into_the_queue(registry: Registry) -> None:
    job = queued_job(registry)
    assert job.status == "queued"
    assert messages(registry, job)[-1] == "Files validated, moving job to queued state"
    assert registry.jobs.mark_validated(job.id) == job


def test_bad_files_fail_the_job(registry: Registry) -> None:
    job = registry.jobs.create("default", spec())
    error = {"code": "invalid_training_file", "message": "Line 3 is not JSON", "param": "training_file"}
    failed = registry.jobs.fail_validation(job.id, error)
    assert (failed.status, failed.error) == ("failed", error)
    assert failed.finished_at is not None
    last = registry.jobs.events("default", job.id).items[0]
    assert (last.level, last.message) == ("error", "Line 3 is not JSON")


def test_a_job_cancelled_during_validation_stays_cancelled(registry: Registry) -> None:
    job = registry.jobs.create("default", spec())
    registry.jobs.request_cancel("default", job.id)
    assert registry.jobs.mark_validated(job.id).status == "cancelled"
    assert registry.jobs.fail_validation(job.id, {"code": "x", "message": "y", "param": None}).status == "cancelled"


def test_a_job_paused_during_validation_goes_on_where_it_was(registry: Registry) -> None:
    early = registry.jobs.create("default", spec())
    registry.jobs.request_pause("default", early.id)
    assert registry.jobs.resume("default", early.id).status == "validating_files"
    late = registry.jobs.create("default", spec())
    registry.jobs.request_pause("default", late.id)
    assert registry.jobs.mark_validated(late.id).status == "paused"
    assert registry.jobs.resume("default", late.id).status == "queued"


def test_a_request_that_the_status_forbids_changes_nothing(registry: Registry) -> None:
    job = registry.jobs.request_cancel("default", queued_job(registry).id)
    for request in (registry.jobs.request_cancel, registry.jobs.request_pause, registry.jobs.resume):
        with pytest.raises(BadInput, match="is cancelled"):
            request("default", job.id)
    assert registry.jobs.get("default", job.id) == job


def test_another_projects_job_is_as_absent_as_a_missing_one(registry: Registry) -> None:
    job = queued_job(registry, "mine")
    jobs = registry.jobs
    for project, job_id in (("other", job.id), ("mine", "ftjob-missing")):
        for call in (jobs.get, jobs.request_cancel, jobs.request_pause, jobs.resume, jobs.events, jobs.checkpoints):
            with pytest.raises(NotFound, match=f"Could not find fine tune: {job_id}") as caught:
                call(project, job_id)
            assert (caught.value.code, caught.value.param) == ("fine_tune_not_found", "fine_tune_id")


def test_jobs_are_listed_newest_first_without_loss_or_repeat(registry: Registry) -> None:
    ids = [registry.jobs.create("default", spec()).id for _ in range(5)]
    registry.jobs.create("other", spec())
    first = registry.jobs.list("default", limit=2)
    second = registry.jobs.list("default", after=first.items[-1].id, limit=2)
    third = registry.jobs.list("default", after=second.items[-1].id, limit=2)
    assert [job.id for page in (first, second, third) for job in page.items] == ids[::-1]
    assert (first.has_more, second.has_more, third.has_more) == (True, True, False)


def test_jobs_are_found_by_all_their_metadata(registry: Registry) -> None:
    odd = "a.b\"c']$%"
    plain = registry.jobs.create("default", spec())
    both = registry.jobs.create("default", spec(metadata={odd: "1", "k": ""}))
    one = registry.jobs.create("default", spec(metadata={odd: "1"}))

    def found(**arguments: object) -> list[str]:
        return [job.id for job in registry.jobs.list("default", **arguments).items]  # type: ignore[arg-type]

    assert found(metadata={odd: "1"}) == [one.id, both.id]
    assert found(metadata={odd: "1", "k": ""}) == [both.id]
    assert found(metadata={odd: "2"}) == []
    assert found(without_metadata=True) == [plain.id]


def test_a_blind_retry_returns_the_job_of_the_first_try(registry: Registry, time: FakeTime) -> None:
    first = registry.jobs.create("default", spec(), body_sha256="b" * 64)
    time.advance(60)
    assert registry.jobs.create("default", spec(), body_sha256="b" * 64, retry=True).id == first.id
    assert registry.jobs.create("other", spec(), body_sha256="b" * 64, retry=True).id != first.id
    assert registry.jobs.create("default", spec(), body_sha256="c" * 64, retry=True).id != first.id
    time.advance(1)
    assert registry.jobs.create("default", spec(), body_sha256="b" * 64, retry=True).id != first.id


def test_asking_twice_on_purpose_makes_two_jobs(registry: Registry) -> None:
    first = registry.jobs.create("default", spec(), body_sha256="b" * 64)
    second = registry.jobs.create("default", spec(), body_sha256="b" * 64)
    assert first.id != second.id
    assert registry.jobs.create("default", spec(), body_sha256="b" * 64, retry=True).id == second.id


def test_a_first_try_that_a_retry_has_overtaken_gets_the_retrys_job(registry: Registry) -> None:
    body = "b" * 64
    made = registry.jobs.create("default", spec(), body_sha256=body, retry=True)
    assert registry.jobs.create("default", spec(), body_sha256=body).id == made.id
    assert registry.jobs.create("default", spec(), body_sha256=body, retry=True).id == made.id
    assert registry.jobs.create("default", spec(), body_sha256=body).id != made.id


def test_a_retry_that_made_its_job_long_ago_waits_for_no_first_try(registry: Registry, time: FakeTime) -> None:
    made = registry.jobs.create("default", spec(), body_sha256="b" * 64, retry=True)
    time.advance(61)
    assert registry.jobs.create("default", spec(), body_sha256="b" * 64).id != made.id


def test_an_idempotency_key_stands_for_one_job(registry: Registry, time: FakeTime) -> None:
    first = registry.jobs.create("default", spec(), "key", "b" * 64)
    assert registry.jobs.create("default", spec(), "key", "b" * 64).id == first.id
    with pytest.raises(Conflict) as caught:
        registry.jobs.create("default", spec(), "key", "c" * 64)
    assert caught.value.code == "idempotency_conflict"
    time.advance(24 * 3600 + 1)
    assert registry.jobs.create("default", spec(), "key", "c" * 64).id != first.id


def test_copies_of_one_request_at_the_same_time_make_one_job(registry: Registry) -> None:
    made: list[str] = []

    def create() -> None:
        made.append(registry.jobs.create("default", spec(), "key", "b" * 64).id)

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == len(registry.jobs.list("default").items) == 1


def test_events_page_and_can_be_followed(registry: Registry) -> None:
    claim = claimed_job(registry)
    for step in range(3):
        registry.jobs.emit(claim, f"Step {step}/3: training loss=0.50", "metrics", data={"step": step})
    newest = registry.jobs.events("default", claim.job.id, limit=2)
    assert [event.data.get("step") for event in newest.items] == [2, 1]
    older = registry.jobs.events("default", claim.job.id, after=newest.items[-1].id, limit=10)
    assert len(older.items) == 5
    assert not older.has_more
    seen = registry.jobs.events_since(claim.job.id)
    assert [event.id for event in seen] == [event.id for event in [*newest.items, *older.items]][::-1]
    registry.jobs.emit_system(claim.job.id, "Gate passed", data={"ms": 3})
    assert [event.message for event in registry.jobs.events_since(claim.job.id, seen[-1].seq)] == ["Gate passed"]


def test_what_servers_must_notice_moves_the_change_counter(registry: Registry) -> None:
    before = registry.change_counter()
    job = queued_job(registry)
    created = registry.change_counter()
    assert created > before
    claim = registry.jobs.claim("w")
    assert claim is not None
    started = registry.change_counter()
    assert started > created
    registry.jobs.emit(claim, "Step 1/2: training loss=0.50", "metrics")
    registry.jobs.heartbeat(claim)
    assert registry.change_counter() == started
    registry.jobs.request_cancel("default", job.id)
    assert registry.change_counter() > started
