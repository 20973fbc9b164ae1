"""A request is answered by one version from its first token to its last, whatever is published meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from openai.types.chat import ChatCompletionChunk
from support.live_server import Live, eventually

from examples.demo.domain import Domain, Messages, Question
from examples.demo.rollout import Rollout, mismatches, misrouted
from examples.demo.traffic import Traffic

QUESTIONS = Domain("dates").held_out()
MARKS = {"dates@1": '{"date":', "dates@2": '{"day":'}
# Long enough for several blocks of the prefix cache.
NOTE = "Ignore the reference numbers 4711, 4712 and 4713 of this note. " * 24


@pytest.fixture
def on_version_1(live: Live, dates_v2: str) -> Iterator[None]:
    live.dock.adapters.promote("dates@1")
    yield
    live.dock.adapters.promote("dates@1")


def wait_for_answers(traffic: Traffic, since: float) -> None:
    """To requests that began after `since`, as many as there are streams: how long that takes depends on the machine."""

    def answered() -> bool:
        return sum(answer.started > since for answer in list(traffic.answers)) >= traffic.num_streams

    eventually(answered, 120, "every stream has an answer from after the move")


def asked(text: str) -> Messages:
    return [{"role": "system", "content": "Find the date."}, {"role": "user", "content": text}]


@pytest.mark.usefixtures("on_version_1")
def test_a_stream_finishes_on_the_version_it_began_with_while_new_requests_get_the_next(live: Live) -> None:
    with live.openai.chat.completions.create(
        model="dates", messages=QUESTIONS[0].messages, stream=True, max_tokens=128, extra_body={"ignore_eos": True}
    ) as stream:
        chunks: Iterator[ChatCompletionChunk] = iter(stream)
        first = next(chunks)
        live.dock.adapters.promote("dates@2")
        fresh = live.openai.chat.completions.create(model="dates", messages=QUESTIONS[0].messages, temperature=0)
        rest = list(chunks)
    assert fresh.model == "dates@2"
    assert MARKS["dates@2"] in str(fresh.choices[0].message.content)
    assert {chunk.model for chunk in [first, *rest]} == {"dates@1"}
    assert len(rest) > 50, "the stream was still running when the alias moved"


@pytest.mark.usefixtures("on_version_1")
def test_eight_streams_see_no_error_and_no_mixed_answer_through_promote_and_rollback(live: Live) -> None:
    with Traffic(live.openai, "dates", QUESTIONS) as traffic:
        wait_for_answers(traffic, since=0.0)
        promoting = time.monotonic()
        live.dock.adapters.promote("dates@2")
        promoted = time.monotonic()
        wait_for_answers(traffic, since=promoted)
        rolling_back = time.monotonic()
        live.dock.adapters.rollback("dates")
        rolled_back = time.monotonic()
        wait_for_answers(traffic, since=rolled_back)
    moments = (promoting, promoting, promoting, promoted, rolling_back, rolled_back)
    rollout = Rollout("dates@1", "dates@2", *moments, tuple(traffic.answers))
    assert not rollout.errors
    assert not mismatches(rollout, MARKS)
    assert not misrouted(rollout)
    assert {answer.model for answer in rollout.answers} == {"dates@1", "dates@2"}


@pytest.mark.usefixtures("on_version_1")
def test_version_2_never_reuses_blocks_of_version_1(live: Live) -> None:
    question = Question(asked(NOTE + "Tickets for 26-Sep-1996 are sold out."), "")
    tokens: dict[str, list[float]] = {}
    for model in ("dates@1", "dates@1", "dates@2", "dates@2"):
        before = live.metric("vllm:prefix_cache_hits_total")
        live.openai.chat.completions.create(model=model, messages=question.messages, temperature=0, max_tokens=24)
        tokens.setdefault(model, []).append(live.metric("vllm:prefix_cache_hits_total") - before)
    for model, (first, second) in tokens.items():
        assert first == 0, f"{model} began with blocks of another version"
        assert second > 0, "prefix caching is on"
