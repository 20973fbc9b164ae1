"""kill -9 of the trainer, of the engine and of the server: what was ready stays ready, a running job is retried."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai.types.fine_tuning import FineTuningJob
from support.live_server import BASE, Live, chat_file, eventually, upload

from examples.demo.domain import Domain
from examples.demo.measure import ask

pytestmark = pytest.mark.campaign  # engines and trainers start again, a minute and a half

QUESTION = Domain("dates").held_out()[0]
ROWS = [(f"Say word {number}.", "green") for number in range(32)]
LEASE_AND_RETRY_S = 120.0


def start_job(live: Live, folder: Path, adapter: str) -> FineTuningJob:
    """A job of some seconds, returned once its trainer has claimed it."""
    file_id = upload(live.openai, chat_file(folder / "words.jsonl", ROWS))
    job = live.openai.fine_tuning.jobs.create(
        model=BASE,
        training_file=file_id,
        suffix=adapter,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "batch_size": 4}}},
    )
    eventually(lambda: has_stepped(live, job), 60, "the trainer takes the job")
    return job


def has_stepped(live: Live, job: FineTuningJob) -> bool:
    return any(event.type == "metrics" for event in live.openai.fine_tuning.jobs.list_events(job.id, limit=10))


def assert_retried_or_failed_with_a_reason(live: Live, job: FineTuningJob) -> None:
    def ended() -> bool:
        return live.openai.fine_tuning.jobs.retrieve(job.id).status in ("succeeded", "failed")

    eventually(ended, LEASE_AND_RETRY_S, "the interrupted job ends", poll_s=0.5)
    after = live.openai.fine_tuning.jobs.retrieve(job.id)
    if after.status == "failed":
        assert after.error is not None
        assert after.error.message
    else:
        live.openai.chat.completions.create(model=str(after.fine_tuned_model), messages=QUESTION.messages, max_tokens=4)


def test_a_killed_trainer_is_replaced_and_its_job_ends(live: Live, dates_v1: str, tmp_path: Path) -> None:
    job = start_job(live, tmp_path, "after-trainer-kill")
    for trainer in live.processes("tunedock_trainer"):
        trainer.kill()
    assert ask(live.openai, dates_v1, QUESTION) == QUESTION.answer, "serving goes on"
    assert_retried_or_failed_with_a_reason(live, job)


def test_a_killed_engine_comes_back_with_its_versions(live: Live, dates_v1: str) -> None:
    for engine in live.processes("EngineCore"):
        engine.kill()
    eventually(lambda: not live.is_ready(), 5, "the server notices")
    eventually(lambda: live.is_ready(), 120, "the engine is back", poll_s=0.5)
    assert ask(live.openai, dates_v1, QUESTION) == QUESTION.answer


def test_a_killed_server_restarts_with_every_version_and_goes_on_with_the_job(
    live: Live, dates_v2: str, tmp_path: Path
) -> None:
    job = start_job(live, tmp_path, "after-server-kill")
    children = live.processes("")
    live.server.kill()
    eventually(lambda: not any(child.is_running() for child in children), 20, "no process is left behind")
    live.server.start()
    assert {"dates@1", "dates@2"} <= {model.id for model in live.openai.models.list()}
    assert ask(live.openai, "dates@1", QUESTION) == QUESTION.answer
    assert '"day"' in ask(live.openai, "dates@2", QUESTION)
    assert_retried_or_failed_with_a_reason(live, job)
