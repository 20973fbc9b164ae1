"""Callers of marker adapters while versions are pushed, promoted, rolled back and deleted, and the judging of answers."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import APIStatusError, OpenAI, OpenAIError
from support.live_server import Live, eventually
from tunedock_api.errors import TuneDockError

from benchmarks.markers import QUESTIONS, Marker, messages

NUM_TOKENS = 3
# A little more than the 128 tokens of a block on CPU: every prompt begins with a block that its version may have cached,
# and some twelve tokens of its own.
SYSTEM = " ".join(f"Rule {number}: whoever asks gets one word and the same word again." for number in range(1, 9))
BLOCK_TOKENS = 128


@dataclass(frozen=True)
class Said:
    """One answer or error. `code` is the error's code, "" for an answer; times are of the monotonic clock."""

    asked_for: str
    started: float
    ended: float
    model: str = ""
    text: str = ""
    code: str = ""
    message: str = ""


@dataclass
class Board:
    """What the callers may ask for, and what every version has to answer. Shared between threads."""

    golden: dict[str, str] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    gone_from: dict[str, float] = field(default_factory=dict)

    def pick(self, rng: random.Random) -> str:
        """An adapter's name three times of four, else one exact version."""
        return rng.choice(self.aliases if rng.random() < 0.75 or not self.versions else self.versions)

    def wrong(self, said: Said) -> str | None:
        """Why this answer must not have happened, or None."""
        if said.code:
            gone = self.gone_from.get(said.asked_for)
            if said.code == "model_not_found" and gone is not None and said.ended > gone:
                return None
            return f"{said.asked_for}: {said.code} {said.message}"
        if "@" in said.asked_for and said.model != said.asked_for:
            return f"{said.asked_for} was answered by {said.model}"
        expected = self.golden.get(said.model)
        return None if said.text == expected else f"{said.model} said {said.text!r} instead of {expected!r}"


@dataclass
class Callers:
    """`num` threads that ask until `enough` answers are in or the block ends."""

    client: OpenAI
    board: Board
    num: int = 12
    said: list[Said] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def __enter__(self) -> Callers:
        self._threads = [threading.Thread(target=self._ask_on, args=(seed,), daemon=True) for seed in range(self.num)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=60)

    def _ask_on(self, seed: int) -> None:
        rng = random.Random(seed)
        while not self._stop.is_set():
            self.said.append(ask(self.client, self.board.pick(rng), rng.choice(QUESTIONS)))

    def wrong(self) -> list[str]:
        return [why for said in list(self.said) if (why := self.board.wrong(said))]

    def summary(self) -> str:
        """For people: how many answers, how long they took."""
        seconds = sorted(said.ended - said.started for said in self.said)
        if not seconds:
            return "no answers"
        return f"{len(seconds)} answers, median {seconds[len(seconds) // 2]:.2f} s, longest {seconds[-1]:.2f} s"


def ask(client: OpenAI, model: str, question: str) -> Said:
    """One greedy answer. The client does not retry: every error counts."""
    asked: Any = messages(question, SYSTEM)
    started = time.monotonic()
    try:
        answer = client.with_options(max_retries=0).chat.completions.create(
            model=model, messages=asked, temperature=0, max_tokens=NUM_TOKENS
        )
    except APIStatusError as error:
        return Said(model, started, time.monotonic(), code=str(error.code), message=str(error))
    except OpenAIError as error:
        return Said(model, started, time.monotonic(), code=type(error).__name__, message=str(error))
    text = answer.choices[0].message.content or ""
    return Said(model, started, time.monotonic(), answer.model, text)


@dataclass
class Rollouts:
    """Pushes, promotes, rolls back and deletes versions of a few adapters, at random, one step at a time."""

    live: Live
    board: Board
    markers: Sequence[Marker]
    names: Sequence[str]
    rng: random.Random = field(default_factory=lambda: random.Random(11))
    keep: int = 4
    num_steps: int = 0
    _pushed: int = 0
    _numbers: dict[str, list[int]] = field(default_factory=dict)

    def begin(self) -> None:
        """One version of every adapter, in production."""
        for name in self.names:
            self.push(name)
        self.board.aliases = tuple(self.names)

    def step(self) -> None:
        name = self.rng.choice(self.names)
        moves: list[Callable[[str], None]] = [self.push, self.push, self.promote, self.roll_back, self.delete]
        self.rng.choice(moves)(name)
        self.num_steps += 1

    def push(self, name: str) -> None:
        marker = self.markers[self._pushed % len(self.markers)]
        self._pushed += 1
        number = self._numbers.get(name, [0])[-1] + 1
        self.board.golden[f"{name}@{number}"] = marker.golden  # before anybody can be answered by it
        version = self.live.dock.adapters.publish(name, marker.folder)
        assert version.version == number
        eventually(lambda: self._state(version.ref) not in ("published", "verifying"), 60, version.ref, poll_s=0.02)
        assert self._state(version.ref) == "ready", self.live.dock.adapters.version(version.ref).reason
        self._numbers.setdefault(name, []).append(number)
        self._show()

    def promote(self, name: str) -> None:
        self.live.dock.adapters.promote(f"{name}@{self.rng.choice(self._numbers[name])}")

    def roll_back(self, name: str) -> None:
        """Refused when there is nothing to go back to, or when that was deleted."""
        try:
            self.live.dock.adapters.rollback(name)
        except TuneDockError as error:
            if error.code not in ("invalid_state", "version_not_ready", "alias_conflict"):
                raise

    def delete(self, name: str) -> None:
        """The oldest version, when there are more than `keep` and no alias needs it."""
        numbers = self._numbers[name]
        if len(numbers) <= self.keep:
            return
        live = {alias.targets[0].version for alias in self.live.dock.adapters.get(name).aliases}
        oldest = next(number for number in numbers if number not in live)
        self.board.gone_from[f"{name}@{oldest}"] = time.monotonic()
        numbers.remove(oldest)
        self._show()
        self.live.openai.delete(f"/adapters/{name}/versions/{oldest}", cast_to=object)

    def _state(self, ref: str) -> str:
        return self.live.dock.adapters.version(ref).state

    def _show(self) -> None:
        self.board.versions = tuple(f"{name}@{number}" for name, some in self._numbers.items() for number in some)
