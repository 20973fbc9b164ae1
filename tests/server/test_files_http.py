"""Files through the openai client."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from support.datasets import assistant, chat, facts, jsonl, user
from support.running import Running, running


@pytest_asyncio.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    async with running(tmp_path_factory.mktemp("server"), max_upload_bytes=200_000) as started:
        yield started


async def test_a_good_file_is_processed_and_comes_back_byte_for_byte(server: Running) -> None:
    data = jsonl(facts(12))
    created = await server.client.files.create(file=("data.jsonl", data), purpose="fine-tune")
    assert (created.status, created.bytes, created.filename, created.object) == (
        "uploaded",
        len(data),
        "data.jsonl",
        "file",
    )
    done = await server.client.files.wait_for_processing(created.id, poll_interval=0.02)
    assert done.status == "processed"
    assert (await server.client.files.content(created.id)).read() == data


async def test_a_bad_file_is_in_error_with_every_line_and_its_reason(server: Running) -> None:
    rows = [
        json.dumps(chat(user("hi"), assistant("hello"))),
        "{broken",
        json.dumps({"messages": [{"content": "no role"}]}),
        json.dumps(chat(user("hi"), assistant(""))),
        json.dumps(chat(user("nobody answers"))),
    ]
    created = await server.client.files.create(file=("bad.jsonl", "\n".join(rows).encode()), purpose="fine-tune")
    done = await server.client.files.wait_for_processing(created.id, poll_interval=0.02)
    assert done.status == "error"
    report = (await server.raw.get(f"/v1/files/{created.id}/report")).json()
    assert {error["line"] for error in report["errors"]} == {2, 3, 4, 5}
    assert all(error["message"] for error in report["errors"])
    assert "Example 2 cannot be parsed" in (done.status_details or "")


async def test_a_first_line_that_is_no_dictionary_is_refused_at_once(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="Line 1 is not a dictionary"):
        await server.client.files.create(file=io.BytesIO(b"[1, 2]\n"), purpose="fine-tune")


async def test_lists_page_in_both_orders_and_filter_by_purpose(server: Running) -> None:
    made = [(await server.client.files.create(file=(f"{n}.txt", b"x"), purpose="user_data")).id for n in range(3)]
    await server.client.files.create(file=("d.jsonl", jsonl(facts(10))), purpose="fine-tune")
    for order, expected in (("asc", made), ("desc", made[::-1])):
        page = await server.client.files.list(limit=1, order=order, purpose="user_data")  # type: ignore[arg-type]
        assert [file.id async for file in page] == expected
    answer = await server.raw.get("/v1/files", params={"after": "file-nope"})
    assert answer.status_code == 400


async def test_expiry_is_kept_and_checked(server: Running) -> None:
    created = await server.client.files.create(
        file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 3600}
    )
    assert created.expires_at == created.created_at + 3600
    with pytest.raises(openai.BadRequestError) as caught:
        await server.client.files.create(
            file=b"x", purpose="user_data", expires_after={"anchor": "created_at", "seconds": 1}
        )
    assert caught.value.param == "expires_after.seconds"


async def test_deleted_and_unknown_files_are_404_in_openai_s_words(server: Running) -> None:
    created = await server.client.files.create(file=b"x", purpose="user_data")
    gone = await server.client.files.delete(created.id)
    assert (gone.id, gone.deleted, gone.object) == (created.id, True, "file")
    for call in (server.client.files.retrieve, server.client.files.content, server.client.files.delete):
        with pytest.raises(openai.NotFoundError, match=f"No such File object: {created.id}") as caught:
            await call(created.id)
        assert caught.value.param == "id"


async def test_a_file_over_the_limit_is_413_and_an_unknown_purpose_400(server: Running) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        await server.client.files.create(file=b"x" * 250_000, purpose="user_data")
    assert caught.value.status_code == 413
    assert caught.value.code == "payload_too_large"
    answer = await server.raw.post("/v1/files", data={"purpose": "fun"}, files={"file": ("a", b"x")})
    assert answer.json()["error"]["param"] == "purpose"
    answer = await server.raw.post("/v1/files", data={"purpose": "evals"})
    assert answer.json()["error"]["param"] == "file"


async def test_a_retried_upload_makes_one_file(server: Running) -> None:
    again = {"x-stainless-retry-count": "1"}
    first = await server.client.files.create(file=("a", b"x"), purpose="user_data")
    second = await server.client.files.create(file=("a", b"x"), purpose="user_data", extra_headers=again)
    third = await server.client.files.create(file=("a", b"x"), purpose="user_data")
    assert first.id == second.id != third.id


async def test_files_that_a_crash_left_unvalidated_are_finished_at_the_next_start(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        registry = server.server.registry
        left = registry.files.create("default", "a.jsonl", "fine-tune", [jsonl(facts(10))])
        async with running(tmp_path, registry=registry) as second:
            done = await second.client.files.wait_for_processing(left.id, poll_interval=0.02)
    assert done.status == "processed"
