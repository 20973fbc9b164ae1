"""Fine-tuning jobs through the openai client, with a trainer that does not train."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from support.datasets import facts, jsonl
from support.fake_trainer import FakeTrainer
from support.running import Running, eventually, running


@dataclass
class Loop:
    """A server, a trainer and a processed training file."""

    server: Running
    trainer: FakeTrainer
    file: str

    async def create(self, **options: Any) -> Any:
        chosen = {"model": "tiny-base", "training_file": self.file, **options}
        return await self.server.client.fine_tuning.jobs.create(**chosen)

    async def status(self, job_id: str) -> str:
        return (await self.server.client.fine_tuning.jobs.retrieve(job_id)).status

    async def finish(self, job_id: str) -> Any:
        await asyncio.to_thread(self.trainer.run)

        async def ended() -> bool:
            return await self.status(job_id) in ("succeeded", "failed")

        await eventually(ended)
        return await self.server.client.fine_tuning.jobs.retrieve(job_id)


@pytest_asyncio.fixture
async def loop(tmp_path: Path) -> AsyncIterator[Loop]:
    async with running(tmp_path) as server:
        file = await server.client.files.create(file=("d.jsonl", jsonl(facts(12))), purpose="fine-tune")
        yield Loop(server, FakeTrainer(server.server.registry, server.base, tmp_path / "train"), file.id)


async def test_the_whole_loop_from_upload_to_chat(loop: Loop) -> None:
    job = await loop.create(suffix="Support", seed=7)
    assert (job.status, job.error, job.seed, job.fine_tuned_model) == ("queued", None, 7, None)
    assert job.hyperparameters.n_epochs == "auto"
    done = await loop.finish(job.id)
    assert (done.status, done.fine_tuned_model, done.trained_tokens) == ("succeeded", "support@1", 123)
    assert done.hyperparameters.n_epochs == 3
    assert done.method.supervised.hyperparameters.batch_size == 4
    assert (await loop.server.ask(done.fine_tuned_model)).model == "support@1"
    assert (await loop.server.ask("support")).model == "support@1"


async def test_events_come_in_openai_s_words_and_pages(loop: Loop) -> None:
    job = await loop.create()
    await loop.finish(job.id)
    pages = await loop.server.client.fine_tuning.jobs.list_events(job.id, limit=2)
    messages = [event.message async for event in pages][::-1]
    assert messages[:4] == [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {loop.file}",
        "Files validated, moving job to queued state",
        "Fine-tuning job started",
    ]
    assert "Step 3/3: training loss=0.33" in messages
    assert any(message.startswith("Publish gate: ") for message in messages)


async def test_until_the_gate_has_spoken_the_job_is_running(loop: Loop) -> None:
    loop.server.pool.behaviour.load_s = 0.4
    job = await loop.create()
    await asyncio.to_thread(loop.trainer.run)
    shown = await loop.server.client.fine_tuning.jobs.retrieve(job.id)
    assert (shown.status, shown.fine_tuned_model, shown.finished_at) == ("running", None, None)


async def test_a_version_that_the_gate_rejects_fails_its_job_and_never_serves(loop: Loop) -> None:
    job = await loop.create(suffix="bad")
    version = await asyncio.to_thread(_published_wrong, loop)
    await loop.server.settled(version)
    shown = await loop.server.client.fine_tuning.jobs.retrieve(job.id)
    assert shown.status == "failed"
    assert shown.error is not None
    assert shown.error.code == "adapter_rejected"
    assert "log-probabilities differ" in shown.error.message
    with pytest.raises(openai.NotFoundError):
        await loop.server.ask("bad")


def _published_wrong(loop: Loop) -> int:
    """The engine will answer as if it had loaded other weights."""
    claim = loop.trainer.claim()
    pool = loop.server.pool
    pool.behaviour.all_wrong = True
    return loop.trainer.publish(claim).id


async def test_checkpoints_are_models_at_once_and_a_base_for_further_jobs(loop: Loop) -> None:
    job = await loop.create(suffix="support")
    claim = await asyncio.to_thread(loop.trainer.claim)
    checkpoint = await asyncio.to_thread(loop.trainer.checkpoint, claim, 2)
    await loop.server.settled(checkpoint.id)
    listed = [item async for item in await loop.server.client.fine_tuning.jobs.checkpoints.list(job.id, limit=1)]
    assert [item.fine_tuned_model_checkpoint for item in listed] == [checkpoint.ref]
    assert listed[0].step_number == 2
    assert (await loop.server.ask(checkpoint.ref)).model == checkpoint.ref
    further = await loop.create(model=checkpoint.ref, suffix="more")
    assert further.model_extra["tunedock"]["init_from"] == checkpoint.ref


async def test_knobs_ride_in_extra_body_and_are_echoed(loop: Loop) -> None:
    job = await loop.create(extra_body={"tunedock": {"adapter": "dates", "lora": {"rank": 4}, "promote": "never"}})
    assert job.model_extra["adapter"] == "dates"
    assert job.model_extra["tunedock"]["lora"] == {"rank": 4}
    beside = await loop.create(extra_body={"adapter": "times", "packing": False})
    assert beside.model_extra["tunedock"] == {"adapter": "times", "packing": False}


BAD: list[tuple[dict[str, Any], str | None, str]] = [
    ({"model": "gpt-x"}, None, "not available for fine-tuning"),
    ({"training_file": "file-unknown"}, "training_file", "file-unknown"),
    ({"validation_file": "file-unknown"}, "validation_file", "file-unknown"),
    ({"suffix": "has space"}, "suffix", "suffix"),
    ({"seed": -1}, "seed", "greater than or equal to 0"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k", "512"),
    ({"extra_body": {"tunedock": {"lora": {"rnak": 4}}}}, "tunedock.lora.rnak", "Unknown field"),
    ({"extra_body": {"learning_rte": 1}}, "learning_rte", "Unknown field"),
    ({"extra_body": {"tunedock": {"lora": {"rank": 16}}}}, "tunedock.lora.rank", "rank 8 at most"),
    ({"extra_body": {"lora": {"target_modules": ["nope"]}}}, "tunedock.lora.target_modules", "does not exist"),
    ({"extra_body": {"max_length": 4096}}, "tunedock.max_length", "2048 tokens"),
    ({"method": {"type": "reinforcement"}}, "method.type", "supervised"),
    ({"method": {"type": "dpo"}}, "training_file", "preference"),
    (
        {"method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 0}}}},
        "method.supervised.hyperparameters.n_epochs",
        "from 1 to 50",
    ),
]


async def test_a_bad_field_is_400_with_its_path_before_any_compute(loop: Loop) -> None:
    for options, param, text in BAD:
        with pytest.raises(openai.BadRequestError) as caught:
            await loop.create(**options)
        assert caught.value.param == param, options
        assert text in caught.value.message
    assert not (await loop.server.client.fine_tuning.jobs.list()).data


async def test_files_of_another_purpose_or_with_errors_are_refused_by_name(loop: Loop) -> None:
    client = loop.server.client
    other = await client.files.create(file=("x", b"x"), purpose="user_data")
    broken = await client.files.create(file=("x", b"{nope\n"), purpose="fine-tune")
    for file, text in ((other.id, "purpose 'user_data'"), (broken.id, "cannot be parsed")):
        with pytest.raises(openai.BadRequestError, match=text) as caught:
            await loop.create(training_file=file)
        assert file in caught.value.message


async def test_too_few_examples_fail_the_job_in_openai_s_words(loop: Loop) -> None:
    small = await loop.server.client.files.create(file=("x", jsonl(facts(3))), purpose="fine-tune")
    job = await loop.create(training_file=small.id)
    assert job.status == "failed"
    assert job.error.code == "invalid_n_examples"
    assert job.error.message == "Training file has 3 example(s), but must have at least 10 examples"


async def test_cancel_pause_and_resume_follow_the_state_rules(loop: Loop) -> None:
    jobs = loop.server.client.fine_tuning.jobs
    job = await loop.create()
    assert str((await jobs.pause(job.id)).status) == "paused"
    assert (await jobs.resume(job.id)).status == "queued"
    assert (await jobs.cancel(job.id)).status == "cancelled"
    for call in (jobs.cancel, jobs.pause, jobs.resume):
        with pytest.raises(openai.BadRequestError) as caught:
            await call(job.id)
        assert caught.value.code == "invalid_state"
    with pytest.raises(openai.NotFoundError) as missing:
        await jobs.retrieve("ftjob-nope")
    assert (missing.value.code, missing.value.param) == ("fine_tune_not_found", "fine_tune_id")
    assert missing.value.message.endswith("Could not find fine tune: ftjob-nope")


async def test_lists_page_newest_first_and_filter_by_metadata(loop: Loop) -> None:
    jobs = loop.server.client.fine_tuning.jobs
    made = [(await loop.create(metadata={"team": team})).id for team in ("a", "b", "a")]
    bare = (await loop.create()).id
    assert [job.id async for job in await jobs.list(limit=1)] == [bare, *made[::-1]]
    assert [job.id async for job in await jobs.list(metadata={"team": "a"})] == [made[2], made[0]]
    assert [job.id async for job in await jobs.list(extra_query={"metadata": "null"})] == [bare]


async def test_a_retried_create_makes_one_job_and_a_reused_key_with_another_body_is_refused(loop: Loop) -> None:
    first = await loop.create(seed=1)
    again = await loop.create(seed=1, extra_headers={"x-stainless-retry-count": "1"})
    assert again.id == first.id
    keyed = await loop.create(seed=2, extra_headers={"Idempotency-Key": "k1"})
    same = await loop.create(seed=2, extra_headers={"Idempotency-Key": "k1"})
    assert keyed.id == same.id != first.id
    with pytest.raises(openai.ConflictError) as caught:
        await loop.create(seed=3, extra_headers={"Idempotency-Key": "k1"})
    assert caught.value.response.headers["x-should-retry"] == "false"
