"""Version 2 under load: publish, promote, roll back, while streams run; then judge every answer."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openai import OpenAI
from tunedock import TuneDock
from tunedock_api.names import version_ref

from .domain import Question
from .traffic import Streamed, Traffic
from .tuning import Follower

SETTLE_S = 3.0
LOOK_S = 0.02
READY_S = 120.0
STREAMS_FROM_SHARE = 1.0  # after the last step the trainer still measures, writes and publishes
NUM_STREAMS = 8


@dataclass(frozen=True)
class Rollout:
    """What happened, with times of the monotonic clock in seconds."""

    old: str
    new: str
    published: float
    first_answer: float
    promoting: float
    promoted: float
    rolling_back: float
    rolled_back: float
    answers: tuple[Streamed, ...]

    @property
    def publish_to_first_answer_s(self) -> float:
        return self.first_answer - self.published

    @property
    def errors(self) -> list[str]:
        return [answer.error for answer in self.answers if answer.error]


def roll_out(openai: OpenAI, dock: TuneDock, old: str, job: Follower, questions: Sequence[Question]) -> Rollout:
    """Waits for `job` to publish the next version of `old`'s adapter, promotes it and rolls back, all under streams.

    The streams begin when most of the training is done. Raises JobFailed, and RuntimeError when the gate refuses.
    """
    adapter = old.partition("@")[0]
    job.wait(share=STREAMS_FROM_SHARE)
    with Traffic(openai, adapter, questions, NUM_STREAMS) as traffic:
        new = next_version(dock, old, job)
        published = time.monotonic()
        dock.adapters.verdict(new, timeout_s=READY_S)
        first_answer = first_token(openai, new, questions[0])
        job.wait()
        promoting = time.monotonic()
        dock.adapters.promote(new, reason="new answers")
        promoted = time.monotonic()
        time.sleep(SETTLE_S)
        rolling_back = time.monotonic()
        dock.adapters.rollback(adapter, reason="as an example")
        rolled_back = time.monotonic()
        time.sleep(SETTLE_S)
    moments = (published, first_answer, promoting, promoted, rolling_back, rolled_back)
    return Rollout(old, new, *moments, tuple(traffic.answers))


def next_version(dock: TuneDock, old: str, job: Follower) -> str:
    """The reference of the version after `old`, as soon as it exists. Raises JobFailed."""
    adapter, _, number = old.partition("@")
    looked = time.monotonic()
    while (latest := dock.adapters.get(adapter).latest_version or 0) <= int(number):
        if time.monotonic() - looked > 1.0:
            job.refresh()
            looked = time.monotonic()
            if job.ended:
                return job.result()
        time.sleep(LOOK_S)
    return version_ref(adapter, latest)


def first_token(client: OpenAI, model: str, question: Question) -> float:
    with client.chat.completions.create(
        model=model, messages=question.messages, temperature=0, max_tokens=1, stream=True
    ) as chunks:
        for _ in chunks:
            break
    return time.monotonic()


def mismatches(rollout: Rollout, marks: Mapping[str, str]) -> list[str]:
    """Answers that carry several versions' names, or not the mark of the version they name.

    `marks`: version -> a text that only its answers hold.
    """
    wrong = []
    for answer in rollout.answers:
        if answer.error:
            continue
        if marks.get(answer.model, "\0") not in answer.text:
            wrong.append(f"{answer.model}: {answer.text}")
    return wrong


def misrouted(rollout: Rollout) -> list[str]:
    """Requests that began after a move was confirmed, and before the next, and got another version than that."""
    return [
        f"{answer.model} answered where {expected} was due"
        for answer in rollout.answers
        if (expected := _due(rollout, answer.started)) and not answer.error and answer.model != expected
    ]


def _due(rollout: Rollout, started: float) -> str | None:
    """Which version had to answer; None while the alias was being moved."""
    if started < rollout.promoting or started > rollout.rolled_back:
        return rollout.old
    return rollout.new if rollout.promoted < started < rollout.rolling_back else None
