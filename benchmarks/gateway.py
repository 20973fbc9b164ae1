"""What a gateway costs: the engine alone, our REST, our gRPC, and stock `vllm serve`, under the same load.

    python -m benchmarks.gateway [--quick] [--json FILE]

Closed loop: `STREAMS` callers, each asks again as soon as its answer is whole. Needs the default model and two idle
cores; about 4 minutes with `--quick`, 12 minutes without. The load generator runs beside the server on the same cores,
so that the engine alone, which needs none, is the bound that nobody reaches.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import grpc
import psutil
from rich.console import Console
from tunedock_api.v1 import inference_pb2 as pb
from tunedock_api.v1.inference_pb2_grpc import InferenceStub
from tunedock_registry.models import DEFAULT_MODEL

from .figures import Figure, Report, percentile
from .load import Client
from .servers import ENVIRONMENT, StockFlags, model_path, ours, stock

STREAMS, MAX_TOKENS, WARM_UP_S = 8, 64, 3.0
QUESTION = "Write down the numbers from one to a hundred, one after the other, in words."
REST_GOAL, GRPC_GOAL, CPU_GOAL = 0.95, 0.97, 0.5
console = Console(stderr=True)


@dataclass(frozen=True)
class Streamed:
    """One answer: seconds to its first tokens, seconds between steps, and how many tokens it had."""

    first_s: float
    gaps_s: tuple[float, ...]
    num_tokens: int


Ask = Callable[[], Awaitable[Streamed]]


@dataclass(frozen=True)
class Measured:
    """One gateway under load. `cpu_us_per_token` is of everything in front of the engine process."""

    tokens_per_s: float
    ttft_ms: float
    itl_p99_ms: float
    cpu_us_per_token: float
    num_answers: int


async def under_load(ask: Ask, seconds: float, cpu_s: Callable[[], float]) -> Measured:
    """Warms up, then measures whole answers for about `seconds`."""
    await _load(ask, WARM_UP_S)
    cpu_before, began = cpu_s(), time.perf_counter()
    answers = await _load(ask, seconds)
    wall_s, spent_s = time.perf_counter() - began, cpu_s() - cpu_before
    tokens = sum(answer.num_tokens for answer in answers)
    return Measured(
        tokens_per_s=tokens / wall_s,
        ttft_ms=1000 * statistics.median(answer.first_s for answer in answers),
        itl_p99_ms=1000 * percentile([gap for answer in answers for gap in answer.gaps_s], 0.99),
        cpu_us_per_token=1e6 * spent_s / tokens,
        num_answers=len(answers),
    )


async def _load(ask: Ask, seconds: float) -> list[Streamed]:
    deadline = time.perf_counter() + seconds
    answers: list[Streamed] = []

    async def caller() -> None:
        while time.perf_counter() < deadline:
            answers.append(await ask())

    await asyncio.gather(*(caller() for _ in range(STREAMS)))
    return answers


async def timed(parts: AsyncIterator[int]) -> Streamed:
    """`parts` yields how many tokens came together."""
    began, times, tokens = time.perf_counter(), [], 0
    async for count in parts:
        times.append(time.perf_counter())
        tokens += count
    gaps = tuple(later - earlier for earlier, later in pairwise(times))
    return Streamed(times[0] - began, gaps, tokens)


def rest_asker(client: Client) -> Ask:
    """Streams over SSE; one event is one token."""

    async def ask() -> Streamed:
        messages = [{"role": "user", "content": QUESTION}]
        answer = await client.stream(DEFAULT_MODEL, messages, MAX_TOKENS, ignore_eos=True)
        if answer.error:
            raise RuntimeError(answer.error)
        return Streamed(answer.first_token_s, tuple(answer.gaps_s), MAX_TOKENS)

    return ask


@asynccontextmanager
async def grpc_asker(target: str) -> AsyncIterator[Ask]:
    request = pb.ChatRequest(
        model=DEFAULT_MODEL,
        messages=[pb.Message(role="user", content=QUESTION)],
        sampling=pb.Sampling(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True),
    )
    async with grpc.aio.insecure_channel(target) as channel:
        stub = InferenceStub(channel)

        async def parts() -> AsyncIterator[int]:
            async for part in stub.StreamChat(request):
                if part.choices:
                    yield len(part.choices[0].token_ids)

        async def ask() -> Streamed:
            return await timed(parts())

        yield ask


def front_cpu_s(pid: int) -> Callable[[], float]:
    """CPU seconds of a server's processes, without the engine's and its workers'."""

    def front(process: psutil.Process) -> bool:
        return not any(word in " ".join([process.name(), *process.cmdline()]) for word in ("Engine", "Worker"))

    def spent() -> float:
        root = psutil.Process(pid)
        times = [process.cpu_times() for process in [root, *root.children(recursive=True)] if front(process)]
        return float(sum(one.user + one.system for one in times))

    return spent


