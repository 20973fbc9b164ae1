"""The verdict at a job's end on the real engine, and what `promote: if_better` makes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.live_server import BASE, Live, chat_file

pytestmark = pytest.mark.campaign  # three jobs, over a minute

TRAINING = [(f"Which colours has flag {number}?", "green and blue") for number in range(16)]
HELD_OUT = [(f"Which colours has flag {number}?", "green and blue") for number in range(100, 112)]
WAIT_S = 300.0  # on a slow machine a step takes five
Tune = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def tune(live: Live, tmp_path_factory: pytest.TempPathFactory) -> Tune:
    """Runs one job of the adapter `flags`, waits for its verdict and returns it."""
    folder = tmp_path_factory.mktemp("flags")
    training, held_out = (
        live.openai.files.create(file=chat_file(folder / f"{name}.jsonl", rows), purpose="fine-tune").id
        for name, rows in (("training", TRAINING), ("held-out", HELD_OUT))
    )

    def run(epochs: int, rate: float, promote: str) -> dict[str, Any]:
        numbers: Any = {"n_epochs": epochs, "batch_size": 4, "learning_rate_multiplier": rate}
        job = live.openai.fine_tuning.jobs.create(
            model=BASE,
            training_file=training,
            validation_file=held_out,
            method={"type": "supervised", "supervised": {"hyperparameters": numbers}},
            extra_body={"tunedock": {"adapter": "flags", "promote": promote, "num_samples": 0}},
        )
        return verdict(live, job.id)

    return run


def verdict(live: Live, job_id: str) -> dict[str, Any]:
    """The last words about the job: they come when production has been decided about."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        events = live.openai.fine_tuning.jobs.list_events(job_id, limit=20).data
        said = {event.message.partition(" ")[0]: event for event in events}
        if "Evaluation" in said:
            report: Any = said["Evaluation"].data
            return dict(report)
        job = live.openai.fine_tuning.jobs.retrieve(job_id)
        assert job.status != "failed", job.error
        time.sleep(0.2)
    raise TimeoutError(f"no evaluation of {job_id} in {WAIT_S:.0f} s")


def production(live: Live) -> str:
    alias = live.dock.adapters.get("flags").alias("production")
    assert alias is not None
    return str(alias.shown)


def eventually(holds: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    end = time.monotonic() + timeout_s
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    return holds()


@pytest.fixture(scope="module")
def weak(tune: Tune) -> dict[str, Any]:
    """Version 1 has learned little, and is in production because it was the first."""
    return tune(1, 1.0, "first")


@pytest.fixture(scope="module")
def strong(tune: Tune, weak: dict[str, Any]) -> dict[str, Any]:
    return tune(3, 1.0, "if_better")


def test_base_production_and_the_new_version_are_measured_on_the_validation_file(
    weak: dict[str, Any], strong: dict[str, Any]
) -> None:
    assert (weak["version"], weak["previous"], weak["num_examples"]) == ("flags@1", None, 12)
    assert (strong["version"], strong["previous"]) == ("flags@2", "flags@1")
    # The same weights measured twice: bf16 rounds a little otherwise in other batches.
    assert strong["base_metrics"]["loss"] == pytest.approx(weak["base_metrics"]["loss"], abs=0.05)
    assert strong["previous_metrics"]["loss"] == pytest.approx(weak["new_metrics"]["loss"], abs=0.05)
    assert strong["base_metrics"]["exact_match"] == 0.0
    assert strong["new_metrics"]["exact_match"] >= 0.9
    assert strong["new_metrics"]["loss"] < 0.2 < 2 < strong["base_metrics"]["loss"]
    assert strong["vs_previous"]["loss"]["high"] < 0


def test_a_surely_better_version_goes_to_production(live: Live, strong: dict[str, Any]) -> None:
    assert eventually(lambda: production(live) == "2")
    assert live.dock.adapters.history("flags")[0].reason.startswith("validation loss -")


def test_a_worse_version_stays_out_of_production(live: Live, tune: Tune, strong: dict[str, Any]) -> None:
    third = tune(1, 1.0, "if_better")
    assert third["vs_previous"]["loss"]["low"] > 0
    job = live.openai.fine_tuning.jobs.list(limit=1).data[0]
    text = "flags@3 is not surely better than flags@2: production stays"
    assert eventually(lambda: any(e.message == text for e in live.openai.fine_tuning.jobs.list_events(job.id, limit=3)))
    assert production(live) == "2"


def test_the_downloaded_model_card_holds_the_verdict(live: Live, strong: dict[str, Any], tmp_path: Path) -> None:
    card = (live.dock.adapters.download("flags@2", tmp_path / "flags") / "README.md").read_text()
    assert "with 12 examples that training did not see" in card
    assert "|  | base model | `flags@1` | this version |" in card
