"""Chunked uploads through the openai client."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from support.datasets import facts, jsonl
from support.running import Running, running

DATA = jsonl(facts(40))


@pytest_asyncio.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("server")) as started:
        yield started


async def begin(server: Running, size: int = len(DATA)) -> str:
    upload = await server.client.uploads.create(
        bytes=size, filename="big.jsonl", mime_type="application/jsonl", purpose="fine-tune"
    )
    assert (upload.status, upload.object, upload.file) == ("pending", "upload", None)
    return upload.id


async def test_parts_smaller_than_the_file_become_one_processed_file(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_bytes(DATA)
    done = await server.client.uploads.upload_file_chunked(
        file=path, mime_type="application/jsonl", purpose="fine-tune", part_size=500
    )
    assert done.status == "completed"
    assert done.file is not None
    assert (await server.client.files.wait_for_processing(done.file.id, poll_interval=0.02)).status == "processed"
    assert (await server.client.files.content(done.file.id)).read() == DATA


async def test_part_ids_decide_the_order_and_md5_is_checked(server: Running) -> None:
    upload = await begin(server)
    half = len(DATA) // 2
    parts = client_parts = server.client.uploads.parts
    second = await parts.create(upload, data=DATA[half:])
    first = await client_parts.create(upload, data=DATA[:half])
    assert first.object == "upload.part"
    ids = [first.id, second.id]
    with pytest.raises(openai.BadRequestError) as caught:
        await server.client.uploads.complete(upload, part_ids=ids, md5="0" * 32)
    assert caught.value.param == "md5"
    done = await server.client.uploads.complete(upload, part_ids=ids, md5=hashlib.md5(DATA).hexdigest())  # noqa: S324
    assert done.file is not None
    assert (await server.client.files.content(done.file.id)).read() == DATA
    with pytest.raises(openai.BadRequestError):
        await parts.create(upload, data=b"late")


async def test_sums_foreign_parts_and_cancelled_uploads_are_refused(server: Running) -> None:
    upload, other = await begin(server, 10), await begin(server, 10)
    part = await server.client.uploads.parts.create(other, data=b"0123456789")
    with pytest.raises(openai.BadRequestError) as caught:
        await server.client.uploads.complete(upload, part_ids=[part.id])
    assert caught.value.param == "part_ids"
    short = await server.client.uploads.parts.create(upload, data=b"123")
    with pytest.raises(openai.BadRequestError, match="3 bytes"):
        await server.client.uploads.complete(upload, part_ids=[short.id])
    assert (await server.client.uploads.cancel(upload)).status == "cancelled"
    with pytest.raises(openai.BadRequestError):
        await server.client.uploads.parts.create(upload, data=b"1")
    with pytest.raises(openai.NotFoundError):
        await server.client.uploads.cancel("upload_nope")
    with pytest.raises(openai.BadRequestError) as purpose:
        await server.client.uploads.create(bytes=1, filename="x", mime_type="x", purpose="fun")  # type: ignore[arg-type]
    assert purpose.value.param == "purpose"
