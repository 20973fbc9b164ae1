"""Runs cases through the serving engine and sums up: pure but for the calls of the engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from ..pool import EnginePool, GenerateRequest, Pinned, Sampling
from .bootstrap import Interval, paired
from .cases import Case, Row
from .texts import MEASURES

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """One case under one version. `loss` is in nats a token; `margin` is how much likelier the preferred answer is."""

    weight: float
    loss: float
    accuracy: float
    margin: float | None
    texts: dict[str, float]


@dataclass(frozen=True)
class Bench:
    """`concurrency` bounds what runs at once, so that people's requests come first."""

    pool: EnginePool
    concurrency: int = 4

    async def outcomes(self, cases: Sequence[Case], pinned: Pinned, name: str) -> list[Outcome]:
        jobs = [self._outcome(case, pinned, f"{name}-{number}") for number, case in enumerate(cases)]
        return await _bounded(jobs, self.concurrency)

    async def losses(self, rows: Sequence[Row], pinned: Pinned) -> list[float]:
        scored = await _bounded([self._score(row, pinned) for row in rows], self.concurrency)
        return [loss for loss, _ in scored]

    async def _outcome(self, case: Case, pinned: Pinned, request_id: str) -> Outcome:
        loss, accuracy = await self._score(case.row, pinned)
        margin = None
        if case.other is not None:
            other, _ = await self._score(case.other, pinned)
            margin = other * case.other.weight - loss * case.row.weight
        texts = {}
        if case.reference is not None:
            answer = await self._answer(case, pinned, request_id)
            texts = {measure: function(answer, case.reference) for measure, function in MEASURES.items()}
        return Outcome(case.row.weight, loss, accuracy, margin, texts)

    async def _score(self, row: Row, pinned: Pinned) -> tuple[float, float]:
        """(loss, token accuracy) over the weighted positions."""
        scores = await self.pool.score(row.token_ids, pinned)
        weights = row.weights[1:]
        loss = -sum(w * logprob for w, logprob in zip(weights, scores.logprobs, strict=True))
        hits = sum(
            w for w, top, token in zip(weights, scores.top1, row.token_ids[1:], strict=True) if w and top == token
        )
        return loss / row.weight, hits / row.weight

    async def _answer(self, case: Case, pinned: Pinned, request_id: str) -> str:
        sampling = Sampling(max_tokens=case.max_tokens, temperature=0.0)
        request = GenerateRequest(
            request_id, messages=case.messages, text=case.prompt, tools=case.tools, sampling=sampling
        )
        async with aclosing(self.pool.generate(request, pinned)) as deltas:
            return "".join([delta.text async for delta in deltas])


def summary(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Means over the examples; loss and token accuracy weigh examples by their tokens."""
    total = sum(one.weight for one in outcomes)
    loss = sum(one.loss * one.weight for one in outcomes) / total
    found = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": sum(one.accuracy * one.weight for one in outcomes) / total,
    }
    margins = [one.margin for one in outcomes if one.margin is not None]
    if margins:
        found["preference_accuracy"] = sum(margin > 0 for margin in margins) / len(margins)
        found["preference_margin"] = sum(margins) / len(margins)
    texts = [one.texts for one in outcomes if one.texts]
    for measure in MEASURES if texts else ():
        found[measure] = sum(one[measure] for one in texts) / len(texts)
    return {name: round(value, 6) for name, value in found.items()}


def comparison(ours: Sequence[Outcome], theirs: Sequence[Outcome]) -> dict[str, dict[str, float]]:
    """Ours minus theirs, pair by pair, with 95 % intervals."""
    weights = [one.weight for one in ours]
    found = {"loss": paired([one.loss for one in ours], [one.loss for one in theirs], weights)}
    both = [(our.texts, their.texts) for our, their in zip(ours, theirs, strict=True) if our.texts]
    for measure in MEASURES if both else ():
        found[measure] = paired([our[measure] for our, _ in both], [their[measure] for _, their in both])
    return {name: _rounded(interval) for name, interval in found.items()}


def _rounded(interval: Interval) -> dict[str, float]:
    return {"mean": round(interval.mean, 6), "low": round(interval.low, 6), "high": round(interval.high, 6)}


async def _bounded(work: Sequence[Awaitable[T]], limit: int) -> list[T]:
    turns = asyncio.Semaphore(limit)

    async def one(item: Awaitable[T]) -> T:
        async with turns:
            return await item

    return list(await asyncio.gather(*map(one, work)))
