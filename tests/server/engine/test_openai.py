"""OpenAI answers from the real engine: names, streams, limits, cancellation."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from support.engine import MODEL_ID
from tunedock_api.errors import BadInput
from tunedock_api.manifest import ServingProfile
from tunedock_server.pool import EnginePool, GenerateRequest, Pinned, Sampling

BASE = Pinned(MODEL_ID)
CHAT: dict[str, Any] = {
    "model": "whatever the caller typed",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 12,
    "temperature": 0,
}


async def _chat(engine: EnginePool, pinned: Pinned = BASE, **changes: Any) -> dict[str, Any]:
    answer = await engine.chat({**CHAT, **changes}, pinned, "test")
    assert isinstance(answer, dict)
    return answer


async def _events(engine: EnginePool, pinned: Pinned, **changes: Any) -> list[dict[str, Any]]:
    stream = await engine.chat({**CHAT, "stream": True, **changes}, pinned, "test")
    assert isinstance(stream, AsyncGenerator)
    lines = b"".join([chunk async for chunk in stream]).decode().strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


async def test_the_answer_names_the_exact_version_not_what_the_caller_typed(
    bf16: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    for pinned in (BASE, *versions):
        assert (await _chat(bf16, pinned))["model"] == pinned.public


async def test_a_stream_says_the_same_as_the_whole_answer(bf16: EnginePool, versions: tuple[Pinned, ...]) -> None:
    whole = await _chat(bf16, versions[0])
    events = await _events(bf16, versions[0], stream_options={"include_usage": True})
    text = "".join(choice["delta"].get("content") or "" for event in events for choice in event["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert {event["model"] for event in events} == {versions[0].public}
    assert events[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]


async def test_several_answers_stop_strings_seeds_and_logprobs(bf16: EnginePool) -> None:
    sampled = await _chat(bf16, n=3, temperature=1.0, seed=7)
    assert len(sampled["choices"]) == 3
    assert (await _chat(bf16, n=3, temperature=1.0, seed=7))["choices"] == sampled["choices"]
    stopped = await _chat(bf16, stop=["Paris"])
    assert "Paris" not in stopped["choices"][0]["message"]["content"]
    assert stopped["choices"][0]["finish_reason"] == "stop"
    scored = await _chat(bf16, logprobs=True, top_logprobs=2)
    assert len(scored["choices"][0]["logprobs"]["content"][0]["top_logprobs"]) == 2


async def test_json_schema_output_is_json_of_that_schema(bf16: EnginePool) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 12}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = await _chat(bf16, response_format=form, max_tokens=60)
    assert set(json.loads(answer["choices"][0]["message"]["content"])) == {"city"}


async def test_echo_with_logprobs_scores_the_prompt_like_the_gate_does(
    bf16: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    prompt = [504, 3575, 282, 4649, 314]
    body = {"prompt": prompt, "max_tokens": 0, "echo": True, "logprobs": 1, "temperature": 0}
    answer = await bf16.complete(body, versions[1], "echo")
    assert isinstance(answer, dict)
    echoed = answer["choices"][0]["logprobs"]["token_logprobs"]
    scores = await bf16.score(prompt, versions[1])
    assert echoed[0] is None
    assert echoed[1:] == pytest.approx(scores.logprobs, abs=0.1)
    assert len(scores.top1) == len(prompt) - 1


async def test_the_profile_of_a_version_is_applied(bf16: EnginePool) -> None:
    profile = ServingProfile(system_prompt="Answer in French. " * 10, sampling={"max_tokens": 3}, stop=("§",))
    pinned = Pinned(MODEL_ID, profile=profile)
    body = {key: value for key, value in CHAT.items() if key != "max_tokens"}
    answer = await bf16.chat(body, pinned, "profile")
    assert isinstance(answer, dict)
    assert answer["usage"]["completion_tokens"] == 3
    assert answer["usage"]["prompt_tokens"] > (await _chat(bf16))["usage"]["prompt_tokens"]


async def test_a_prompt_over_the_context_is_answered_with_both_numbers(bf16: EnginePool) -> None:
    with pytest.raises(BadInput) as caught:
        await _chat(bf16, messages=[{"role": "user", "content": "word " * 3000}])
    assert caught.value.code == "context_length_exceeded"
    assert caught.value.details["max_tokens"] == 1024
    assert caught.value.details["prompt_tokens"] > 1024
    request = GenerateRequest("long", text="word " * 3000, sampling=Sampling(max_tokens=1))
    with pytest.raises(BadInput, match="1024 tokens"):
        await anext(bf16.generate(request, BASE))


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"messages": "hello"}, "messages"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "auto"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
    ids=["temperature", "messages", "tools", "schema"],
)
async def test_bad_requests_name_the_field(bf16: EnginePool, changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadInput) as caught:
        await _chat(bf16, **changes)
    assert (caught.value.param or "").startswith(param)


async def test_cancelling_a_request_stops_its_generation_within_a_second(
    bf16: EnginePool, versions: tuple[Pinned, ...]
) -> None:
    endless = {**CHAT, "max_tokens": 900, "ignore_eos": True}
    task = asyncio.create_task(bf16.chat(endless, versions[0], "cancelled"))
    stream = await bf16.chat({**endless, "stream": True}, versions[0], "closed")
    assert isinstance(stream, AsyncGenerator)
    await anext(stream)
    started = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await stream.aclose()
    await bf16.unload(str(versions[0].digest))  # refused while a request runs
    assert time.monotonic() - started < 1.0
    await bf16.load(versions[0])