async def in_process(seconds: float) -> Measured:
    """The engine alone, in a process of its own: no gateway, no load generator."""
    command = [sys.executable, "-m", "benchmarks.gateway", "--engine-only", str(seconds)]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    out, _ = await child.communicate()
    if child.returncode:
        raise RuntimeError(f"the engine alone ended with status {child.returncode}")
    return Measured(**json.loads(out.splitlines()[-1]))


async def engine_only(seconds: float) -> Measured:
    from tunedock_server.pool import EngineSettings, GenerateRequest, Pinned, Sampling, create_engine

    engine = create_engine(
        EngineSettings(
            model_path=model_path(),
            model_id=DEFAULT_MODEL,
            max_loras=int(ENVIRONMENT["TUNEDOCK_MAX_LORAS"]),
            max_cpu_loras=int(ENVIRONMENT["TUNEDOCK_MAX_CPU_LORAS"]),
            max_lora_rank=16,
            max_model_len=int(ENVIRONMENT["TUNEDOCK_MAX_MODEL_LEN"]),
            kv_cache_bytes=int(ENVIRONMENT["TUNEDOCK_KV_CACHE_BYTES"]),
        )
    )
    await engine.start()
    sampling = Sampling(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True)
    count = 0

    async def parts() -> AsyncIterator[int]:
        nonlocal count
        count += 1
        messages = [{"role": "user", "content": QUESTION}]
        request = GenerateRequest(f"bench-{count}", messages=messages, sampling=sampling)
        async for delta in engine.generate(request, Pinned(DEFAULT_MODEL)):
            yield len(delta.token_ids)

    async def ask() -> Streamed:
        return await timed(parts())

    try:
        return await under_load(ask, seconds, time.process_time)
    finally:
        await engine.stop()


async def measure(seconds: float) -> dict[str, Measured]:
    """Every gateway, one server at a time; REST and gRPC on the same server."""
    found: dict[str, Measured] = {}

    def note(name: str, measured: Measured) -> None:
        found[name] = measured
        console.print(f"{name}: {measured.tokens_per_s:.0f} tok/s, {measured.cpu_us_per_token:.0f} us of CPU per token")

    note("engine", await in_process(seconds))
    async with ours() as server:
        cpu_s = front_cpu_s(server.process.pid)
        note("REST", await under_load(rest_asker(server.client), seconds, cpu_s))
        async with grpc_asker(f"127.0.0.1:{server.process.grpc_port}") as ask:
            note("gRPC", await under_load(ask, seconds, cpu_s))
    async with stock(StockFlags(tuned=True)) as baseline:
        cpu_s = front_cpu_s(baseline.process.pid)
        note("stock", await under_load(rest_asker(baseline.client), seconds, cpu_s))
    return found


def figures(found: dict[str, Measured]) -> list[Figure]:
    engine, rows = found["engine"], []
    for name, one in found.items():
        base = asdict(found["stock"]) if name in ("REST", "gRPC") else {}
        rows += [
            Figure(f"{name}: throughput", one.tokens_per_s, "tok/s", baseline=base.get("tokens_per_s"),
                   num_samples=one.num_answers),
            Figure(f"{name}: TTFT median", one.ttft_ms, "ms", baseline=base.get("ttft_ms")),
            Figure(f"{name}: ITL p99", one.itl_p99_ms, "ms", baseline=base.get("itl_p99_ms")),
            Figure(f"{name}: CPU per token", one.cpu_us_per_token, "us", baseline=base.get("cpu_us_per_token")),
        ]  # fmt: skip
    rest, over_grpc = (found[name].tokens_per_s / engine.tokens_per_s for name in ("REST", "gRPC"))
    cpu = found["gRPC"].cpu_us_per_token / found["REST"].cpu_us_per_token
    return [
        *rows,
        Figure("REST / engine alone", rest, "x", f">= {REST_GOAL}", rest >= REST_GOAL),
        Figure("gRPC / engine alone", over_grpc, "x", f">= {GRPC_GOAL}", over_grpc >= GRPC_GOAL),
        Figure("gRPC / REST, CPU per token", cpu, "x", f"<= {CPU_GOAL}", cpu <= CPU_GOAL),
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="15 s for each gateway instead of 60 s")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    parser.add_argument("--engine-only", type=float, metavar="S", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.engine_only is not None:
        print(json.dumps(asdict(asyncio.run(engine_only(options.engine_only)))))
        return 0
    report = Report("What a gateway costs")
    report.add(*figures(asyncio.run(measure(15.0 if options.quick else 60.0))))
    report.show(Console(width=140))
    if options.json is not None:
        options.json.write_text(report.as_json() + "\n")
    return 0 if report.goals_met else 1


if __name__ == "__main__":
    sys.exit(main())
