"""Training: our loop beside TRL's SFTTrainer, default and tuned, on the same rows.

    python -m benchmarks.train [--quick] [--json FILE]

Every arm runs in a process of its own, in turns; needs the default model and two idle cores. About 9 minutes; one with
`--quick`, which compares with TRL's defaults alone and leaves out jobs side by side.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from tunedock_registry.data.estimate import BaseSize, cpu_tokens_per_s, memory_bytes
from tunedock_registry.models.facts import base_facts

from .figures import Figure, Report, bootstrap
from .servers import model_path
from .train_arms import NUM_JOBS, QUEUE, RANK, SMALL_BATCH, Outcome, Shared

ARMS = ("ours", "trl-default", "trl-tuned", "trl-unpacked")
GOALS = {"trl-default": 2.3, "trl-tuned": 1.3, "trl-unpacked": 1.3}
MAX_RSS_SHARE = 0.6
MAX_LOSS_DIFFERENCE = 0.05
MAX_ESTIMATE_RATIO = 1.5
console = Console(stderr=True)


def run_arm(arm: str, model: Path, steps: int) -> Any:
    """The fields of the arm's outcome. Raises CalledProcessError when the arm fails; its messages are on stderr then."""
    command = [sys.executable, "-m", "benchmarks.train_arms", arm, "--model", str(model), "--steps", str(steps)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(arms: Sequence[str], rounds: int, steps: int) -> dict[str, list[Outcome]]:
    """`rounds` outcomes of each arm; every other round in reverse order, so that a drifting machine favours nobody."""
    found: dict[str, list[Outcome]] = {arm: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            found[arm].append(Outcome(**run_arm(arm, model_path(), steps)))
            console.print(f"round {number + 1}: {arm} {found[arm][-1].tokens_per_s:.0f} tokens/s")
    return found


def figures(found: dict[str, list[Outcome]]) -> list[Figure]:
    speeds = {arm: [outcome.tokens_per_s for outcome in outcomes] for arm, outcomes in found.items()}
    rows = [Figure("training, ours", statistics.median(speeds["ours"]), "tokens/s", num_samples=len(speeds["ours"]))]
    for arm, goal in [(arm, goal) for arm, goal in GOALS.items() if arm in found]:
        ratios = [mine / theirs for mine, theirs in zip(speeds["ours"], speeds[arm], strict=True)]
        median = statistics.median(ratios)
        note = f"{arm}: {statistics.median(speeds[arm]):.0f} tokens/s"
        rows.append(
            Figure(f"training speed, ours / {arm}", median, "x", f">= {goal:g} x", median >= goal,
                   interval=bootstrap(ratios), num_samples=len(ratios), note=note)
        )  # fmt: skip
    return [*rows, *_memory(found), _same_start(found), *_estimates(found["ours"])]


def _memory(found: dict[str, list[Outcome]]) -> list[Figure]:
    peaks = {arm: statistics.median(outcome.peak_rss_bytes for outcome in outcomes) for arm, outcomes in found.items()}
    share = peaks["ours"] / peaks["trl-default"]
    goal = f"<= {MAX_RSS_SHARE:g} x"
    rows = [
        Figure("peak RSS, ours", peaks["ours"] / 2**20, "MiB", baseline=peaks["trl-default"] / 2**20),
        Figure("peak RSS, ours / trl-default", share, "x", goal, share <= MAX_RSS_SHARE),
    ]
    if "trl-tuned" in peaks:
        rows.append(Figure("peak RSS, ours / trl-tuned", peaks["ours"] / peaks["trl-tuned"], "x"))
    return rows


def _same_start(found: dict[str, list[Outcome]]) -> Figure:
    """Both see the same first batch with an adapter that does nothing yet: the losses must agree."""
    difference = abs(found["ours"][0].first_loss - found["trl-default"][0].first_loss)
    goal = f"<= {MAX_LOSS_DIFFERENCE:g}"
    return Figure("first loss, |ours - trl-default|", difference, "nats", goal, difference <= MAX_LOSS_DIFFERENCE)


def _estimates(ours: list[Outcome]) -> list[Figure]:
    """What the report on a file says before the job, against what the job then took: either way within the ratio."""
    facts = base_facts(model_path(), "bench", RANK)
    size = BaseSize(facts.modules, facts.vocab_size, facts.hidden_size)
    speed = statistics.median(outcome.tokens_per_s for outcome in ours)
    peak = statistics.median(outcome.peak_rss_bytes for outcome in ours)
    tokens = max(count for outcome in ours for count in outcome.tokens)
    pairs = {
        "training time": speed / cpu_tokens_per_s(size, len(os.sched_getaffinity(0))),
        "training memory": memory_bytes(size, RANK, tokens) / peak,
    }
    goal = f"within {MAX_ESTIMATE_RATIO:g} x"
    return [
        Figure(f"{name}, estimated / measured", ratio, "x", goal, max(ratio, 1 / ratio) <= MAX_ESTIMATE_RATIO)
        for name, ratio in pairs.items()
    ]


def side_by_side(shared: Shared) -> list[Figure]:
    """Jobs of one size: alone they end after 1, 2, … n solo times, together all at the end. Short ones behind a long one
    wait for all of it alone, and hardly at all together.
    """
    ratios = [apart / together for apart, together in zip(shared.apart_s, shared.together_s, strict=True)]
    median, name = statistics.median(ratios), f"{NUM_JOBS} jobs of batch {SMALL_BATCH}, together / in turn"
    completion = median * (NUM_JOBS + 1) / 2 / NUM_JOBS
    bound = f"by arithmetic: 2 x would take {4 * NUM_JOBS / (NUM_JOBS + 1):.1f} x the throughput"
    return [
        Figure(f"throughput, {name}", median, "x", ">= 1.5 x", median >= 1.5, interval=bootstrap(ratios), num_samples=len(ratios)),
        Figure(f"mean completion, {name}", completion, "x", ">= 2 x", completion >= 2.0, note=bound),
        _mean_completion(shared),
    ]  # fmt: skip


def _mean_completion(shared: Shared) -> Figure:
    ratios = [apart / together for apart, together in zip(shared.queue_apart_s, shared.queue_together_s, strict=True)]
    median, lengths = statistics.median(ratios), ", ".join(map(str, QUEUE))
    name = f"mean completion, jobs of {lengths} steps queued in this order, together / in turn"
    return Figure(name, median, "x", ">= 2 x", median >= 2.0, interval=bootstrap(ratios), num_samples=len(ratios))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    report = Report("Training on this machine")
    report.add(*figures(measure(ARMS[:2], 1, 4) if options.quick else measure(ARMS, 3, 8)))
    if not options.quick:
        report.add(*side_by_side(Shared(**run_arm("together", model_path(), 15))))
    return report.finish(console, options.json)


if __name__ == "__main__":
    sys.exit(main())
