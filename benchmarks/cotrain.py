"""Serving while training on the same machine: what a fine-tuning job costs the streams, and what they leave of it.

    python -m benchmarks.cotrain [--quick | --policies] [--json FILE]

One server with its own trainer, as `tunedock serve` starts it. Phases take turns: streams alone (the trainer is stopped by
signal), training alone, both. Streams run without a pause (`full load`), or half of the time in bursts (`half load`).
With `--policies` the same is measured under other priorities of the trainer, set from outside, which only root may do.
Needs the default model and two idle cores; about 3 minutes, one with `--quick`, 10 with `--policies`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil
from rich.console import Console
from tunedock_registry import background
from tunedock_registry.models import DEFAULT_MODEL

from examples.serving import ServerProcess

from .figures import Figure, Report, percentile
from .load import Client, Streams, client, gaps_ms
from .servers import ENVIRONMENT, model_path

NUM_STREAMS, MAX_TOKENS, BURST_S = 8, 64, 3.0
MAX_RATIO, MIN_SHARE = 1.3, 0.5
DATA = Path(__file__).parents[1] / "examples" / "dates" / "train.jsonl"
QUESTION = [{"role": "user", "content": "Write down the numbers from one to a hundred, one after the other, in words."}]
console = Console(stderr=True, width=None if sys.stderr.isatty() else 150)


@dataclass(frozen=True)
class Effort:
    """Seconds of one phase, and how often each comes."""

    phase_s: float
    rounds: int


DEFAULT = "as served"
QUICK, FULL, LONG = Effort(5.0, 1), Effort(12.0, 2), Effort(15.0, 3)


# Name -> nice value and seconds of a turn; 0: the kernel's.
POLICIES = {
    "nice 0": (0, 0.0),
    "nice 10": (10, background.TURN_S),
    "nice 19, long turns": (19, 0.0),
}


@dataclass
class Trainer:
    """The server's trainer process at work on one long job. `metrics` gets a line for each step."""

    process: psutil.Process
    metrics: Path
    nice: int

    @contextmanager
    def stopped(self) -> Iterator[None]:
        os.kill(self.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.process.pid, signal.SIGCONT)

    def prefer(self, policy: str) -> None:
        nice, turn_s = POLICIES.get(policy, (self.nice, background.TURN_S))
        for thread in self.process.threads():
            background.set_turns(thread.id, nice, turn_s)

    def tokens(self) -> tuple[int, float]:
        """Trained so far, and the time."""
        lines = self.metrics.read_text().split("\n")[:-1]
        return sum(json.loads(line)["num_tokens"] for line in lines), time.monotonic()


@dataclass
class Found:
    """Gaps between tokens in ms, and tokens trained a second, by phase."""

    gaps: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    rates: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def p99(self, phase: str) -> float:
        return percentile(self.gaps[phase], 0.99)

    def rate(self, phase: str) -> float:
        return sum(self.rates[phase]) / len(self.rates[phase])


async def start_job(connected: Client, home: Path) -> Trainer:
    """Returns when its first steps are done."""
    form = aiohttp.FormData()
    form.add_field("purpose", "fine-tune")
    form.add_field("file", DATA.read_bytes(), filename="train.jsonl")
    async with connected.session.post(f"{connected.base_url}/files", data=form) as response:
        file_id = (await response.json())["id"]
    settings = {"n_epochs": 50, "batch_size": 8}
    method = {"type": "supervised", "supervised": {"hyperparameters": settings}}
    body = {"model": DEFAULT_MODEL, "training_file": file_id, "suffix": "cotrain", "method": method}
    async with connected.session.post(f"{connected.base_url}/fine_tuning/jobs", json=body) as response:
        job = await response.json()
    metrics = home / "runs" / job["id"] / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_text().count("\n") < 3:
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"training did not begin: {await connected.call('GET', '/fine_tuning/jobs/' + job['id'])}"
            )
        await asyncio.sleep(0.2)
    process = _trainer_process()
    return Trainer(process, metrics, process.nice())


def _trainer_process() -> psutil.Process:
    for process in psutil.Process().children(recursive=True):
        if "tunedock_trainer" in process.cmdline():
            return process
    raise RuntimeError("the server runs no trainer")


