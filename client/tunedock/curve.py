"""A loss curve in characters. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def resampled(values: Sequence[float], width: int) -> list[float]:
    """At most `width` values: each the mean of the values that fall into its column."""
    if len(values) <= width:
        return list(values)
    edges = [round(column * len(values) / width) for column in range(width + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def curve(values: Sequence[float], width: int = 60, height: int = 6) -> list[str]:
    """`height` lines, the highest first, with the range of the values at the left edge.

    Values are drawn between their minimum and maximum; the lowest still shows. Fewer than two values draw nothing.
    """
    if len(values) < 2:
        return []
    columns = resampled(values, width)
    low, high = min(columns), max(columns)
    span = (high - low) or 1.0
    eighths = [1 + round((value - low) / span * (8 * height - 1)) for value in columns]
    rows = ["".join(_EIGHTHS[max(0, min(8, level - 8 * row))] for level in eighths) for row in reversed(range(height))]
    labels = [f"{high:8.3f} ┤", *["         │"] * (height - 2), f"{low:8.3f} ┤"]
    return [label + row.rstrip() for label, row in zip(labels, rows, strict=True)]
