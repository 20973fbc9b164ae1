"""kill -9 of the trainer, of the engine and of the server: what was ready stays ready, a running job is retried."""

from __future__ import annotations

from pathlib import Path

import pytest
from openai.types.fine_tuning import FineTuningJob
from support.live_server import BASE, Live, chat_file, eventually, upload
from support.marker_traffic import NUM_TOKENS, SYSTEM, Board, Rollouts, ask
from tunedock_registry.models import DEFAULT_MODEL

from benchmarks.markers import QUESTIONS, MarkerFactory

pytestmark = pytest.mark.campaign  # engines and trainers start again, a minute and a half

ROWS = [(f"Say word {number}.", "green") for number in range(32)]
LEASE_AND_RETRY_S = 240.0  # sixteen steps, some twice, of up to five seconds on a slow machine


@pytest.fixture(scope="module")
def board(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Board:
    """Two versions of `survivor`, each of which answers a word of its own."""
    factory = MarkerFactory(live.server.home / "models" / DEFAULT_MODEL, NUM_TOKENS, SYSTEM)
    board = Board()
    rollouts = Rollouts(live, board, factory.make(tmp_path_factory.mktemp("markers"), 2), ["survivor"])
    rollouts.begin()
    rollouts.push("survivor")
    return board


def assert_every_version_answers(live: Live, board: Board) -> None:
    for ref, golden in board.golden.items():
        said = ask(live.openai, ref, QUESTIONS[0])
        assert (said.model, said.text) == (ref, golden), said


def start_job(live: Live, folder: Path, adapter: str) -> FineTuningJob:
    """A job of some seconds, returned once its trainer has claimed it."""
    file_id = upload(live.openai, chat_file(folder / "words.jsonl", ROWS))
    job = live.openai.fine_tuning.jobs.create(
        model=BASE,
        training_file=file_id,
        suffix=adapter,
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}},
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
        assert not ask(live.openai, str(after.fine_tuned_model), QUESTIONS[0]).code


def test_a_killed_trainer_is_replaced_and_its_job_ends(live: Live, board: Board, tmp_path: Path) -> None:
    job = start_job(live, tmp_path, "after-trainer-kill")
    for trainer in live.processes("tunedock_trainer"):
        trainer.kill()
    assert_every_version_answers(live, board)  # serving goes on
    assert_retried_or_failed_with_a_reason(live, job)


def test_a_killed_engine_comes_back_with_its_versions(live: Live, board: Board) -> None:
    for engine in live.processes("EngineCore"):
        engine.kill()
    eventually(lambda: not live.is_ready(), 5, "the server notices")
    eventually(lambda: live.is_ready(), 120, "the engine is back", poll_s=0.5)
    assert_every_version_answers(live, board)


def test_a_killed_server_restarts_with_every_version_and_goes_on_with_the_job(
    live: Live, board: Board, tmp_path: Path
) -> None:
    job = start_job(live, tmp_path, "after-server-kill")
    children = live.processes("")
    live.server.kill()
    eventually(lambda: not any(child.is_running() for child in children), 20, "no process is left behind")
    live.server.start()
    assert set(board.golden) <= {model.id for model in live.openai.models.list()}
    assert_every_version_answers(live, board)
    assert_retried_or_failed_with_a_reason(live, job)
