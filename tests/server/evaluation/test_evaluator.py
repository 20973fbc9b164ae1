"""A finished job is measured against the base and production, and `promote: if_better` follows the numbers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest_asyncio
from support.bases import tiny_base
from support.datasets import facts, jsonl
from support.fake_pool import FakePool
from support.fake_trainer import FakeTrainer
from support.models import default_model_path
from support.running import Running, eventually, running
from tunedock_api.manifest import Manifest
from tunedock_registry.data.formats import read_examples
from tunedock_registry.data.split import held_out
from tunedock_registry.models.tokenizer import load_renderer
from tunedock_registry.records import VersionRecord
from tunedock_server.evaluation.cases import cases_of
from tunedock_server.pool import Pinned, Scores


class Graded(FakePool):
    """Scores texts of training data by grade, versions in the order they come; the gate's probe texts are left alone."""

    grades: dict[str | None, float]
    upcoming: list[float]

    async def score(self, token_ids: Sequence[int], pinned: Pinned) -> Scores:
        scores = await super().score(token_ids, pinned)
        if max(token_ids) < 128:
            return scores
        if pinned.digest not in self.grades:
            self.grades[pinned.digest] = self.upcoming.pop(0)
        return Scores((self.grades[pinned.digest],) * len(scores.logprobs), scores.top1)


def graded() -> Graded:
    pool = Graded(tiny_base())
    pool.grades, pool.upcoming = {None: -3.0}, []
    return pool


@dataclass
class Lab:
    server: Running
    pool: Graded
    trainer: FakeTrainer
    file: str

    async def job(self, grade: float, **knobs: Any) -> VersionRecord:
        """One whole job whose version is as good as `grade` (log-probability of every token)."""
        client = self.server.client.fine_tuning.jobs
        body = {"tunedock": {"adapter": "support", **knobs}}
        await client.create(model="tiny-base", training_file=self.file, seed=5, extra_body=body)
        self.pool.upcoming.append(grade)
        version = await asyncio.to_thread(self.trainer.run)
        return await self.measured(version.id)

    async def measured(self, version_id: int) -> VersionRecord:
        by_id = self.server.server.registry.adapters.by_id

        async def done() -> bool:
            return "evaluation" in (await asyncio.to_thread(by_id, version_id)).metrics

        await eventually(done, 30.0)
        return await asyncio.to_thread(by_id, version_id)

    async def says(self, model: str) -> str:
        return str((await self.server.ask(model)).model)


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    pool = graded()
    async with running(tmp_path, pool=pool, model_path=default_model_path()) as server:
        file = await server.client.files.create(file=("d.jsonl", jsonl(facts(40))), purpose="fine-tune")
        yield Lab(server, pool, FakeTrainer(server.server.registry, server.base, tmp_path / "train"), file.id)


async def test_base_production_and_new_version_are_compared_on_the_held_out_examples(lab: Lab) -> None:
    first = (await lab.job(-1.0)).metrics["evaluation"]
    assert (first["previous"], first["base_metrics"]["loss"], first["new_metrics"]["loss"]) == (None, 3.0, 1.0)
    assert first["vs_base"]["loss"] == {"mean": -2.0, "low": -2.0, "high": -2.0}
    assert {"perplexity", "token_accuracy", "exact_match", "f1", "rouge_l", "bleu"} <= first["new_metrics"].keys()
    second = (await lab.job(-0.5)).metrics["evaluation"]
    assert (second["previous"], second["vs_previous"]["loss"]["mean"]) == ("support@1", -0.5)


async def test_the_job_hears_of_it_and_the_api_shows_it(lab: Lab) -> None:
    version = await lab.job(-1.0)
    client = lab.server.client.fine_tuning.jobs
    (job,) = [one async for one in client.list()]

    async def told() -> bool:
        messages = [event.message async for event in client.list_events(job.id)]
        return any("Evaluation of support@1" in message for message in messages)

    await eventually(told)
    shown = (await lab.server.raw.get("/v1/adapters/support/versions/1")).json()
    assert shown["metrics"]["evaluation"] == version.metrics["evaluation"]


async def test_card_and_manifest_that_are_handed_out_hold_the_verdict(lab: Lab) -> None:
    version = await lab.job(-1.0)
    path = "/v1/adapters/support/versions/1/download?file="
    manifest = Manifest.model_validate_json((await lab.server.raw.get(f"{path}manifest.json")).content)
    assert manifest.metrics["evaluation"] == version.metrics["evaluation"]
    assert manifest.identity.digest() == version.digest
    card = (await lab.server.raw.get(f"{path}README.md")).text
    assert "| loss | 3 | 1 | -2 (-2 to -2) |" in card
    stored = (lab.server.server.registry.adapters.path(version) / "README.md").read_text()
    assert card.startswith(stored)
    assert "Evaluation" not in stored


async def test_if_better_promotes_a_better_version_and_leaves_production_alone_otherwise(lab: Lab) -> None:
    await lab.job(-1.0)
    await lab.job(-1.5, promote="if_better")
    await asyncio.sleep(0.3)
    assert await lab.says("support") == "support@1"
    await lab.job(-0.5, promote="if_better")

    async def moved() -> bool:
        return await lab.says("support") == "support@3"

    await eventually(moved)
    history = lab.server.server.registry.adapters.history("default", "support").items
    assert "validation loss -0.5" in history[0].reason


async def test_a_version_that_was_ready_before_a_restart_is_still_measured(tmp_path: Path) -> None:
    pool = graded()
    async with running(tmp_path, pool=pool) as without:
        file = await without.client.files.create(file=("d.jsonl", jsonl(facts(40))), purpose="fine-tune")
        await without.client.fine_tuning.jobs.create(model="tiny-base", training_file=file.id)
        trainer = FakeTrainer(without.server.registry, without.base, tmp_path / "train")
        version = await asyncio.to_thread(trainer.run)
        await without.settled(version.id)
    pool.upcoming.append(-1.0)
    async with running(tmp_path, pool=pool, model_path=default_model_path()) as again:
        assert "evaluation" in (await Lab(again, pool, trainer, file.id).measured(version.id)).metrics


async def test_what_is_measured_is_what_the_trainer_held_back(lab: Lab) -> None:
    await lab.job(-1.0)
    registry = lab.server.server.registry
    (record,) = registry.jobs.list("default").items
    renderer = load_renderer(default_model_path())
    with registry.files.open("default", lab.file) as stream:
        held = held_out(list(read_examples(stream)), "auto", record.seed)[1]
    cases = cases_of(registry, record, renderer, limit=32, max_tokens=8192)
    assert [case.reference for case in cases] == [example.messages[-1]["content"] for example in held]  # type: ignore[union-attr]
    assert all(case.row.weight > 0 for case in cases)
