"""Streams that never pause: callers that ask one question after the other while versions change under them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from openai import OpenAI, OpenAIError

from .domain import Question
from .measure import MAX_TOKENS


@dataclass(frozen=True)
class Streamed:
    """One streamed answer. `models` are all names that its chunks carried: one, when nothing is mixed up.

    Times are seconds of the monotonic clock; `error` is None when the stream came to its end.
    """

    started: float
    ended: float
    models: frozenset[str]
    text: str
    error: str | None = None

    @property
    def model(self) -> str:
        return "+".join(sorted(self.models))


@dataclass
class Traffic:
    """`num_streams` threads that stream answers from `model` until the block ends; `answers` is what they got."""

    client: OpenAI
    model: str
    questions: Sequence[Question]
    num_streams: int = 8
    answers: list[Streamed] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Traffic:
        for number in range(self.num_streams):
            thread = threading.Thread(target=self._ask_on, args=(number,), daemon=True)
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _ask_on(self, number: int) -> None:
        """Each thread begins at another question."""
        for index in itertools.count(number * len(self.questions) // self.num_streams):
            if self._stop.is_set():
                return
            self.answers.append(stream(self.client, self.model, self.questions[index % len(self.questions)]))


def stream(client: OpenAI, model: str, question: Question) -> Streamed:
    """One streamed answer; an error becomes part of it, so that it can be counted."""
    started = time.monotonic()
    models: set[str] = set()
    pieces: list[str] = []
    error = None
    try:
        with client.chat.completions.create(
            model=model, messages=question.messages, temperature=0, max_tokens=MAX_TOKENS, stream=True
        ) as chunks:
            for chunk in chunks:
                models.add(chunk.model)
                pieces += [choice.delta.content or "" for choice in chunk.choices]
    except OpenAIError as failure:
        error = str(failure)
    return Streamed(started, time.monotonic(), frozenset(models), "".join(pieces).strip(), error)
