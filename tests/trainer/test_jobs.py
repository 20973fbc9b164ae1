"""A claimed job becomes a published version, in the words of the OpenAI API."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.training_jobs import chats, events, finished, open_home, preferences, queue_job, run_all, upload
from tunedock_registry.records import JobRecord
from tunedock_registry.registry import Registry


@pytest.fixture
def registry(home_root: Path) -> Iterator[Registry]:
    opened = open_home(home_root)
    yield opened
    opened.close()


def run(registry: Registry, job: JobRecord) -> JobRecord:
    run_all(registry)
    return finished(registry, job)


def test_a_job_ends_with_a_published_version(registry: Registry) -> None:
    job = queue_job(registry, chats(30))
    done = run(registry, job)
    assert (done.status, done.fine_tuned_model, done.error) == ("succeeded", "colours@1", None)
    assert done.version_id is not None
    version = registry.adapters.by_id(done.version_id)
    manifest = version.manifest
    assert (version.state, version.origin, version.job_id) == ("published", "trained", job.id)
    assert manifest.lineage.datasets == {job.training_file: registry.files.get("default", job.training_file).sha256}
    assert manifest.lineage.seed == 7
    assert manifest.lora.trained_alpha == 32
    assert manifest.probe is not None
    assert len(manifest.probe.examples) == 3
    card = (registry.adapters.path(version) / "README.md").read_text()
    assert job.id in card
    assert 'model="colours"' in card


def test_loss_falls_and_the_result_file_holds_every_step(registry: Registry) -> None:
    job = queue_job(registry, chats(30), hyperparameters={"learning_rate_multiplier": 4.0})
    done = run(registry, job)
    data = registry.files.open("default", done.result_files[0]).read().decode()
    assert data.startswith("step,train_loss,train_accuracy,valid_loss,valid_mean_token_accuracy,")
    rows = list(csv.DictReader(io.StringIO(data)))
    assert [int(row["step"]) for row in rows] == list(range(1, 15))
    # The output layer of the tiny base cannot say much louder what it means: its loss stays above 8.
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) - 0.3
    assert rows[6]["full_valid_loss"]
    assert rows[13]["full_valid_loss"]
    assert done.trained_tokens == 2 * 27 * 2
    assert done.hyperparameters == {"n_epochs": 2, "batch_size": 4, "learning_rate_multiplier": 4.0}


def test_events_say_what_openai_says(registry: Registry) -> None:
    job = queue_job(registry, chats(30))
    run(registry, job)
    texts = [event.message for event in events(registry, job)]
    steps = [event for event in events(registry, job) if event.type == "metrics"]
    assert texts[3] == "Fine-tuning job started"
    assert [event.data["step"] for event in steps] == list(range(1, 15))
    assert steps[0].message.startswith("Step 1/14: training loss=")
    assert ", validation loss=" in steps[0].message
    assert ", full validation loss=" in steps[6].message
    assert steps[6].data.keys() >= {"total_steps", "train_mean_token_accuracy", "full_valid_mean_token_accuracy"}
    snapshot = f"colours@ckpt-{job.id.removeprefix('ftjob-')[:8]}-7"
    assert f"Checkpoint created at step 7 with Snapshot ID: {snapshot}" in texts
    assert texts[-2:] == ["New fine-tuned model created: colours@1", "The job has successfully completed"]
    assert any(text.startswith("Sample at step 7: ") for text in texts)


def test_the_run_folder_holds_settings_board_and_plot(registry: Registry) -> None:
    job = queue_job(registry, chats(30))
    run(registry, job)
    folder = registry.home.run_dir(job.id)
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert list((folder / "tensorboard").glob("events.*"))
    assert '"seed": 7' in (folder / "config.json").read_text()
    assert not (folder / "state").exists()


def test_a_failing_job_leaves_the_trainer_ready_for_the_next(registry: Registry) -> None:
    bad = queue_job(registry, chats(30), knobs={"max_length": 16})
    pairs = queue_job(registry, preferences(12))
    good = queue_job(registry, chats(12))
    run_all(registry)
    first, second, third = (finished(registry, job) for job in (bad, pairs, good))
    assert first.error is not None
    assert first.error["code"] == "invalid_training_file"
    assert "Example 1 has" in first.error["message"]
    assert second.error is not None
    assert "does not hold conversations" in second.error["message"]
    assert third.status == "succeeded"


def test_a_job_continues_from_a_version_and_keeps_the_lineage(registry: Registry) -> None:
    first = run(registry, queue_job(registry, chats(30)))
    child = queue_job(registry, chats(30), model="colours@1", hyperparameters={"n_epochs": 1})
    done = run(registry, child)
    assert done.version_id is not None
    version = registry.adapters.by_id(done.version_id)
    assert (version.ref, version.manifest.lineage.parents) == ("colours@2", ("colours@1",))
    ended = [event.data["train_loss"] for event in events(registry, first) if event.type == "metrics"][-1]
    began = next(event.data["train_loss"] for event in events(registry, child) if event.type == "metrics")
    assert began < 1.5 * ended + 0.1


def test_a_checkpoint_can_be_continued(registry: Registry) -> None:
    first = queue_job(registry, chats(30))
    run_all(registry)
    tag = registry.jobs.checkpoints("default", first.id).items[0].fine_tuned_model_checkpoint
    done = run(registry, queue_job(registry, chats(30), knobs={"init_from": tag}))
    assert done.version_id is not None
    assert registry.adapters.by_id(done.version_id).manifest.lineage.parents == (tag,)


def test_an_unknown_parent_fails_the_job_in_openais_words(registry: Registry) -> None:
    done = run(registry, queue_job(registry, chats(12), model="colours@9"))
    assert done.error is not None
    assert done.error == {
        "code": "model_not_available",
        "message": "Model colours@9 is not available for fine-tuning or does not exist.",
        "param": None,
    }


def test_dpo_raises_the_margin_of_held_out_pairs(registry: Registry) -> None:
    held = upload(registry, preferences(40)[30:])
    job = queue_job(
        registry,
        preferences(30),
        type="dpo",
        validation_file=held.id,
        hyperparameters={"learning_rate_multiplier": 100.0, "n_epochs": 3},
    )
    done = run(registry, job)
    assert done.status == "succeeded"
    metrics = [event.data for event in events(registry, job) if event.type == "metrics"]
    assert metrics[0]["train_loss"] == pytest.approx(0.693, abs=1e-3)
    assert metrics[-1]["full_valid_loss"] < 0.6
    assert metrics[-1]["full_valid_mean_token_accuracy"] == 1.0


def test_dpo_after_supervised_tuning_takes_the_parent_as_its_reference(registry: Registry) -> None:
    run(registry, queue_job(registry, chats(30)))
    job = queue_job(registry, preferences(20), type="dpo", model="colours@1")
    done = run(registry, job)
    assert done.version_id is not None
    version = registry.adapters.by_id(done.version_id)
    assert version.manifest.lineage.parents == ("colours@1",)
    first = next(event.data for event in events(registry, job) if event.type == "metrics")
    assert first["train_loss"] == pytest.approx(0.693, abs=1e-3)


def test_training_stops_early_and_publishes_the_best_epoch(registry: Registry) -> None:
    rows = chats(20)
    contrary = [
        {"messages": [*row["messages"][:-1], {"role": "assistant", "content": "green"}]} for row in chats(8, 50)
    ]
    job = queue_job(
        registry, rows, validation_file=upload(registry, contrary).id, hyperparameters={"n_epochs": 12, "batch_size": 5},
        knobs={"early_stopping": {"patience": 2}},
    )  # fmt: skip
    done = run(registry, job)
    steps = [event.data for event in events(registry, job) if event.type == "metrics"]
    assert done.version_id is not None
    full = {data["step"]: data["full_valid_loss"] for data in steps if "full_valid_loss" in data}
    best = min(full, key=lambda step: full[step])
    assert len(steps) < 48
    assert registry.adapters.by_id(done.version_id).manifest.lineage.step == best


def test_overlong_examples_are_dropped_or_cut_when_asked(registry: Registry) -> None:
    rows = [
        *chats(20),
        {"messages": [{"role": "user", "content": "long " * 60}, {"role": "assistant", "content": "red"}]},
    ]
    for choice, dropped in (("drop", 1), ("truncate", 1)):
        job = run(
            registry, queue_job(registry, rows, knobs={"max_length": 60, "overlong": choice, "validation_split": 0})
        )
        assert job.version_id is not None
        assert registry.adapters.by_id(job.version_id).manifest.training["num_dropped"] == dropped


def test_further_files_are_mixed_in_by_weight(registry: Registry) -> None:
    more = upload(registry, chats(20, 100))
    job = queue_job(
        registry, chats(20), knobs={"mixing": {more.id: 0.5}, "validation_split": 0}, hyperparameters={"batch_size": 10}
    )
    done = run(registry, job)
    assert done.version_id is not None
    manifest = registry.adapters.by_id(done.version_id).manifest
    assert set(manifest.lineage.datasets) == {job.training_file, more.id}
    assert manifest.training["steps"] == 6


def test_a_sweep_publishes_the_run_with_the_lowest_validation_loss(registry: Registry) -> None:
    knobs = {"sweep": {"learning_rate_multiplier": [0.01, 4.0], "rank": [2, 4]}}
    job = queue_job(registry, chats(30), knobs=knobs, hyperparameters={"learning_rate_multiplier": "auto"})
    done = run(registry, job)
    assert done.version_id is not None
    version = registry.adapters.by_id(done.version_id)
    told = [event.data["step"] for event in events(registry, job) if event.type == "metrics"]
    best = [event for event in events(registry, job) if event.message.startswith("The best of 4 runs")]
    assert told == list(range(1, 57))
    assert best[0].data["sweep"]["learning_rate_multiplier"] == 4.0
    assert version.manifest.lora.rank == best[0].data["sweep"]["rank"]
    assert version.manifest.training["optim"]["learning_rate"] == pytest.approx(4 * 2e-3)
    assert sorted(path.name for path in registry.home.run_dir(job.id).glob("sweep-*")) == [
        f"sweep-{n}" for n in range(4)
    ]
    assert version.number == 1
