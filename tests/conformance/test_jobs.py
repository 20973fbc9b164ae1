"""client.fine_tuning: jobs, events, checkpoints, permissions."""

from __future__ import annotations

import re
from collections.abc import Callable

import openai
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

Start = Callable[..., FineTuningJob]


def test_create_shows_every_key_with_its_type(client: OpenAI, start: Start, model: str, training_file: str) -> None:
    job = start(seed=5, metadata={"k": "v"}, suffix=None, validation_file=None)
    assert re.fullmatch(r"ftjob-[a-z0-9]{24}", job.id)
    assert (job.object, job.model, job.training_file, job.seed) == ("fine_tuning.job", model, training_file, 5)
    assert (job.error, job.fine_tuned_model, job.finished_at, job.result_files) == (None, None, None, [])
    assert (job.validation_file, job.trained_tokens, job.metadata) == (None, None, {"k": "v"})
    assert job.status in ("validating_files", "queued", "running")
    assert job.hyperparameters.n_epochs is not None
    assert job.organization_id
    client.fine_tuning.jobs.cancel(job.id)


def test_a_seed_is_made_up_and_echoed_when_absent(client: OpenAI, start: Start) -> None:
    job = start(seed=None)
    assert isinstance(job.seed, int)
    client.fine_tuning.jobs.cancel(job.id)


def test_a_job_runs_to_its_end_with_resolved_numbers_and_a_result_file(client: OpenAI, done: FineTuningJob) -> None:
    assert done.fine_tuned_model
    assert done.finished_at is not None
    assert done.finished_at >= done.created_at
    assert done.trained_tokens
    assert isinstance(done.hyperparameters.n_epochs, int)
    assert done.method is not None
    assert done.method.supervised is not None
    content = client.files.content(done.result_files[0]).read().decode()
    assert content.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy")
    assert client.files.retrieve(done.result_files[0]).purpose == "fine-tune-results"


def test_the_tuned_model_answers_under_its_name(client: OpenAI, done: FineTuningJob) -> None:
    assert done.fine_tuned_model is not None
    answer = client.chat.completions.create(
        model=done.fine_tuned_model, messages=[{"role": "user", "content": "hello"}], max_tokens=4
    )
    assert answer.model == done.fine_tuned_model


def test_events_iterate_without_loss_or_repeat_and_in_openai_s_words(
    client: OpenAI, done: FineTuningJob, training_file: str
) -> None:
    events = list(client.fine_tuning.jobs.list_events(done.id, limit=2))
    assert len({event.id for event in events}) == len(events)
    assert events == list(client.fine_tuning.jobs.list_events(done.id, limit=100))
    messages = [event.message for event in events][::-1]
    expected = [
        f"Created fine-tuning job: {done.id}",
        f"Validating training file: {training_file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert [message for message in messages if message in expected] == expected
    steps = [event for event in events if event.type == "metrics"]
    assert steps
    assert all(re.match(r"Step \d+/\d+: training loss=\d+\.\d\d", event.message) for event in steps)
    assert all(isinstance(event.data, dict) and "step" in event.data for event in steps)
    assert any("has successfully completed" in message for message in messages)
    assert {event.level for event in events} <= {"info", "warn", "error"}
    assert {event.object for event in events} == {"fine_tuning.job.event"}


def test_checkpoints_iterate_and_answer_as_models(client: OpenAI, done: FineTuningJob) -> None:
    checkpoints = list(client.fine_tuning.jobs.checkpoints.list(done.id, limit=1))
    assert checkpoints
    first = checkpoints[0]
    assert (first.object, first.fine_tuning_job_id) == ("fine_tuning.job.checkpoint", done.id)
    assert first.step_number > 0
    answer = client.chat.completions.create(
        model=first.fine_tuned_model_checkpoint, messages=[{"role": "user", "content": "hi"}], max_tokens=2
    )
    assert answer.model == first.fine_tuned_model_checkpoint


def test_a_checkpoint_is_the_model_of_a_further_job(client: OpenAI, done: FineTuningJob, start: Start) -> None:
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(done.id)))
    further = start(model=checkpoint.fine_tuned_model_checkpoint)
    assert further.model == checkpoint.fine_tuned_model_checkpoint
    client.fine_tuning.jobs.cancel(further.id)


