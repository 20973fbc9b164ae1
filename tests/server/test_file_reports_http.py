"""The full report on a training file, and the jobs that it refuses before any compute."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
from support.datasets import assistant, chat, facts, jsonl, user
from support.models import default_model_path
from support.running import Running, running
from tunedock_registry.data.isolation import IsolatedInspector


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    inspector = IsolatedInspector(await asyncio.to_thread(default_model_path))
    async with running(tmp_path, inspector=inspector) as started:
        yield started


async def uploaded(server: Running, rows: list[dict[str, Any]]) -> str:
    created = await server.client.files.create(file=("data.jsonl", jsonl(rows)), purpose="fine-tune")
    done = await server.client.files.wait_for_processing(created.id, poll_interval=0.05)
    assert done.status == "processed"
    return created.id


async def test_a_report_counts_tokens_and_shows_what_is_trained(server: Running) -> None:
    file = await uploaded(server, [*facts(20), facts(20)[3]])
    report = (await server.raw.get(f"/v1/files/{file}/report")).json()
    assert (report["object"], report["ok"], report["num_examples"]) == ("file.report", True, 21)
    assert report["duplicates"]["pairs"] == [[21, 4, 1.0]]
    assert report["tokens"]["sequences"] == 21
    assert report["estimate"]["steps"] > 0
    trained = [token["text"] for token in report["masks"][0]["tokens"] if token["trained"]]
    assert "".join(trained) == "0<|im_end|>"


async def test_a_report_with_a_validation_file_shows_the_overlap(server: Running) -> None:
    training, held = await uploaded(server, facts(20)), await uploaded(server, facts(22)[15:])
    report = (await server.raw.get(f"/v1/files/{training}/report", params={"validation_file": held})).json()
    assert report["overlap"]["exact"] == 5
    unknown = await server.raw.get(f"/v1/files/{training}/report", params={"validation_file": "file-none"})
    assert unknown.status_code == 404


async def test_a_job_whose_longest_example_cannot_be_served_is_refused(server: Running) -> None:
    file = await uploaded(server, [*facts(10), chat(user("word " * 40_000), assistant("ok"))])
    with pytest.raises(openai.BadRequestError, match="longest example has") as caught:
        await server.client.fine_tuning.jobs.create(model=server.base.identity.id, training_file=file)
    assert caught.value.param == "training_file"


async def test_a_job_whose_template_refuses_an_example_is_refused(server: Running) -> None:
    file = await uploaded(server, [*facts(10), chat(assistant("I begin."), user("a"), assistant("b"))])
    with pytest.raises(openai.BadRequestError, match="Example 11 begins with a trained assistant message"):
        await server.client.fine_tuning.jobs.create(model=server.base.identity.id, training_file=file)
