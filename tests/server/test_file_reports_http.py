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


TEMPLATE = (
    "{% if style == 'none' %}{{ raise_exception('no such style') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest_asyncio.fixture
async def styled(tmp_path: Path) -> AsyncIterator[Running]:
    """A server whose model's template reads the variable `style`."""
    folder = tmp_path / "styled"
    folder.mkdir()
    for file in (await asyncio.to_thread(default_model_path)).iterdir():
        if file.name != "chat_template.jinja":
            (folder / file.name).symlink_to(file)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    async with running(tmp_path, inspector=IsolatedInspector(folder)) as started:
        yield started


async def create(server: Running, file: str, kwargs: dict[str, Any]) -> Any:
    body = {"tunedock": {"chat_template_kwargs": kwargs}}
    return await server.client.fine_tuning.jobs.create(
        model=server.base.identity.id, training_file=file, extra_body=body
    )


async def test_template_kwargs_that_the_template_reads_are_taken(styled: Running) -> None:
    job = await create(styled, await uploaded(styled, facts(12)), {"style": "plain"})
    assert job.status == "queued"


@pytest.mark.parametrize(
    ("kwargs", "param", "says"),
    [
        ({"stile": "plain"}, "tunedock.chat_template_kwargs.stile", "does not read 'stile'"),
        ({"style": "none"}, "tunedock.chat_template_kwargs", "no such style.*11 more examples"),
        ({"tokenize": True}, "tunedock.chat_template_kwargs", "cannot set 'tokenize'"),
    ],
)
async def test_template_kwargs_that_cannot_be_are_refused_before_any_compute(
    styled: Running, kwargs: dict[str, Any], param: str, says: str
) -> None:
    file = await uploaded(styled, facts(12))
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        await create(styled, file, kwargs)
    assert caught.value.param == param
    assert [job async for job in styled.client.fine_tuning.jobs.list()] == []
