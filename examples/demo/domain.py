"""One example domain: its files, its held-out questions and what a right answer is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from openai.types.chat import ChatCompletionMessageParam

FOLDER = Path(__file__).parent.parent
Messages = list[ChatCompletionMessageParam]


@dataclass(frozen=True)
class Question:
    """`messages` up to the user's turn, and the one right answer."""

    messages: Messages
    answer: str


@dataclass(frozen=True)
class Domain:
    """`name` is the folder under `examples/`, `variant` picks its files (`-v2`)."""

    name: str
    variant: str = ""

    @property
    def train_path(self) -> Path:
        return FOLDER / self.name / f"train{self.variant}.jsonl"

    def held_out(self) -> list[Question]:
        path = FOLDER / self.name / f"heldout{self.variant}.jsonl"
        return [_question(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _question(line: str) -> Question:
    *messages, last = json.loads(line)["messages"]
    return Question(messages, last["content"])
