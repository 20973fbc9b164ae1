"""The same requests over REST and gRPC: same texts, counts, finish reasons, and the same errors down to code and field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from pydantic import BaseModel
from support.fake_server import BASE, FakeServer
from tunedock import Reply, TuneDock, TuneDockError
from tunedock.grpc_codec import ALL_CHAT, ALL_COMPLETION
from tunedock_server.engine import fields

Ask = Callable[[TuneDock], Reply]
FUNCTION = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHOSEN = {"type": "function", "function": {"name": "f"}}
CHATS: dict[str, dict[str, Any]] = {
    "plain": {},
    "greedy": {"temperature": 0},
    "every sampling field": {"temperature": 0.5, "top_p": 0.9, "top_k": 3, "min_p": 0.1, "seed": 1, "n": 2},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": -0.5, "repetition_penalty": 1.1},
    "stops": {"stop": ["a", "b"], "max_tokens": 7},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "a schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    },
    "tools": {"tools": [FUNCTION]},
}
# Every further field that both transports carry; what the engine makes of them is tried on the real one.
CARRIED: dict[str, dict[str, Any]] = {
    "min_tokens": {"min_tokens": 2},
    "logit_bias": {"logit_bias": {"7": -50.0, "8": 1.5}},
    "allowed tokens": {"allowed_token_ids": [5, 6, 7]},
    "bad words": {"bad_words": ["no"]},
    "stop tokens": {"stop_token_ids": [5], "ignore_eos": True, "include_stop_str_in_output": True},
    "special tokens": {"skip_special_tokens": False},
    "json object": {"response_format": {"type": "json_object"}},
    "schema": {"structured_outputs": {"json": {"type": "object"}}},
    "regex": {"structured_outputs": {"regex": "a+"}},
    "choice": {"structured_outputs": {"choice": ["yes", "no"]}},
    "grammar": {"structured_outputs": {"grammar": 'root ::= "a"'}},
    "user": {"user": "ada"},
    "template": {"chat_template_kwargs": {"enable_thinking": False, "depth": 3}},
    "reasoning": {"reasoning_effort": "low"},
    "continued": {"add_generation_prompt": False, "continue_final_message": True},
    "a chosen tool": {"tools": [FUNCTION], "tool_choice": CHOSEN, "parallel_tool_calls": False},
}
BROKEN: dict[str, Ask] = {
    "unknown model": lambda c: c.chat("hi", model="nobody"),
    "unknown version": lambda c: c.chat("hi", model="parity@99"),
    "unknown alias": lambda c: c.chat("hi", model="parity@canary"),
    "no reference": lambda c: c.chat("hi", model="../x"),
    "too many answers": lambda c: c.chat("hi", model=BASE, n=99),
    "too many logprobs": lambda c: c.chat("hi", model=BASE, logprobs=True, top_logprobs=99),
    "too many stops": lambda c: c.chat("hi", model=BASE, stop=["x"] * 99),
    "a stop that is too long": lambda c: c.chat("hi", model=BASE, stop=["x" * 5000]),
    "max_tokens above the cap": lambda c: c.chat("hi", model=BASE, max_tokens=10**7),
    "a huge schema": lambda c: c.complete("hi", model=BASE, structured_outputs={"json": {"x": "y" * 70_000}}),
}


class Pair(NamedTuple):
    rest: TuneDock
    grpc: TuneDock


@pytest.fixture(scope="module")
def both(live: FakeServer) -> Iterator[Pair]:
    live.ready("parity", seed=5)
    with TuneDock(live.url, max_retries=0) as rest, TuneDock(live.url, grpc=live.grpc, max_retries=0) as grpc:
        yield Pair(rest, grpc)


def seen(reply: Reply) -> dict[str, Any]:
    """What must not depend on the transport. The fake engine puts spaces differently."""
    return {
        "texts": [c.get("text", c.get("message", {}).get("content")).replace(" ", "") for c in reply.raw["choices"]],
        "finish": [c["finish_reason"] for c in reply.raw["choices"]],
        "model": reply.model,
        "prompt_tokens": reply.usage.prompt_tokens,
    }


@pytest.mark.parametrize("model", [BASE, "parity", "parity@1"])
@pytest.mark.parametrize("options", CHATS.values(), ids=CHATS.keys())
def test_chats_agree(both: Pair, model: str, options: dict[str, Any]) -> None:
    rest, grpc = (client.chat("hello", model=model, **options) for client in both)
    assert seen(rest) == seen(grpc)


@pytest.mark.parametrize("options", CARRIED.values(), ids=CARRIED.keys())
def test_the_engine_gets_the_same_request(both: Pair, live: FakeServer, options: dict[str, Any]) -> None:
    both.rest.chat("hello", model=BASE, **options)
    over_rest = live.pool.bodies[-1]
    both.grpc.chat("hello", model=BASE, **options)
    over_grpc = live.pool.bodies[-1] if "tools" in options else live.pool.requests[-1].body()
    for name, value in options.items():
        assert over_rest[name] == value
        if name == "response_format":  # one of the structured outputs, in OpenAI's words
            assert over_grpc["structured_outputs"] == {value["type"]: True}
        else:
            assert over_grpc[name] == value


def test_what_rest_takes_and_grpc_carries_is_the_same_but_for_what_is_named_here() -> None:
    """A field that REST learns must be carried over gRPC too, or be put on this list on purpose."""
    only_rest = {"echo", "return_token_ids"}
    for accepted, carried in ((fields.CHAT, ALL_CHAT), (fields.COMPLETION, ALL_COMPLETION)):
        assert accepted - carried - only_rest == set()


@pytest.mark.parametrize("prompt", ["hello", [1, 2, 3]], ids=["text", "token ids"])
def test_completions_agree(both: Pair, prompt: str | list[int]) -> None:
    rest, grpc = (client.complete(prompt, model=BASE, max_tokens=5) for client in both)
    assert seen(rest) == seen(grpc)


@pytest.mark.parametrize("ask", BROKEN.values(), ids=BROKEN.keys())
def test_errors_agree_in_class_code_text_and_field(both: Pair, ask: Ask) -> None:
    failures = []
    for client in both:
        with pytest.raises(TuneDockError) as caught:
            ask(client)
        failures.append(caught.value)
    rest, grpc = failures
    assert type(rest) is type(grpc)
    assert (rest.code, rest.message, rest.param) == (grpc.code, grpc.message, grpc.param)


def test_retry_hints_agree(both: Pair, live: FakeServer) -> None:
    live.server.inference.draining = True
    try:
        failures = []
        for client in both:
            with pytest.raises(TuneDockError) as caught:
                client.chat("hi", model=BASE)
            failures.append((caught.value.code, caught.value.retry_after_s))
        assert failures[0] == failures[1] == ("shutting_down", 2.0)
    finally:
        live.server.inference.draining = False


def test_conflicts_carry_the_same_state(both: Pair) -> None:
    details = []
    for client in both:
        with pytest.raises(TuneDockError) as caught:
            client.adapters.promote("parity@1", expected_revision=99)
        details.append(caught.value.details)
    assert details[0] == details[1] != {}


def test_lists_and_objects_agree(both: Pair) -> None:
    rest, grpc = both
    assert shared(rest.adapters.get("parity")) == shared(grpc.adapters.get("parity"))
    assert shared(rest.adapters.version("parity@1")) == shared(grpc.adapters.version("parity@1"))
    assert [shared(entry) for entry in rest.adapters.history("parity")] == [
        shared(entry) for entry in grpc.adapters.history("parity")
    ]
    assert [shared(model) for model in rest.models()] == [shared(model) for model in grpc.models()]


def shared(value: BaseModel) -> dict[str, Any]:
    """The fields that the client names; REST may say more beside them."""
    shown: dict[str, Any] = json.loads(value.model_dump_json(include=set(type(value).model_fields)))
    return {key: _declared(part) for key, part in shown.items()}


def _declared(value: Any) -> Any:
    """Without the keys that only REST's objects carry."""
    if isinstance(value, list):
        return [_declared(item) for item in value]
    if isinstance(value, dict):
        return {key: _declared(item) for key, item in value.items() if key not in ("object", "name", "updated_at")}
    return value
