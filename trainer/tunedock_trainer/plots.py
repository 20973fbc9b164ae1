"""One picture of a run, at its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .history import Row


def write_plot(rows: Sequence[Row], path: Path) -> None:
    """Loss and accuracy over steps, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), dpi=100)
    left, right = figure.subplots(1, 2)
    _draw(left, rows, "loss", ("train_loss", "valid_loss", "full_valid_loss"))
    _draw(right, rows, "accuracy", ("train_accuracy", "valid_mean_token_accuracy", "full_valid_mean_token_accuracy"))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.12, top=0.92)
    FigureCanvasAgg(figure).print_png(path)


def _draw(axes: Any, rows: Sequence[Row], title: str, names: Sequence[str]) -> None:
    for name, label, style in zip(names, ("train", "valid (batch)", "valid (all)"), ("-", ":", "o--"), strict=True):
        points = [(row.step, getattr(row, name)) for row in rows if getattr(row, name) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label, linewidth=1.2)
    axes.set_xlabel("step")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    if rows:
        axes.legend()
