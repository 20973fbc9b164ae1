"""Figures: percentiles, confidence intervals, and one row per number with its baseline and goal."""

from __future__ import annotations

import json
import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table


def percentile(values: Sequence[float], share: float) -> float:
    """Nearest rank: `percentile(xs, 0.99)` is the smallest value that at least 99 % do not exceed.

    Raises ValueError for no values.
    """
    if not values:
        raise ValueError("no values were measured")
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def bootstrap(
    values: Sequence[float],
    statistic: Callable[[Sequence[float]], float] = statistics.median,
    rounds: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The 95 % interval of `statistic` by resampling with replacement."""
    rng = random.Random(seed)
    drawn = sorted(statistic(rng.choices(values, k=len(values))) for _ in range(rounds))
    return drawn[int(0.025 * rounds)], drawn[int(0.975 * rounds) - 1]


@dataclass(frozen=True)
class Figure:
    """One measured number. `goal_met` is None where no goal is set; `baseline` is the stock server's number."""

    name: str
    value: float
    unit: str
    goal: str = ""
    goal_met: bool | None = None
    baseline: float | None = None
    interval: tuple[float, float] | None = None
    num_samples: int = 0
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return self.value / self.baseline if self.baseline else None


def at_most(name: str, samples: Sequence[float], unit: str, limit: float | None, note: str = "") -> Figure:
    """The median of `samples` with its interval, and whether it keeps to `limit`."""
    median = statistics.median(samples)
    met = None if limit is None else median <= limit
    goal = "" if limit is None else f"<= {limit:g} {unit}"
    return Figure(name, median, unit, goal, met, interval=bootstrap(samples), num_samples=len(samples), note=note)


@dataclass
class Report:
    """The rows of one benchmark run."""

    title: str
    figures: list[Figure] = field(default_factory=list)

    def add(self, *figures: Figure) -> None:
        self.figures += figures

    def as_json(self) -> str:
        rows = [{**asdict(figure), "ratio": figure.ratio} for figure in self.figures]
        return json.dumps({"title": self.title, "figures": rows}, indent=1)

    def show(self, console: Console) -> None:
        table = Table("figure", "value", "95 %", "stock", "goal", "met", "n", title=self.title)
        for figure in self.figures:
            table.add_row(*_cells(figure))
        console.print(table)

    def finish(self, console: Console, path: Path | None) -> int:
        """Shows the rows and writes them to `path`. Returns the exit status: 0 when every goal is met."""
        self.show(console)
        if path is not None:
            path.write_text(self.as_json() + "\n")
        return 0 if self.goals_met else 1

    @property
    def goals_met(self) -> bool:
        return all(figure.goal_met is not False for figure in self.figures)


def _cells(figure: Figure) -> tuple[str, ...]:
    interval = "" if figure.interval is None else f"{figure.interval[0]:.3g} – {figure.interval[1]:.3g}"
    stock = "" if figure.baseline is None else f"{figure.baseline:.4g}"
    met = {None: "", True: "yes", False: "NO"}[figure.goal_met]
    value = f"{figure.value:.4g} {figure.unit}"
    return figure.name, value, interval, stock, figure.goal, met, str(figure.num_samples or "")
