"""Exact match on held-out questions, asked of the served model by several callers at once."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from openai import OpenAI

from .domain import Question

NUM_CALLERS = 16
MAX_TOKENS = 24


@dataclass(frozen=True)
class Score:
    """`wrong` holds (given, expected) of the answers that do not match to the letter."""

    model: str
    num_asked: int
    wrong: tuple[tuple[str, str], ...]

    @property
    def exact_match(self) -> float:
        return 1 - len(self.wrong) / self.num_asked


def exact_match(client: OpenAI, model: str, questions: Sequence[Question]) -> Score:
    """Asks every question once, greedily."""
    with ThreadPoolExecutor(NUM_CALLERS) as callers:
        given = list(callers.map(lambda question: ask(client, model, question), questions))
    pairs = zip(given, (question.answer for question in questions), strict=True)
    return Score(model, len(questions), tuple(pair for pair in pairs if pair[0] != pair[1]))


def ask(client: OpenAI, model: str, question: Question) -> str:
    answer = client.chat.completions.create(
        model=model, messages=question.messages, temperature=0, max_tokens=MAX_TOKENS
    )
    return (answer.choices[0].message.content or "").strip()
