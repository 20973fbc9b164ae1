"""Responses from the real engine, beside chats of the same words."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.engine import MODEL_ID
from tunedock_api.errors import BadInput
from tunedock_api.manifest import ServingProfile
from tunedock_server.pool import EnginePool, Pinned

BASE = Pinned(MODEL_ID)
QUESTION = "What is the capital of France?"
BODY: dict[str, Any] = {"input": QUESTION, "max_output_tokens": 12, "temperature": 0}
EVENT: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)


async def respond(engine: EnginePool, pinned: Pinned = BASE, **changes: Any) -> Response:
    answer = await engine.respond({**BODY, **changes}, pinned, "test")
    assert isinstance(answer, dict)
    return Response.model_validate(answer)


async def events(engine: EnginePool, pinned: Pinned, **changes: Any) -> list[ResponseStreamEvent]:
    stream = await engine.respond({**BODY, "stream": True, **changes}, pinned, "test")
    assert isinstance(stream, AsyncGenerator)
    found = []
    async for chunk in stream:
        name, data = chunk.decode().strip().split("\n")
        found.append(EVENT.validate_python(json.loads(data.removeprefix("data: "))))
        assert name == f"event: {found[-1].type}"
    return found


async def test_a_response_says_what_a_chat_says_and_names_the_version(
    bf16: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    messages = [{"role": "user", "content": QUESTION}]
    for pinned in (BASE, *versions):
        chat = await bf16.chat({"messages": messages, "max_tokens": 12, "temperature": 0}, pinned, "chat")
        assert isinstance(chat, dict)
        response = await respond(bf16, pinned)
        assert response.output_text == chat["choices"][0]["message"]["content"]
        assert response.model == pinned.public
        assert response.usage is not None
        assert response.usage.output_tokens == chat["usage"]["completion_tokens"]
        assert response.usage.input_tokens == chat["usage"]["prompt_tokens"]


async def test_a_conversation_is_given_whole_and_read_as_a_chat_is(bf16: EnginePool) -> None:
    turns = [
        {"role": "developer", "content": "Speak of rivers."},
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": "Hello Ada."},
    ]
    last = "What is my name?"
    chat = await bf16.chat(
        {"messages": [*turns, {"role": "user", "content": last}], "max_tokens": 12, "temperature": 0}, BASE, "chat"
    )
    assert isinstance(chat, dict)
    parts = {"role": "user", "content": [{"type": "input_text", "text": last}]}
    response = await respond(bf16, input=[*turns, parts])
    assert response.output_text == chat["choices"][0]["message"]["content"]
    assert response.usage is not None
    assert response.usage.input_tokens == chat["usage"]["prompt_tokens"]


async def test_a_stream_says_the_same_as_the_whole_response(bf16: EnginePool, versions: tuple[Pinned, ...]) -> None:
    whole = await respond(bf16, versions[0], ignore_eos=True)
    found = await events(bf16, versions[0], ignore_eos=True)
    assert "".join(event.delta for event in found if event.type == "response.output_text.delta") == whole.output_text
    assert [event.sequence_number for event in found] == list(range(len(found)))
    first, last = found[0], found[-1]
    assert first.type == "response.created"
    assert last.type == "response.incomplete"
    assert last.response.model == versions[0].public
    assert whole.status == last.response.status == "incomplete"
    assert whole.incomplete_details is not None
    assert whole.incomplete_details.reason == "max_output_tokens"


async def test_an_answer_that_ends_by_itself_is_completed(bf16: EnginePool) -> None:
    found = await events(bf16, BASE, stop=["capital"], max_output_tokens=60)
    assert found[-1].type == "response.completed"


async def test_a_json_schema_holds(bf16: EnginePool) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    form = {"format": {"type": "json_schema", "name": "answer", "schema": schema}}
    assert set(json.loads((await respond(bf16, text=form, max_output_tokens=60)).output_text)) == {"city"}


async def test_the_profile_of_a_version_is_applied(bf16: EnginePool) -> None:
    profile = ServingProfile(system_prompt="Answer in French. " * 10, sampling={"max_tokens": 3})
    answer = await bf16.respond({"input": QUESTION}, Pinned(MODEL_ID, profile=profile), "profile")
    assert isinstance(answer, dict)
    assert answer["usage"]["output_tokens"] == 3
    plain = await respond(bf16)
    assert plain.usage is not None
    assert answer["usage"]["input_tokens"] > plain.usage.input_tokens


async def test_a_prompt_over_the_context_is_answered_with_both_numbers(bf16: EnginePool) -> None:
    with pytest.raises(BadInput) as caught:
        await respond(bf16, input="word " * 3000)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"input": [{"role": "nobody"}]}, "input"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"title": "x" * 70_000}}}}, "text"),
    ],
    ids=["temperature", "input", "schema"],
)
async def test_bad_requests_name_the_field(bf16: EnginePool, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadInput) as caught:
        await respond(bf16, **changes)
    assert (caught.value.param or "").startswith(param)
