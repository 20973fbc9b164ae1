"""The conformance suite: only the unmodified openai client, against any server.

Without settings a whole server with a stand-in engine and trainer is started here. To test a real one:
`TUNEDOCK_CONFORMANCE_URL=http://127.0.0.1:8000/v1 [TUNEDOCK_CONFORMANCE_KEY=…] pytest tests/conformance`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from support.auto_trainer import AutoTrainer
from support.datasets import facts, jsonl
from support.threaded import threaded

URL, KEY = "TUNEDOCK_CONFORMANCE_URL", "TUNEDOCK_CONFORMANCE_KEY"
# A stranger's server trains for real.
PATIENCE_S = 900.0 if os.environ.get(URL) else 30.0
FINAL = ("succeeded", "failed", "cancelled")


@dataclass
class Wire:
    """What went over the wire, for tests about headers and retries."""

    requests: list[httpx2.Request] = field(default_factory=list)
    responses: list[httpx2.Response] = field(default_factory=list)

    def clear(self) -> None:
        self.requests.clear()
        self.responses.clear()


@pytest.fixture(scope="session")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    given = os.environ.get(URL)
    if given:
        yield given
        return
    folder = tmp_path_factory.mktemp("conformance")
    with threaded(folder) as started, AutoTrainer(started.server.registry, started.base, folder / "train"):
        yield f"{started.url}/v1"


@pytest.fixture(scope="session")
def wire() -> Wire:
    return Wire()


@pytest.fixture(scope="session")
def client(base_url: str, wire: Wire) -> Iterator[OpenAI]:
    hooks: Any = {"request": [wire.requests.append], "response": [wire.responses.append]}
    http = httpx2.Client(event_hooks=hooks, timeout=PATIENCE_S)
    with OpenAI(base_url=base_url, api_key=os.environ.get(KEY, "any"), http_client=http) as client:
        yield client


@pytest.fixture(scope="session")
def model(client: OpenAI) -> str:
    """The base model: the one without a parent."""
    return next(one.id for one in client.models.list() if not (one.model_extra or {}).get("parent"))


@pytest.fixture(scope="session")
def training_file(client: OpenAI) -> str:
    file = client.files.create(file=("facts.jsonl", jsonl(facts(12))), purpose="fine-tune")
    return client.files.wait_for_processing(file.id, poll_interval=0.1).id


@pytest.fixture(scope="session")
def start(client: OpenAI, model: str, training_file: str) -> Callable[..., FineTuningJob]:
    """Creates a short job."""

    def create(epochs: int = 2, **options: Any) -> FineTuningJob:
        method: Any = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": epochs, "batch_size": 4}}}
        chosen: Any = {"model": model, "training_file": training_file, "method": method, **options}
        return client.fine_tuning.jobs.create(**chosen)

    return create


@pytest.fixture(scope="session")
def done(client: OpenAI, start: Callable[..., FineTuningJob]) -> FineTuningJob:
    """A succeeded job that the tests share."""
    return finish(client, start(suffix="conformance", seed=1, metadata={"suite": "conformance"}))


def finish(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    """Polls until the job has ended, and expects it to succeed."""
    deadline = time.monotonic() + PATIENCE_S
    while job.status not in FINAL and time.monotonic() < deadline:
        time.sleep(0.1)
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", (job.status, job.error)
    return job
