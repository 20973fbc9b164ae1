"""More adapters than slots, and many more registered than ever used."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Sequence

from tunedock_api.manifest import Lineage
from tunedock_api.names import DEFAULT_PROJECT, parse_ref
from tunedock_registry.adapters.intake import ManifestParts, prepare
from tunedock_registry.layout import Home
from tunedock_registry.models import DEFAULT_MODEL
from tunedock_registry.models.facts import base_facts
from tunedock_registry.records import Target
from tunedock_registry.registry import Registry

from .figures import Figure, at_most, percentile
from .load import Answer, Streams
from .markers import QUESTIONS, Marker, messages
from .servers import MAX_RANK, SLOTS, Ours, model_path

NUM_STREAMS, MAX_TOKENS = 8, 16
MAX_TTFT_RATIO, RESOLVE_US, PAGE_MS, MAX_STEP_RATIO = 2.0, 50.0, 50.0, 1.05
NUM_CALLS = 40
NUM_TURNS = 6


async def publish_line(server: Ours, markers: Sequence[Marker], prefix: str) -> dict[str, Marker]:
    """One adapter per marker, each at its version 1. Returns name -> marker."""
    named = {f"{prefix}{index:03d}": marker for index, marker in enumerate(markers)}
    for name, marker in named.items():
        await server.publish(name, marker.folder)
    return named


async def zipf(server: Ours, named: dict[str, Marker], seconds: float) -> list[Figure]:
    """p99 TTFT with 2x and 10x as many adapters as slots, over p99 TTFT of the same load when all of them have a slot.

    As many streams as slots can always all run; with twice as many, some ask for a fifth adapter while four answer, and
    wait for the end of an answer whatever the policy. The goal is set for what can be served without that wait.
    """
    figures = []
    for streams, limit in ((SLOTS, MAX_TTFT_RATIO), (2 * SLOTS, None)):
        hot = await _traffic(server, named, list(named)[:SLOTS], streams, seconds)
        for times in (2, 10):
            answers = await _traffic(server, named, list(named)[: times * SLOTS], streams, seconds)
            figures.append(_crowded(hot, answers, streams, times * SLOTS, limit))
    return figures


def _crowded(hot: Sequence[Answer], answers: Sequence[Answer], streams: int, count: int, limit: float | None) -> Figure:
    few, many = _ttft_ms(hot), _ttft_ms(answers)
    ratio = percentile(many, 0.99) / percentile(few, 0.99)
    return Figure(
        f"p99 TTFT, {streams} streams over {count} adapters on {SLOTS} slots (Zipf) / all hot",
        ratio,
        "x",
        "" if limit is None else f"<= {limit} x",
        None if limit is None else ratio <= limit,
        num_samples=len(answers),
        note=f"p99 {percentile(many, 0.99):.0f} ms, hot {percentile(few, 0.99):.0f} ms; "
        f"p50 {percentile(many, 0.5):.0f} ms, hot {percentile(few, 0.5):.0f} ms",
    )


async def _traffic(
    server: Ours, named: dict[str, Marker], names: Sequence[str], num_streams: int, seconds: float
) -> list[Answer]:
    """Raises AssertionError for an error or a wrong answer."""
    rng = random.Random(len(names))
    weights = [1 / rank for rank in range(1, len(names) + 1)]

    def pick(number: int) -> tuple[str, Sequence[dict[str, str]]]:
        return rng.choices(names, weights)[0], messages(QUESTIONS[number % len(QUESTIONS)])

    for duration in (2.0, seconds):  # the first warms
        streams = Streams(server.client, pick, num_streams, MAX_TOKENS, body={"ignore_eos": True})
        answers = await streams.run_for(duration)
    for answer in answers:
        assert answer.error is None, answer.error
        assert named[answer.asked_for].golden.startswith(answer.text), f"{answer.asked_for} said {answer.text!r}"
    return answers


def _ttft_ms(answers: Sequence[Answer]) -> list[float]:
    return [1000 * answer.first_token_s for answer in answers]


def register(home: Home, markers: Sequence[Marker]) -> None:
    """Puts ready versions into the registry without a server: `many0000@1`, `many0001@1`, ..., all in production."""
    facts = base_facts(model_path(), DEFAULT_MODEL, MAX_RANK)
    parts = ManifestParts(lineage=Lineage(origin="imported"))
    registry = Registry.open(home.create())
    try:
        for index, marker in enumerate(markers):
            folder = marker.folder
            source = prepare(folder / "adapter_config.json", folder / "adapter_model.safetensors", facts, parts)
            name = f"many{index:04d}"
            version = registry.adapters.publish(DEFAULT_PROJECT, name, source, origin="imported")
            for state in ("verifying", "ready"):
                registry.adapters.set_state(version.id, state)
            registry.adapters.set_alias(DEFAULT_PROJECT, name, "production", [Target(1)], actor="benchmark", reason="")
    finally:
        registry.close()


def resolve(home: Home, num: int) -> Figure:
    """Microseconds from a parsed reference to its version."""
    registry = Registry.open(home)
    snapshot = registry.adapters.snapshot()
    registry.close()
    refs = [ref for index in range(num) if (ref := parse_ref(f"many{index:04d}")) is not None]
    samples = []
    for _ in range(20):
        started = time.perf_counter()
        for ref in refs:
            assert snapshot.resolve(DEFAULT_PROJECT, ref, None) is not None
        samples.append(1e6 * (time.perf_counter() - started) / len(refs))
    return at_most(f"resolve, {num} registered", samples, "us", RESOLVE_US)


async def first_page(server: Ours, num: int) -> Figure:
    samples = []
    for _ in range(NUM_CALLS):
        started = time.perf_counter()
        page = await server.client.call("GET", "/adapters?limit=20")
        samples.append(1000 * (time.perf_counter() - started))
        assert len(page["data"]) == 20
    return at_most(f"GET /v1/adapters, first page, {num} registered", samples, "ms", PAGE_MS)


async def step_cost(few: Ours, many: Ours, num: int, seconds: float) -> Figure:
    """Of `num` registered adapters over that of three. The servers are asked in turn, each for `seconds` in all."""
    for server in (few, many):
        await _decode_gap_ms(server, 2.0)  # warm
    ratios = []
    for number in range(NUM_TURNS):
        gaps = {}
        for server in (few, many)[:: -1 if number % 2 else 1]:
            gaps[server is many] = await _decode_gap_ms(server, seconds / NUM_TURNS)
        ratios.append(gaps[True] / gaps[False])
    note = "median of turns"
    return at_most(f"median ITL, {num} registered / 3 registered", ratios, "x", MAX_STEP_RATIO, note)


async def _decode_gap_ms(server: Ours, seconds: float) -> float:
    """Median inter-token latency of streams over two adapters."""
    turns = itertools.cycle(("many0000", "many0001"))

    def pick(number: int) -> tuple[str, Sequence[dict[str, str]]]:
        return next(turns), messages(QUESTIONS[number % len(QUESTIONS)])

    load = Streams(server.client, pick, NUM_STREAMS, 2 * MAX_TOKENS, body={"ignore_eos": True})
    answers = await load.run_for(seconds)
    return statistics.median(1000 * gap for answer in answers for gap in answer.gaps_s)
