"""gRPC on the real engine: the same answers as REST, and the whole loop without REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from support.live_server import BASE, Live, chat_file, eventually, upload
from support.node import built_or_skipped, run_example
from tunedock import BadInput, DeadlineExceeded, Reply, TuneDock

ROWS = [(f"Say word {number}.", "green and blue") for number in range(16)]
QUESTION = "Say word 99, and then everything that you know about it."
SCHEMA = {"type": "object", "properties": {"date": {"type": "string"}}, "required": ["date"]}
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0, "max_tokens": 24},
    "seeded": {"temperature": 0.8, "top_p": 0.9, "seed": 11, "max_tokens": 16},
    "two answers": {"temperature": 0.8, "seed": 3, "n": 2, "max_tokens": 12},
    "stopped": {"temperature": 0, "stop": ["and"], "max_tokens": 24},
    "cut": {"temperature": 0, "max_tokens": 2},
    "penalised": {"temperature": 0, "max_tokens": 16, "presence_penalty": 1.0, "repetition_penalty": 1.2},
    "biased": {"temperature": 0, "max_tokens": 8, "logit_bias": {"260": -100.0}, "bad_words": ["and"]},
    "only these tokens": {"temperature": 0, "max_tokens": 6, "allowed_token_ids": [260, 261, 262, 28]},
    "long enough": {"temperature": 0, "min_tokens": 12, "max_tokens": 14},
    "special tokens": {"temperature": 0, "max_tokens": 24, "skip_special_tokens": False},
    "one of two": {"temperature": 0, "max_tokens": 8, "structured_outputs": {"choice": ["blue", "green"]}},
    "by a pattern": {"temperature": 0, "max_tokens": 8, "structured_outputs": {"regex": "[a-c]{3}"}},
    "any object": {"temperature": 0, "max_tokens": 12, "response_format": {"type": "json_object"}},
    "continued": {"temperature": 0, "max_tokens": 4, "add_generation_prompt": False},
    "a schema": {
        "temperature": 0,
        "max_tokens": 40,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}},
    },
}
CITY = {"type": "object", "properties": {"city": {"type": "string", "enum": ["Paris", "Rome"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}
FORCED = {"type": "function", "function": {"name": "weather"}}


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
    job = both.grpc.tune(data, adapter="overgrpc", n_epochs=2, batch_size=4)
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


def test_a_tool_call_of_the_engine_streams_in_the_same_pieces(both: Pair) -> None:
    told = [
        [
            call["function"]
            for piece in client.stream(
                QUESTION, model=BASE, tools=[WEATHER], tool_choice=FORCED, temperature=0, max_tokens=48
            )
            for choice in piece.raw["choices"]
            for call in choice["delta"].get("tool_calls") or ()
        ]
        for client in both
    ]
    rest, grpc = ("".join(piece.get("arguments") or "" for piece in pieces) for pieces in told)
    json.loads(rest)  # of no schema: vLLM holds only `strict` tools to theirs
    assert rest == grpc
    assert [[piece["name"] for piece in pieces if piece.get("name")] for pieces in told] == [["weather"]] * 2
    assert all(len(pieces) > 2 for pieces in told)


def test_many_streams_at_once_are_the_answers_of_each_alone(both: Pair, words: str) -> None:
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 12}

    def text(model: str) -> str:
        return "".join(piece.text for piece in both.grpc.stream(QUESTION, model=model, **options))

    with ThreadPoolExecutor(4) as threads:
        together = list(threads.map(text, (words, BASE, words, BASE)))
    alone = [both.grpc.chat(QUESTION, model=model, **options).text for model in (words, BASE)]
    assert together == alone * 2


@pytest.mark.parametrize("transport", ["rest", "grpc"])
def test_leaving_a_stream_frees_its_sequence_and_its_lease_within_a_second(
    live: Live, both: Pair, words: str, transport: str
) -> None:
    client: TuneDock = getattr(both, transport)
    stream = client.stream(QUESTION, model=words, temperature=0, max_tokens=900, ignore_eos=True)
    next(iter(stream))
    assert live.metric("tunedock_leases") == 1
    assert live.metric("vllm:num_requests_running") == 1
    stream.close()  # type: ignore[attr-defined]
    eventually(lambda: live.metric("tunedock_leases") == 0, 1.0, "the lease is given back")
    eventually(lambda: nothing_runs(live), 1.0, "the sequence is freed")


def nothing_runs(live: Live) -> bool:
    """The engine counts what runs with every step, so that it has to make one first."""
    live.dock.chat("hi", model=BASE, max_tokens=1)
    return live.metric("vllm:num_requests_running") == 0


def test_the_callers_deadline_frees_the_sequence(live: Live, words: str) -> None:
    target = f"127.0.0.1:{live.server.grpc_port}"
    with TuneDock(live.server.base_url, grpc=target, timeout_s=0.5, max_retries=0) as hasty:
        for asked in (hasty.chat, lambda *a, **k: list(hasty.stream(*a, **k))):
            with pytest.raises(DeadlineExceeded):
                asked(QUESTION, model=words, max_tokens=900, ignore_eos=True)
            eventually(lambda: nothing_runs(live), 1.0, "the sequence is freed")


def test_logprobs_agree(both: Pair, words: str) -> None:
    asked = {"model": words, "temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}
    tokens = [client.chat(QUESTION, **asked).raw["choices"][0]["logprobs"]["content"] for client in both]  # type: ignore[arg-type]
    assert [t["token"] for t in tokens[0]] == [t["token"] for t in tokens[1]]
    for one, other in zip(*tokens, strict=True):
        assert one["logprob"] == pytest.approx(other["logprob"], abs=0.05)  # bf16: batch shape moves the last bits


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


def test_the_unmodified_openai_client_gets_the_same_result_over_rest(
    live: Live, both: Pair, words: str, tmp_path: Path
) -> None:
    """The loop of `words` once more, by the other transport and somebody else's client: the same weights to the bit."""
    file = upload(live.openai, chat_file(tmp_path / "rows.jsonl", ROWS))
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}}
    seed = both.grpc.jobs.list(limit=1)[0].info.seed
    job = live.openai.fine_tuning.jobs.create(
        model=BASE, training_file=file, suffix="overrest", seed=seed, method=method  # type: ignore[arg-type]
    )  # fmt: skip
    eventually(lambda: live.openai.fine_tuning.jobs.retrieve(job.id).status == "succeeded", 280, "the job's end", 0.5)
    model = live.openai.fine_tuning.jobs.retrieve(job.id).fine_tuned_model
    assert model == "overrest@1"
    digests = {both.rest.adapters.version(ref).digest for ref in (model, words)}
    answers = {
        live.openai.chat.completions.create(model=model, messages=[{"role": "user", "content": QUESTION}], temperature=0)
        .choices[0].message.content,
        both.grpc.chat(QUESTION, model=words, temperature=0).text,
    }  # fmt: skip
    assert len(answers) == 1
    assert len(digests) == 1


def test_typescript_gets_the_same_answer_as_python(live: Live, both: Pair) -> None:
    built_or_skipped()
    done = run_example(f"127.0.0.1:{live.server.grpc_port}")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    here = both.grpc.chat("Hello", model=BASE, temperature=0, max_tokens=64)
    assert (said["model"], said["text"], said["tokens"]) == (BASE, here.text, here.usage.completion_tokens)


def test_health_tells_the_loss_of_the_engine_and_its_return(live: Live, words: str) -> None:
    states = health_pb2.HealthCheckResponse
    with grpc.insecure_channel(f"127.0.0.1:{live.server.grpc_port}") as channel:
        told = HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service="tunedock_api.v1.Inference"), timeout=180
        )
        assert next(told).status == states.SERVING
        for engine in live.processes("EngineCore"):
            engine.kill()
        assert next(told).status == states.NOT_SERVING
        assert next(told).status == states.SERVING
    assert live.dock.chat("Say word 99.", model=words, temperature=0).text == "green and blue"
