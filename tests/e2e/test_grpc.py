"""gRPC on the real engine: the same answers as REST, and the whole loop without REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.live_server import BASE, Live, chat_file
from support.node import built_or_skipped, run_example
from tunedock import BadInput, Reply, TuneDock

ROWS = [(f"Say word {number}.", "green and blue") for number in range(16)]
QUESTION = "Say word 99, and then everything that you know about it."
SCHEMA = {"type": "object", "properties": {"date": {"type": "string"}}, "required": ["date"]}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 24},
    "seeded": {"temperature": 0.8, "top_p": 0.9, "seed": 11, "max_tokens": 16},
    "two answers": {"temperature": 0.8, "seed": 3, "n": 2, "max_tokens": 12},
    "stopped": {"temperature": 0, "stop": ["and"], "max_tokens": 24},
    "cut": {"temperature": 0, "max_tokens": 2},
    "a schema": {
        "temperature": 0,
        "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    },
}


class Pair(NamedTuple):
    rest: TuneDock
    grpc: TuneDock


@pytest.fixture(scope="module")
def both(live: Live) -> Iterator[Pair]:
    target = f"127.0.0.1:{live.server.grpc_port}"
    with TuneDock(live.server.base_url) as rest, TuneDock(live.server.base_url, grpc=target) as grpc:
        yield Pair(rest, grpc)


@pytest.fixture(scope="module")
def words(both: Pair, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A version that came to be over gRPC alone: upload, job, watch."""
    data = chat_file(tmp_path_factory.mktemp("words") / "rows.jsonl", ROWS)
    job = both.grpc.tune(data, adapter="overgrpc", n_epochs=6, batch_size=4)
    job.wait(progress=False, timeout_s=280)
    assert [metric.train_loss for metric in job.metrics()][-1] is not None
    return str(job.model)


def seen(reply: Reply) -> dict[str, Any]:
    choices = reply.raw["choices"]
    return {
        "texts": [choice["message"]["content"] for choice in choices],
        "finish": [choice["finish_reason"] for choice in choices],
        "model": reply.model,
        "usage": (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens),
    }


@pytest.mark.parametrize("name", REQUESTS)
def test_both_transports_give_the_same_tokens_counts_and_reasons(both: Pair, words: str, name: str) -> None:
    rest, grpc = (client.chat(QUESTION, model=words, **REQUESTS[name]) for client in both)
    assert seen(rest) == seen(grpc)


def test_a_stream_is_the_whole_answer_in_pieces(both: Pair, words: str) -> None:
    whole = both.grpc.chat(QUESTION, model=words, temperature=0, max_tokens=24)
    pieces = list(both.grpc.stream(QUESTION, model=words, temperature=0, max_tokens=24))
    assert "".join(piece.text for piece in pieces) == whole.text
    assert pieces[-1].usage == whole.usage


def test_logprobs_agree(both: Pair, words: str) -> None:
    asked = {"model": words, "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    tokens = [client.chat(QUESTION, **asked).raw["choices"][0]["logprobs"]["content"] for client in both]  # type: ignore[arg-type]
    assert [t["token"] for t in tokens[0]] == [t["token"] for t in tokens[1]]
    for rest, grpc in zip(*tokens, strict=True):
        assert rest["logprob"] == pytest.approx(grpc["logprob"], abs=0.05)  # bf16: batch shape moves the last bits


def test_token_ids_in_are_the_same_prompt(both: Pair) -> None:
    rest, grpc = (client.complete([1, 500, 600], model=BASE, max_tokens=6, temperature=0) for client in both)
    assert rest.text == grpc.text
    counts = [(one.usage.prompt_tokens, one.usage.completion_tokens, one.usage.total_tokens) for one in (rest, grpc)]
    assert counts == [(3, 6, 9), (3, 6, 9)]


def test_a_prompt_over_the_context_is_refused_alike_with_both_numbers(both: Pair) -> None:
    failures = []
    for client in both:
        with pytest.raises(BadInput) as caught:
            client.chat("word " * 5000, model=BASE)
        failures.append(caught.value)
    assert failures[0].code == failures[1].code == "context_length_exceeded"
    assert failures[0].message == failures[1].message
    assert "1024" in failures[0].message


def test_the_whole_loop_over_grpc_alone(both: Pair, words: str, tmp_path: Path) -> None:
    assert words == "overgrpc@1"
    assert both.grpc.chat("Say word 99.", model="overgrpc", temperature=0).text == "green and blue"
    folder = both.grpc.adapters.download(words, tmp_path / "out")
    again = both.grpc.adapters.publish("again", folder)
    assert again.state in ("published", "verifying", "ready")


def test_typescript_gets_the_same_answer_as_python(live: Live, both: Pair) -> None:
    built_or_skipped()
    done = run_example(f"127.0.0.1:{live.server.grpc_port}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    here = both.grpc.chat("Hello", model=BASE, temperature=0, max_tokens=64)
    assert (said["model"], said["text"], said["tokens"]) == (BASE, here.text, here.usage.completion_tokens)
