"""Asking through the client, against the real server with a fake engine."""

from __future__ import annotations

import time

import pytest
from support.fake_pool import word_of
from support.fake_server import BASE, FakeServer
from tunedock import AsyncTuneDock, BadInput, NotFound, TuneDock, Unavailable


def spaceless(text: str) -> str:
    """The fake engine sets spaces between words differently over its two methods."""
    return text.replace(" ", "")


def idle(live: FakeServer) -> bool:
    """Whether nothing runs or is leased any more, within a second."""
    deadline = time.monotonic() + 1.0
    while live.server.leases.total() and time.monotonic() < deadline:
        time.sleep(0.01)
    return live.server.leases.total() == 0


def test_a_question_to_the_base_model_needs_no_model_name(client: TuneDock) -> None:
    reply = client.chat("hello")
    assert reply.model == BASE
    assert reply.text == str(reply)
    assert reply.usage.completion_tokens == 5


def test_an_answer_names_the_exact_version(client: TuneDock, live: FakeServer) -> None:
    version = live.ready("asked", seed=11)
    reply = client.chat([{"role": "user", "content": "hi"}], model="asked", temperature=0)
    assert reply.model == "asked@1"
    assert word_of(version.digest) in reply.text


def test_a_stream_gives_the_same_text_in_pieces(client: TuneDock) -> None:
    pieces = list(client.stream("hello"))
    assert len(pieces) > 1
    assert spaceless("".join(map(str, pieces))) == spaceless(client.chat("hello").text)
    assert pieces[-1].model == BASE


def test_leaving_a_stream_early_frees_its_lease(client: TuneDock, live: FakeServer) -> None:
    live.pool.behaviour.token_s = 0.05
    try:
        for _ in client.stream("hello"):
            break
        assert idle(live)
    finally:
        live.pool.behaviour.token_s = 0.0


def test_a_prompt_may_be_text_or_token_ids(client: TuneDock, live: FakeServer) -> None:
    assert client.complete("once", max_tokens=3).model == BASE
    assert client.complete([1, 2, 3], max_tokens=3).model == BASE
    over_rest = [body["prompt"] for body in live.pool.bodies[-2:] if "prompt" in body]
    over_grpc = [asked.text or asked.token_ids for asked in live.pool.requests[-2:]]
    assert ["once", [1, 2, 3]] in (over_rest, over_grpc)


def test_an_unknown_model_is_not_found(client: TuneDock) -> None:
    with pytest.raises(NotFound) as caught:
        client.chat("hello", model="nobody@3")
    assert caught.value.code == "model_not_found"


def test_a_bad_field_is_named(client: TuneDock) -> None:
    with pytest.raises(BadInput) as caught:
        client.chat("hello", n=99)
    assert caught.value.param == "n"


def test_an_error_in_the_middle_of_a_stream_arrives_in_the_tree(client: TuneDock, live: FakeServer) -> None:
    live.pool.behaviour.stream_error_after = 2
    try:
        with pytest.raises(Unavailable):
            list(client.stream("hello"))
    finally:
        live.pool.behaviour.stream_error_after = None


async def test_the_asynchronous_client_does_the_same(live: FakeServer, transport: str) -> None:
    async with AsyncTuneDock(live.url, grpc=live.grpc if transport == "grpc" else None) as client:
        reply = await client.chat("hello", model=BASE)
        pieces = [piece async for piece in client.stream("hello", model=BASE)]
    assert spaceless(reply.text) == spaceless("".join(piece.text for piece in pieces))


async def test_the_blocking_client_works_inside_a_running_loop(live: FakeServer) -> None:
    with TuneDock(live.url) as client:
        assert client.base_model() == BASE


def test_the_openai_client_is_configured_for_this_service(client: TuneDock) -> None:
    with client.openai() as openai:
        answer = openai.chat.completions.create(model=BASE, messages=[{"role": "user", "content": "hi"}])
    assert answer.model == BASE


def test_capacity_tells_the_slots_and_the_base_model(client: TuneDock) -> None:
    told = client.capacity()
    assert (told["slots"], told["base_model"], told["lora_backend"]) == (2, BASE, "tunedock-cpu")