async def traffic(connected: Client, seconds: float, load: str) -> list[float]:
    """Gaps in ms of streams for about `seconds`; under half load they rest as long as they run."""
    gaps: list[float] = []
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        began = time.monotonic()
        burst_s = seconds if load == "full load" else BURST_S
        streams = Streams(
            connected, lambda number: (DEFAULT_MODEL, QUESTION), NUM_STREAMS, MAX_TOKENS, body={"ignore_eos": True}
        )
        answers = await streams.run_for(burst_s)
        for answer in answers:
            assert answer.error is None, answer.error
        gaps += gaps_ms(answers)
        if load == "half load":
            await asyncio.sleep(time.monotonic() - began)
    return gaps


async def measure(connected: Client, trainer: Trainer, effort: Effort, policies: Sequence[str]) -> Found:
    found = Found()
    for number in range(effort.rounds):
        for load in ("full load", "half load"):
            with trainer.stopped():
                found.gaps[f"alone, {load}"] += await traffic(connected, effort.phase_s, load)
            for policy in policies[:: 1 if number % 2 == 0 else -1]:
                if len(policies) > 1:
                    trainer.prefer(policy)
                await _together(connected, trainer, effort, f"{policy}, {load}", found)
        before = trainer.tokens()
        await asyncio.sleep(effort.phase_s)
        found.rates["alone"].append(_rate(before, trainer.tokens()))
        console.print(f"round {number}: " + ", ".join(f"{name} p99 {found.p99(name):.1f} ms" for name in found.gaps))
    return found


async def _together(connected: Client, trainer: Trainer, effort: Effort, phase: str, found: Found) -> None:
    before = trainer.tokens()
    found.gaps[phase] += await traffic(connected, effort.phase_s, phase.partition(", ")[2])
    found.rates[phase].append(_rate(before, trainer.tokens()))


def _rate(before: tuple[int, float], after: tuple[int, float]) -> float:
    return (after[0] - before[0]) / (after[1] - before[1])


def figures(found: Found, policies: Sequence[str]) -> list[Figure]:
    rows = [Figure("training alone", found.rate("alone"), "tokens/s")]
    for load in ("full load", "half load"):
        idle = found.p99(f"alone, {load}")
        rows.append(Figure(f"p99 ITL alone, {load}", idle, "ms", num_samples=len(found.gaps[f"alone, {load}"])))
        for policy in policies:
            phase, judged = f"{policy}, {load}", policy == DEFAULT
            ratio, share = found.p99(phase) / idle, found.rate(phase) / found.rate("alone")
            rows.append(
                Figure(
                    f"p99 ITL while training / alone, {phase}",
                    ratio,
                    "x",
                    f"<= {MAX_RATIO} x" if judged else "",
                    ratio <= MAX_RATIO if judged else None,
                    num_samples=len(found.gaps[phase]),
                )
            )
            rows.append(
                Figure(
                    f"training beside streams / alone, {phase}",
                    share,
                    "x",
                    f">= {MIN_SHARE} x" if judged else "",
                    share >= MIN_SHARE if judged else None,
                )
            )
    return rows  # fmt: skip


async def run(home: Path, effort: Effort, policies: Sequence[str]) -> list[Figure]:
    process = ServerProcess(home, flags=["--model", str(model_path())], environment=ENVIRONMENT)
    await asyncio.to_thread(process.start)
    try:
        async with client(process.base_url) as connected:
            trainer = await start_job(connected, home)
            await traffic(connected, 3.0, "full load")  # warms
            found = await measure(connected, trainer, effort, policies)
    finally:
        await asyncio.to_thread(process.stop)
    return figures(found, policies)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cotrain", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of short phases")
    parser.add_argument("--policies", action="store_true", help="other priorities of the trainer as well")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    policies = [DEFAULT, *POLICIES] if options.policies else [DEFAULT]
    effort = LONG if options.policies else QUICK if options.quick else FULL
    with tempfile.TemporaryDirectory(prefix="tunedock-bench-", ignore_cleanup_errors=True) as folder:
        report = Report("serving while training", asyncio.run(run(Path(folder), effort, policies)))
    return report.finish(console, options.json)


if __name__ == "__main__":
    sys.exit(main())