def test_pause_resume_and_cancel(client: OpenAI, start: Start) -> None:
    jobs = client.fine_tuning.jobs
    job = start(seed=21)
    assert str(jobs.pause(job.id).status) == "paused"
    with pytest.raises(openai.BadRequestError):
        jobs.pause(job.id)
    assert jobs.resume(job.id).status == "queued"
    with pytest.raises(openai.BadRequestError):
        jobs.resume(job.id)
    assert jobs.cancel(job.id).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        jobs.cancel(job.id)


def test_list_filters_by_metadata_and_pages_newest_first(client: OpenAI, start: Start) -> None:
    jobs = client.fine_tuning.jobs
    tag = {"tag": "list-test"}
    made = [start(seed=30 + n, metadata=tag).id for n in range(3)]
    assert [job.id for job in jobs.list(metadata=tag, limit=1)] == made[::-1]
    assert [job.id for job in jobs.list(metadata={"tag": "absent"})] == []
    assert not {job.id for job in jobs.list(extra_query={"metadata": "null"})} & set(made)
    with pytest.raises(openai.BadRequestError):
        jobs.list(after="ftjob-unknown")
    for job in made:
        jobs.cancel(job)


def test_knobs_are_echoed_and_unknown_ones_refused_with_their_path(client: OpenAI, start: Start) -> None:
    job = start(extra_body={"tunedock": {"adapter": "conformance-knobs", "lora": {"rank": 4}}})
    assert (job.model_extra or {})["tunedock"]["lora"] == {"rank": 4}
    client.fine_tuning.jobs.cancel(job.id)
    with pytest.raises(openai.BadRequestError) as caught:
        start(extra_body={"tunedock": {"lora": {"rankk": 4}}})
    assert caught.value.param == "tunedock.lora.rankk"


def test_a_file_that_cannot_be_used_is_named(client: OpenAI, start: Start) -> None:
    other = client.files.create(file=b"x", purpose="user_data")
    for file in (other.id, "file-absent"):
        with pytest.raises(openai.BadRequestError, match=file) as caught:
            start(training_file=file)
        assert caught.value.param == "training_file"


def test_too_few_examples_fail_the_job(client: OpenAI, start: Start) -> None:
    from support.datasets import facts, jsonl

    file = client.files.create(file=jsonl(facts(3)), purpose="fine-tune")
    job = start(training_file=file.id)
    assert job.status == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.param) == ("invalid_n_examples", "training_file")


def test_permissions_are_made_listed_and_deleted(client: OpenAI, done: FineTuningJob) -> None:
    permissions = client.fine_tuning.checkpoints.permissions
    checkpoint = next(iter(client.fine_tuning.jobs.checkpoints.list(done.id))).fine_tuned_model_checkpoint
    made = list(permissions.create(checkpoint, project_ids=["alpha", "beta"]))
    assert {permission.project_id for permission in made} == {"alpha", "beta"}
    assert {permission.object for permission in made} == {"checkpoint.permission"}
    upwards = [permission.id for permission in permissions.list(checkpoint, limit=1, order="ascending")]
    assert upwards == [permission.id for permission in permissions.list(checkpoint)][::-1]
    assert [p.project_id for p in permissions.list(checkpoint, project_id="beta")] == ["beta"]
    for permission in made:
        gone = permissions.delete(permission.id, fine_tuned_model_checkpoint=checkpoint)
        assert (gone.id, gone.deleted) == (permission.id, True)
    assert list(permissions.list(checkpoint)) == []
