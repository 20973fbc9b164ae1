"""A job's numbers reach MLflow and Weights & Biases, whose packages are extras and may be absent."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from support.training_jobs import chats, events, finished, open_home, queue_job, run_all
from tunedock_registry.records import JobRecord
from tunedock_registry.registry import Registry
from tunedock_trainer.process import Stop

WANDB: list[dict[str, Any]] = [{"type": "wandb", "wandb": {"project": "domains", "tags": ["nightly"]}}]
MLFLOW = {"mlflow": {"experiment": "domains", "tags": {"team": "support"}}}


@pytest.fixture
def registry(home_root: Path) -> Iterator[Registry]:
    opened = open_home(home_root)
    yield opened
    opened.close()


class StopAfter(Stop):
    """Asks the trainer to end when it has looked `times` times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._left = times

    def __call__(self) -> bool:
        self._left -= 1
        return self._left < 0


@pytest.mark.parametrize(
    ("package", "param", "wanted"),
    [("wandb", "integrations", {"integrations": WANDB}), ("mlflow", "tunedock.mlflow", {"knobs": MLFLOW})],
)
def test_a_tracker_that_is_not_installed_fails_the_job_before_its_first_step(
    registry: Registry, package: str, param: str, wanted: dict[str, Any]
) -> None:
    if find_spec(package):
        pytest.skip(f"{package} is installed here")
    job = queue_job(registry, chats(12), **wanted)
    run_all(registry)
    done = finished(registry, job)
    assert done.error is not None
    assert (done.status, done.error["param"]) == ("failed", param)
    assert f"pip install 'tunedock[{package}]'" in done.error["message"]
    assert not [event for event in events(registry, job) if event.type == "metrics"]


@pytest.fixture
def mlflow_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A client of an MLflow store in a SQLite file."""
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    from mlflow.tracking import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    return MlflowClient(address)


def mlflow_runs(store: Any, job: JobRecord) -> list[Any]:
    experiment = store.get_experiment_by_name("domains")
    return list(store.search_runs([experiment.experiment_id], f"tags.`tunedock.run` = '{job.id}'"))


def test_mlflow_holds_every_step_the_settings_and_the_tags(registry: Registry, mlflow_store: Any) -> None:
    job = queue_job(registry, chats(30), knobs=MLFLOW)
    run_all(registry)
    assert finished(registry, job).status == "succeeded"
    [run] = mlflow_runs(mlflow_store, job)
    assert (run.info.status, run.info.run_name, run.data.tags["team"]) == ("FINISHED", job.id, "support")
    assert (run.data.params["lora.alpha"], run.data.params["seed"]) == ("32.0", "7")
    history = mlflow_store.get_metric_history(run.info.run_id, "train/loss")
    told = [event.data["train_loss"] for event in events(registry, job) if event.type == "metrics"]
    assert [point.step for point in history] == list(range(1, 15))
    assert [round(point.value, 6) for point in history] == told
    assert run.data.metrics["valid/full_loss"] > 0


def test_a_job_that_goes_on_later_keeps_its_mlflow_run(registry: Registry, mlflow_store: Any) -> None:
    job = queue_job(registry, chats(30), knobs=MLFLOW)
    run_all(registry, stop=StopAfter(6))
    [stopped] = mlflow_runs(mlflow_store, job)
    assert (stopped.info.status, finished(registry, job).status) == ("KILLED", "queued")
    run_all(registry)
    [run] = mlflow_runs(mlflow_store, job)
    assert run.info.status == "FINISHED"
    steps = [point.step for point in mlflow_store.get_metric_history(run.info.run_id, "train/loss")]
    assert steps == list(range(1, 15))


def test_mlflow_without_an_address_fails_the_job_with_the_remedy(
    registry: Registry, mlflow_store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    job = queue_job(registry, chats(12), knobs=MLFLOW)
    run_all(registry)
    error = finished(registry, job).error
    assert error is not None
    assert "set MLFLOW_TRACKING_URI" in error["message"]


@pytest.fixture
def wandb_offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No key, no server, and a wandb that has not read the environment of another test."""
    wandb: Any = pytest.importorskip("wandb", reason="the extra wandb is not installed")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    yield
    wandb.teardown()


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_offline_files_hold_every_step(registry: Registry) -> None:
    job = queue_job(registry, chats(30), integrations=WANDB)
    run_all(registry)
    done = finished(registry, job)
    assert done.status == "succeeded"
    assert done.integrations == [{**WANDB[0], "wandb": {**WANDB[0]["wandb"], "run_id": job.id}}]
    [file] = registry.home.run_dir(job.id).glob("wandb/offline-run-*/*.wandb")
    run, steps = wandb_records(file)
    assert (run.run_id, run.project, run.display_name) == (job.id, "domains", job.id)
    assert {"nightly", "tunedock", f"tunedock/{job.id}"} <= set(run.tags)
    assert steps == list(range(1, 15))


def wandb_records(file: Path) -> tuple[Any, list[int]]:
    """The run, and the steps whose loss is in the file."""
    from wandb.proto.wandb_internal_pb2 import Record

    run, steps = None, []
    for data in leveldb_log(file.read_bytes()):
        record = Record.FromString(data)
        if record.HasField("run"):
            run = record.run
        if any("train/loss" in (item.key, *item.nested_key) for item in record.history.item):
            steps.append(record.history.step.num)
    return run, steps


def leveldb_log(raw: bytes) -> Iterator[bytes]:
    """Records of wandb's file: a head of 7 bytes, then LevelDB's log format (blocks of 32 KiB; checksum, length, kind)."""
    at, whole = 7, b""
    while at + 7 <= len(raw):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = struct.unpack_from("<HB", raw, at + 4)
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


@pytest.mark.usefixtures("wandb_offline")
def test_wandb_without_a_key_fails_the_job_with_the_remedy(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    job = queue_job(registry, chats(12), integrations=WANDB)
    run_all(registry)
    error = finished(registry, job).error
    assert error is not None
    assert error["param"] == "integrations"
    assert "WANDB_API_KEY" in error["message"]
