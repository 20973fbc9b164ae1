"""Jobs through the client: upload, tune, watch, fail, cancel. The server is real; training is quick and scripted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from support.bases import tiny_base
from support.fake_server import BASE, FakeServer
from support.fake_trainer import FakeTrainer
from tunedock import BadInput, Conflict, DeadlineExceeded, Job, JobEvent, NotFound, Rejected, TuneDock
from tunedock_api.errors import TuneDockError

ROWS = [
    {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": str(i + 1)}]} for i in range(12)
]
POLL_S = 0.05


@pytest.fixture
def trainer(live: FakeServer) -> FakeTrainer:
    return FakeTrainer(live.registry, tiny_base(BASE), live.folder / "trained")


@contextmanager
def working(work: Callable[[], object]) -> Iterator[None]:
    """Runs `work` beside the test, and fails the test when it fails."""
    failures: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    yield
    thread.join(20)
    assert not failures, failures


def tuned(client: TuneDock, trainer: FakeTrainer, adapter: str) -> Job:
    job = client.tune(ROWS, adapter=adapter, n_epochs=3, seed=7)
    with working(trainer.run):
        job.wait(progress=False, timeout_s=20, poll_s=POLL_S)
    return job


def test_a_job_ends_with_a_version_that_can_be_asked(client: TuneDock, trainer: FakeTrainer) -> None:
    job = tuned(client, trainer, "answers")
    assert (job.status, job.model) == ("succeeded", "answers@1")
    assert job.info.hyperparameters == {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
    assert client.chat("hi", model="answers").model == "answers@1"


def test_events_come_once_each_and_in_order(client: TuneDock, trainer: FakeTrainer) -> None:
    seen: list[JobEvent] = []
    job = client.tune(ROWS, adapter="watched")
    with working(trainer.run):
        job.wait(progress=seen.append, timeout_s=20, poll_s=POLL_S)
    assert len({event.id for event in seen}) == len(seen)
    assert [event.id for event in seen] == [event.id for event in job.events()]
    assert seen[0].message == f"Created fine-tuning job: {job.id}"
    assert "The job has successfully completed" in [event.message for event in seen]


def test_metrics_are_numbers_in_step_order(client: TuneDock, trainer: FakeTrainer) -> None:
    metrics = tuned(client, trainer, "measured").metrics()
    assert [metric.step for metric in metrics] == [1, 2, 3]
    assert metrics[0].train_loss == 1.0


def test_checkpoints_can_be_asked(client: TuneDock, trainer: FakeTrainer) -> None:
    job = client.tune(ROWS, adapter="kept")

    def work() -> None:
        claim = trainer.claim()
        trainer.checkpoint(claim, 2)
        trainer.publish(claim)

    with working(work):
        job.wait(progress=False, timeout_s=20, poll_s=POLL_S)
    (checkpoint,) = job.checkpoints()
    assert checkpoint.step_number == 2
    assert client.adapters.version(checkpoint.fine_tuned_model_checkpoint).tag is not None


def test_an_adapter_that_the_gate_rejects_fails_the_job_with_the_reason(
    client: TuneDock, live: FakeServer, trainer: FakeTrainer
) -> None:
    live.pool.behaviour.all_wrong = True
    try:
        job = client.tune(ROWS, adapter="wrong")
        with working(trainer.run), pytest.raises(Rejected, match="publish gate rejected wrong@1"):
            job.wait(progress=False, timeout_s=20, poll_s=POLL_S)
    finally:
        live.pool.behaviour.all_wrong = False


def test_a_failed_job_raises_its_own_error(client: TuneDock, live: FakeServer, trainer: FakeTrainer) -> None:
    job = client.tune(ROWS, adapter="failed")

    def work() -> None:
        error = {"code": "invalid_training_file", "message": "Example 3 is too long.", "param": "training_file"}
        live.registry.jobs.fail(trainer.claim(), error)

    with working(work), pytest.raises(BadInput, match=r"Example 3 is too long"):
        job.wait(progress=False, timeout_s=20, poll_s=POLL_S)


def test_a_cancelled_job_is_a_conflict(client: TuneDock) -> None:
    job = client.tune(ROWS, adapter="cancelled")
    assert job.cancel().status == "cancelled"
    with pytest.raises(Conflict, match="was cancelled"):
        job.wait(progress=False, poll_s=POLL_S)
    with pytest.raises(BadInput) as caught:
        job.cancel()
    assert caught.value.code == "invalid_state"


def test_pause_and_resume(client: TuneDock) -> None:
    job = client.tune(ROWS, adapter="paused")
    assert job.pause().status == "paused"
    assert job.resume().status == "queued"
    job.cancel()


def test_waiting_has_an_end(client: TuneDock) -> None:
    job = client.tune(ROWS, adapter="slow")
    with pytest.raises(DeadlineExceeded, match="queued after"):
        job.wait(progress=False, timeout_s=0.2, poll_s=POLL_S)
    job.cancel()


def test_jobs_are_listed_newest_first_with_what_was_asked(client: TuneDock) -> None:
    job = client.tune(ROWS, adapter="listed", metadata={"team": "a"}, rank=4)
    newest = client.jobs.list(limit=1)[0]
    assert (newest.id, newest.info.metadata) == (job.id, {"team": "a"})
    assert client.jobs.get(job.id).info.model_extra["tunedock"] == {"adapter": "listed", "lora": {"rank": 4}}  # type: ignore[index]
    job.cancel()


@pytest.mark.parametrize(
    ("knobs", "param"),
    [
        ({"rank": 4096}, "tunedock.lora.rank"),
        ({"no_such_knob": 1}, "tunedock.no_such_knob"),
        ({"n_epochs": 99}, "method.supervised.hyperparameters.n_epochs"),
        ({"suffix": "not a name!"}, "suffix"),
    ],
)
def test_a_knob_that_cannot_be_is_refused_before_any_compute(
    client: TuneDock, knobs: dict[str, object], param: str
) -> None:
    with pytest.raises(TuneDockError) as caught:
        client.tune(ROWS, adapter="refused", **knobs)  # type: ignore[arg-type]
    assert caught.value.kind.http_status == 400
    assert caught.value.param == param


def test_bad_data_is_refused_with_line_numbers(client: TuneDock) -> None:
    with pytest.raises(BadInput, match="Example 2"):
        client.tune([ROWS[0], {"messages": []}], adapter="refused")


def test_an_unknown_job_is_not_found(client: TuneDock) -> None:
    with pytest.raises(NotFound) as caught:
        client.jobs.get("ftjob-" + "a" * 24)
    assert caught.value.code == "fine_tune_not_found"
