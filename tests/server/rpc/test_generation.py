"""`Inference`: versions, streams, limits, and that nothing is left behind when a caller goes away."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.struct_pb2 import Struct
from support.fake_pool import word_of
from support.fake_server import BASE, FakeServer
from tunedock_api.v1 import inference_pb2 as pb
from tunedock_api.v1.inference_pb2_grpc import InferenceStub

HELLO = [pb.Message(role="user", content="hello")]


@pytest.fixture
def stub(channel: grpc.Channel) -> InferenceStub:
    return InferenceStub(channel)


@pytest.fixture
def slow(live: FakeServer) -> Iterator[None]:
    """Every token takes a while."""
    live.pool.behaviour.token_s = 0.2
    yield
    live.pool.behaviour.token_s = 0.0


def idle_within(live: FakeServer, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not live.server.leases.total() and not sum(live.pool.busy.values()):
            return True
        time.sleep(0.01)
    return False


def test_an_answer_names_its_version_in_body_and_trailers(stub: InferenceStub, live: FakeServer) -> None:
    version = live.ready("named", seed=1)
    answer, call = stub.Chat.with_call(pb.ChatRequest(model="named", messages=HELLO))
    assert answer.model == "named@1"
    assert word_of(version.digest) in answer.choices[0].text
    trailers = dict(call.trailing_metadata())
    assert trailers["x-tunedock-digest"] == version.digest
    assert str(trailers["x-request-id"]).startswith("req_")


def test_a_stream_says_who_it_is_first_and_counts_last(stub: InferenceStub) -> None:
    parts = list(stub.StreamChat(pb.ChatRequest(model=BASE, messages=HELLO)))
    assert (parts[0].model, parts[1].model) == (BASE, "")
    assert parts[-1].usage.completion_tokens == 5
    assert parts[-2].choices[0].finish_reason == "length"
    whole = stub.Chat(pb.ChatRequest(model=BASE, messages=HELLO))
    assert "".join(part.choices[0].text for part in parts if part.choices) == whole.choices[0].text


def test_several_answers_come_apart_by_index(stub: InferenceStub) -> None:
    request = pb.ChatRequest(model=BASE, messages=HELLO, sampling=pb.Sampling(n=3))
    assert [choice.index for choice in stub.Chat(request).choices] == [0, 1, 2]
    assert {c.index for part in stub.StreamChat(request) for c in part.choices} == {0, 1, 2}
    assert stub.Chat(request).usage.completion_tokens == 15


def test_a_prompt_may_be_token_ids_and_defaults_to_16_tokens(stub: InferenceStub, live: FakeServer) -> None:
    stub.Complete(pb.CompleteRequest(model=BASE, token_ids=pb.TokenIds(ids=[5, 6])))
    asked = live.pool.requests[-1]
    assert (list(asked.token_ids or ()), asked.sampling.max_tokens) == ([5, 6], 16)


def test_sampling_reaches_the_engine_as_asked(stub: InferenceStub, live: FakeServer) -> None:
    sampling = pb.Sampling(temperature=0, top_k=5, seed=7, stop=["."], logprobs=2, max_tokens=9, json_schema="{}")
    stub.Chat(pb.ChatRequest(model=BASE, messages=HELLO, sampling=sampling))
    got = live.pool.requests[-1].sampling
    assert (got.temperature, got.top_k, got.seed, got.stop) == (0.0, 5, 7, (".",))
    assert (got.logprobs, got.max_tokens, got.structured_outputs, got.top_p) == (2, 9, {"json": {}}, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_does_not_have_are_refused(stub: InferenceStub, value: float) -> None:
    kwargs = Struct()
    kwargs["depth"] = value
    for request in (
        pb.ChatRequest(model=BASE, messages=HELLO, sampling=pb.Sampling(temperature=value)),
        pb.ChatRequest(model=BASE, messages=HELLO, sampling=pb.Sampling(logit_bias={7: value})),
        pb.ChatRequest(model=BASE, messages=HELLO, chat_template_kwargs=kwargs),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Chat(request)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_puts_a_steps_answers_into_one_chunk(stub: InferenceStub) -> None:
    request = pb.ChatRequest(model=BASE, messages=HELLO, sampling=pb.Sampling(n=3))
    *steps, usage = stub.StreamChat(request)
    assert [[choice.index for choice in step.choices] for step in steps] == [[0, 1, 2]] * 5
    assert usage.usage.completion_tokens == 15


def test_tools_go_through_openais_shapes(stub: InferenceStub, live: FakeServer) -> None:
    assert stub.Chat(with_tool()).choices[0].text
    assert live.pool.bodies[-1]["tools"][0]["function"]["name"] == "weather"


def with_tool(**fields: Any) -> pb.ChatRequest:
    tool = pb.Tool(name="weather", parameters=json.dumps({"type": "object"}))
    return pb.ChatRequest(model=BASE, messages=HELLO, tools=[tool], **fields)


def test_text_beside_tools_streams_as_it_comes(stub: InferenceStub) -> None:
    parts = list(stub.StreamChat(with_tool()))
    assert [part.choices[0].text for part in parts if part.choices] == ["base"] * 5
    assert (parts[0].model, parts[1].model) == (BASE, "")
    assert parts[-1].usage.total_tokens == 8


def test_a_tool_call_streams_in_pieces(stub: InferenceStub, live: FakeServer) -> None:
    live.pool.behaviour.calls_tools = True
    try:
        parts = [part.choices[0] for part in stub.StreamChat(with_tool()) if part.choices]
    finally:
        live.pool.behaviour.calls_tools = False
    calls = [call for part in parts for call in part.tool_calls]
    assert [(call.index, call.id, call.name) for call in calls] == [(0, "call_1", "weather"), *[(0, "", "")] * 4]
    assert "".join(call.arguments for call in calls) == "{   "
    assert [list(part.token_ids) for part in parts] == [[0], [1], [2], [3], [4]]


def test_which_tool_to_call_reaches_the_engine_in_openais_words(stub: InferenceStub, live: FakeServer) -> None:
    for choice, shown in (
        ("required", "required"),
        ("weather", {"type": "function", "function": {"name": "weather"}}),
    ):
        stub.Chat(with_tool(tool_choice=choice, parallel_tool_calls=False))
        assert live.pool.bodies[-1]["tool_choice"] == shown
        assert live.pool.bodies[-1]["parallel_tool_calls"] is False


def test_an_error_in_the_middle_of_a_stream_with_tools_keeps_its_code(stub: InferenceStub, live: FakeServer) -> None:
    live.pool.behaviour.stream_error_after = 2
    try:
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.StreamChat(with_tool()))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    finally:
        live.pool.behaviour.stream_error_after = None


@pytest.mark.usefixtures("slow")
def test_a_cancelled_stream_frees_its_sequence_within_a_second(stub: InferenceStub, live: FakeServer) -> None:
    call = stub.StreamChat(pb.ChatRequest(model=BASE, messages=HELLO))
    next(call)
    assert live.server.leases.total() == 1
    call.cancel()
    assert idle_within(live, 1.0)


@pytest.mark.usefixtures("slow")
def test_a_cancelled_unary_call_frees_its_sequence_within_a_second(stub: InferenceStub, live: FakeServer) -> None:
    call = stub.Chat.future(pb.ChatRequest(model=BASE, messages=HELLO))
    time.sleep(0.3)
    assert live.server.leases.total() == 1
    call.cancel()
    assert idle_within(live, 1.0)


@pytest.mark.usefixtures("slow")
def test_a_lost_connection_frees_its_sequence_within_a_second(live: FakeServer) -> None:
    channel = grpc.insecure_channel(live.grpc)
    next(InferenceStub(channel).StreamChat(pb.ChatRequest(model=BASE, messages=HELLO)))
    channel.close()
    assert idle_within(live, 1.0)


@pytest.mark.usefixtures("slow")
def test_the_callers_deadline_ends_the_generation(stub: InferenceStub, live: FakeServer) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.StreamChat(pb.ChatRequest(model=BASE, messages=HELLO), timeout=0.3))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert idle_within(live, 1.0)


@pytest.mark.usefixtures("slow")
def test_a_draining_server_finishes_streams_and_refuses_new_calls(stub: InferenceStub, live: FakeServer) -> None:
    running = stub.StreamChat(pb.ChatRequest(model=BASE, messages=HELLO))
    next(running)
    live.server.inference.draining = True
    try:
        with pytest.raises(grpc.RpcError) as caught:
            stub.Chat(pb.ChatRequest(model=BASE, messages=HELLO))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert list(running)[-1].usage.completion_tokens == 5
    finally:
        live.server.inference.draining = False


def test_models_and_capacity_are_the_same_as_over_rest(stub: InferenceStub, live: FakeServer) -> None:
    live.ready("listed", seed=2)
    models = {model.id: model for model in stub.ListModels(pb.ListModelsRequest()).data}
    assert not models[BASE].HasField("parent")
    assert models["listed@1"].parent == BASE
    assert stub.GetCapacity(pb.GetCapacityRequest()).slots == 2
