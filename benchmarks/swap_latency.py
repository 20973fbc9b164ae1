"""How long one push takes, on a server without other traffic: publish, promote, roll back, each to its first token."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from .figures import Figure, at_most
from .load import Answer
from .markers import QUESTIONS, Marker, messages
from .servers import Ours

NAME = "latency"
PUBLISH_S, FLIP_MS, ROLLBACK_MS = 1.0, 50.0, 100.0


async def measure(server: Ours, markers: Sequence[Marker]) -> list[Figure]:
    """One sample of each figure per marker after the first. Raises AssertionError for a wrong answer."""
    published: list[float] = []
    flipped: list[float] = []
    rolled_back: list[float] = []
    current = await server.publish(NAME, markers[0].folder)
    for before, marker in itertools.pairwise(markers):
        started = time.perf_counter()
        fresh = await server.publish(NAME, marker.folder)
        published.append((await ask(server, fresh, fresh, marker)).times[0] - started)
        started = time.perf_counter()
        await server.promote(fresh)
        flipped.append(1000 * (time.perf_counter() - started))
        await ask(server, NAME, fresh, marker)
        started = time.perf_counter()
        await server.rollback(NAME)
        rolled_back.append(1000 * ((await ask(server, NAME, current, before)).times[0] - started))
        await server.promote(fresh)
        await server.retire(current)
        current = fresh
    return [
        at_most("publish -> first token of the new version, gate included", published, "s", PUBLISH_S),
        at_most("alias flip: PUT to its answer", flipped, "ms", FLIP_MS),
        at_most("rollback -> first token of the old version", rolled_back, "ms", ROLLBACK_MS),
    ]


async def ask(server: Ours, model: str, expected: str, marker: Marker) -> Answer:
    """Raises AssertionError unless `expected` answers with its marker's word."""
    answer = await server.client.stream(model, messages(QUESTIONS[0]), 3)
    assert answer.error is None, answer.error
    assert answer.model == expected, f"{answer.model} answered for {expected}"
    assert marker.golden.startswith(answer.text), f"{answer.text!r} is not of {expected}"
    return answer
