"""Adapters on a CUDA device, in process: decode with 1 to 32 distinct adapters beside base rows, and what a load costs.

    python -m benchmarks.gpu.serve_lora [--shape 8b|default] [--json FILE]

`8b` makes a model of Llama-3.1-8B's shape with random weights (16 GB of disk); speed does not depend on the values. Needs a
CUDA device with 40 GB for it; a few minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, LlamaConfig
from tunedock_registry.models.facts import BaseFacts, base_facts
from tunedock_server.engine.start import create_engine
from tunedock_server.pool import EnginePool, EngineSettings, GenerateRequest, Pinned, Sampling

from ..figures import Figure, Report, bootstrap
from ..lora_adapters import publishable
from ..lora_traffic import prompt
from ..servers import model_path

RANK, STREAMS, NUM_TOKENS, ROUNDS, LOADS = 16, 64, 128, 5, 8
GOALS = {8: 0.93, 32: 0.82}
MAX_STALL_MS = 1.0
BASE = Pinned("base")


def eight_billion(folder: Path) -> Path:
    """Llama-3.1-8B's shape, bf16, random; the tokenizer is the default model's."""
    config = LlamaConfig(
        vocab_size=128_256, hidden_size=4096, intermediate_size=14_336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=8192, rope_theta=500_000.0, tie_word_embeddings=False,
    )  # fmt: skip
    with torch.device("cuda"):
        AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    torch.cuda.empty_cache()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_path() / name, folder / name)
    return folder


async def decode(engine: EnginePool, versions: Sequence[Pinned], seed: int) -> float:
    """Output tokens a second once every stream has its first one."""

    async def stream(number: int) -> list[float]:
        sampling = Sampling(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
        ids = prompt(1000 * seed + number, 64)
        request = GenerateRequest(f"{seed}-{number}", token_ids=ids, sampling=sampling)
        deltas = engine.generate(request, versions[number % len(versions)])
        return [time.perf_counter() async for delta in deltas for _ in delta.token_ids]

    times = await asyncio.gather(*(stream(number) for number in range(STREAMS)))
    begin, end = max(t[0] for t in times), max(t[-1] for t in times)
    return sum(sum(1 for moment in t if moment > begin) for t in times) / (end - begin)


async def speeds(engine: EnginePool, versions: Sequence[Pinned]) -> list[Figure]:
    arms: dict[int, Sequence[Pinned]] = {0: [BASE], **{count: versions[:count] for count in (1, 3, 8, 32)}}
    found: dict[int, list[float]] = {count: [] for count in arms}
    for number in range(ROUNDS + 1):
        for count, pinned in arms.items():
            speed = await decode(engine, pinned, number * 10 + count + 1)
            if number:  # the first round warms up
                found[count].append(speed)
    figures = [Figure("decode, base rows", statistics.median(found[0]), "tokens/s", num_samples=ROUNDS)]
    for count in (1, 3, 8, 32):
        pairs = [mine / base for mine, base in zip(found[count], found[0], strict=True)]
        goal, median = GOALS.get(count), statistics.median(pairs)
        met = None if goal is None else median >= goal
        text = "" if goal is None else f">= {goal} x"
        name = f"decode, {count} distinct adapters / base rows"
        figures.append(Figure(name, median, "x", text, met, interval=bootstrap(pairs), num_samples=ROUNDS))
    return figures


async def stalls(engine: EnginePool, fresh: Sequence[Pinned]) -> Figure:
    """Longest gap of one base stream around each load, minus its median gap."""
    sampling = Sampling(max_tokens=4000, temperature=0.0, ignore_eos=True)
    times: list[float] = []

    async def watch() -> None:
        async for _ in engine.generate(GenerateRequest("watch", token_ids=prompt(1, 64), sampling=sampling), BASE):
            times.append(time.perf_counter())  # noqa: PERF401  (read while it grows)

    watching = asyncio.create_task(watch())
    await asyncio.sleep(1.0)
    loads = []
    for version in fresh:
        begin = time.perf_counter()
        await engine.load(version)
        loads.append((begin, time.perf_counter()))
        await asyncio.sleep(0.2)
    watching.cancel()
    gaps = [(later, later - earlier) for earlier, later in pairwise(times)]
    median = statistics.median(gap for _, gap in gaps)
    worst = [1000 * (max(g for at, g in gaps if begin <= at <= end + 0.1) - median) for begin, end in loads]
    value = statistics.median(worst)
    note = f"loads {[round(1000 * (end - begin)) for begin, end in loads]} ms"
    return Figure("stall of another stream while an adapter loads", value, "ms", f"<= {MAX_STALL_MS} ms",
                  value <= MAX_STALL_MS, interval=bootstrap(worst), num_samples=len(worst), note=note)  # fmt: skip


async def run(model: Path, folder: Path) -> list[Figure]:
    base: BaseFacts = base_facts(model, BASE.public, RANK)
    versions = [publishable(folder / str(number), base, number) for number in range(32 + LOADS)]
    engine = create_engine(
        EngineSettings(model_path=model, model_id=BASE.public, max_loras=32, max_cpu_loras=64, max_lora_rank=16,
                       max_num_seqs=STREAMS, max_model_len=8192)
    )  # fmt: skip
    await engine.start()
    try:
        for version in versions[:32]:
            await engine.load(version)
        return [*await speeds(engine, versions), await stalls(engine, versions[32:])]
    finally:
        await engine.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.serve_lora", description=__doc__)
    parser.add_argument("--shape", choices=("8b", "default"), default="8b")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("this benchmark needs a CUDA device", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="tunedock-bench-", ignore_cleanup_errors=True) as folder:
        model = eight_billion(Path(folder) / "model") if options.shape == "8b" else model_path()
        figures = asyncio.run(run(model, Path(folder) / "adapters"))
    report = Report(f"adapters on {torch.cuda.get_device_name()}, {options.shape}", figures)
    report.show(Console(stderr=True))
    if options.json is not None:
        options.json.write_text(report.as_json())
    return 0 if report.goals_met else 1


if __name__ == "__main__":
    sys.exit(main())
