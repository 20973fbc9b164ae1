"""Chat and completions through the real openai client: versions, streams, errors, and what they leave behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import openai
import pytest
import pytest_asyncio
from support.fake_pool import word_of
from support.running import Running, eventually, running


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Running]:
    async with running(tmp_path) as started:
        yield started


async def test_the_base_model_answers_under_its_own_name(server: Running) -> None:
    answer = await server.ask("tiny-base")
    assert answer.model == "tiny-base"
    assert answer.choices[0].message.content == "base base base base base"
    assert answer._request_id.startswith("req_")


async def test_every_spelling_of_a_reference_is_answered_by_the_exact_version(server: Running) -> None:
    version = await server.ready()
    for model in ("support", "support@1", "support@production"):
        answer = await server.ask(model)
        assert answer.model == "support@1"
        assert word_of(version.digest) in answer.choices[0].message.content


async def test_a_stream_names_its_version_in_every_chunk_and_in_the_headers(server: Running) -> None:
    version = await server.ready()
    raw = await server.client.chat.completions.with_raw_response.create(
        model="support", messages=[{"role": "user", "content": "x"}], stream=True
    )
    assert raw.headers["x-tunedock-version"] == "support@1"
    assert raw.headers["x-tunedock-digest"] == version.digest
    chunks = [chunk async for chunk in raw.parse()]
    assert {chunk.model for chunk in chunks} == {"support@1"}
    assert server.server.leases.total() == 0


async def test_a_stream_that_began_on_version_1_ends_on_version_1_while_new_requests_get_version_2(
    server: Running,
) -> None:
    first = await server.ready(seed=1)
    server.pool.behaviour.hold = asyncio.Event()
    stream = await server.ask("support", stream=True)
    words = [(await anext(stream)).choices[0].delta.content]
    server.pool.behaviour.hold.set()
    server.pool.behaviour.hold = None
    server.pool.behaviour.token_s = 0.02
    second = await server.ready(seed=2)
    moved = await server.raw.put("/v1/adapters/support/aliases/production", json={"version": 2})
    assert moved.status_code == 200
    assert (await server.ask("support")).model == "support@2"
    words += [chunk.choices[0].delta.content async for chunk in stream]
    assert set(words) == {word_of(first.digest)}
    assert first.digest != second.digest


@pytest.mark.parametrize("model", ["nope", "support@99", "support@nowhere", "a/b", "../../etc", "x" * 5000, "Support"])
async def test_an_unknown_model_is_404_in_openai_s_words_and_leaves_nothing(server: Running, model: str) -> None:
    await server.ready()
    with pytest.raises(openai.NotFoundError) as caught:
        await server.ask(model)
    assert caught.value.code == "model_not_found"
    assert "does not exist or you do not have access to it" in caught.value.message
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert caught.value.request_id
    assert len(server.server.residents._known) == 1


async def test_bad_fields_are_400_with_their_name(server: Running) -> None:
    for field, value in (("n", 17), ("stop", ["x"] * 17), ("logprobs", True), ("max_tokens", 10**9)):
        body = {"model": "tiny-base", "messages": [{"role": "user", "content": "x"}], field: value}
        answer = await server.raw.post("/v1/chat/completions", json=body)
        if field == "logprobs":
            assert answer.status_code == 200
            continue
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["param"] == field
    refused = {"model": "tiny-base", "messages": [], "chat_template": "{{ 1 }}"}
    answer = await server.raw.post("/v1/chat/completions", json=refused)
    assert answer.json()["error"]["param"] == "chat_template"


async def test_a_response_runs_on_the_exact_version_and_refuses_what_needs_a_store(server: Running) -> None:
    version = await server.ready()
    answer = await server.client.responses.create(model="support", input="x", instructions="Be brief.")
    assert (answer.model, answer.output_text.split()[0]) == ("support@1", word_of(version.digest))
    assert server.pool.bodies[-1]["instructions"] == "Be brief."
    with pytest.raises(openai.BadRequestError) as caught:
        await server.client.responses.create(model="support", input="x", previous_response_id=answer.id)
    assert caught.value.param == "previous_response_id"
    assert server.server.leases.total() == 0


async def test_a_prompt_over_the_context_is_400_with_the_engine_s_numbers(server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="2048") as caught:
        await server.client.completions.create(model="tiny-base", prompt="word " * 9000)
    assert caught.value.code == "context_length_exceeded"


async def test_unknown_fields_never_reach_the_engine(server: Running) -> None:
    await server.ask("tiny-base", extra_body={"vendor_switch": 1}, user="me")
    assert "vendor_switch" not in server.pool.bodies[-1]
    assert server.pool.bodies[-1]["user"] == "me"


async def test_a_client_that_goes_away_frees_its_lease_and_its_slot_within_a_second(server: Running) -> None:
    await server.ready()
    server.pool.behaviour.token_s = 0.05
    server.pool.behaviour.tokens = 10_000
    for streaming in (True, False):
        task = asyncio.create_task(_read(server, streaming))
        await eventually(lambda: _running(server))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: _idle(server), 1.0)


async def _read(server: Running, streaming: bool) -> None:
    answer = await server.ask("support", stream=streaming)
    async for _ in answer:
        pass


async def _running(server: Running) -> bool:
    return sum(server.pool.busy.values()) > 0


async def _idle(server: Running) -> bool:
    return server.server.leases.total() == 0 and sum(server.pool.busy.values()) == 0


async def test_n_above_one_holds_one_lease_and_gives_it_back(server: Running) -> None:
    await server.ready()
    answer = await server.ask("support", n=3)
    assert len(answer.choices) == 3
    assert server.server.leases.total() == 0


async def test_an_error_after_the_first_bytes_arrives_as_an_event_without_done(server: Running) -> None:
    server.pool.behaviour.stream_error_after = 2
    async with server.raw.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "tiny-base", "messages": [{"role": "user", "content": "x"}], "stream": True},
    ) as answer:
        text = (await answer.aread()).decode()
    assert answer.status_code == 200
    assert '"code": "engine_unavailable"' in text
    assert "[DONE]" not in text
    assert server.server.leases.total() == 0


async def test_an_error_before_the_first_byte_is_an_ordinary_error(server: Running) -> None:
    version = await server.ready()
    await server.server.residents.evict(version.digest)
    path = server.server.catalog.pinned(version).path
    assert path is not None
    path.chmod(0o700)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(openai.InternalServerError) as caught:
        await server.ask("support", stream=True)
    assert caught.value.code == "adapter_unavailable"
    assert caught.value.status_code == 503
    assert (await server.ask("tiny-base")).model == "tiny-base"
    assert server.server.leases.total() == 0


async def test_the_deadline_of_the_caller_ends_the_request(server: Running) -> None:
    server.pool.behaviour.token_s = 5.0
    answer = await server.raw.post(
        "/v1/chat/completions",
        json={"model": "tiny-base", "messages": [{"role": "user", "content": "x"}]},
        headers={"x-request-timeout": "0.1"},
    )
    assert answer.status_code == 504
    assert answer.headers["x-should-retry"] == "false"
    await eventually(lambda: _idle(server), 1.0)


async def test_too_many_requests_are_refused_at_once_with_a_hint(tmp_path: Path) -> None:
    async with running(tmp_path, max_inflight=2) as server:
        server.pool.behaviour.token_s = 0.2
        tasks = [asyncio.create_task(server.ask("tiny-base")) for _ in range(2)]
        await eventually(lambda: _running(server))
        with pytest.raises(openai.InternalServerError) as caught:
            await server.ask("tiny-base")
        assert caught.value.status_code == 503
        assert caught.value.response.headers["retry-after"] == "1"
        await asyncio.gather(*tasks)


async def test_models_are_listed_with_their_parent_and_retrieved_by_any_reference(server: Running) -> None:
    await server.ready()
    models = (await server.client.models.list()).data
    assert [model.id for model in models] == ["tiny-base", "support", "support@1"]
    assert ((await server.client.models.retrieve("support@1")).model_extra or {})["parent"] == "tiny-base"
    with pytest.raises(openai.NotFoundError):
        await server.client.models.retrieve("org/some model:x")
