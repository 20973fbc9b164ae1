"""Is a difference more than chance? Paired bootstrap over examples (Efron 1979; Koehn 2004 for text measures)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2_000


@dataclass(frozen=True)
class Interval:
    """Weighted mean of the pairwise differences, and its 95 % interval."""

    mean: float
    low: float
    high: float


def paired(
    ours: Sequence[float], theirs: Sequence[float], weights: Sequence[float] | None = None, seed: int = 0
) -> Interval:
    """`ours[i] - theirs[i]` over examples i, each weighing `weights[i]` (tokens, say). Raises ValueError when empty."""
    difference = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    if not difference.size:
        raise ValueError("no examples to compare")
    weight = np.ones_like(difference) if weights is None else np.asarray(weights, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(0, difference.size, (RESAMPLES, difference.size))
    means = (difference * weight)[picks].sum(axis=1) / weight[picks].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(float((difference * weight).sum() / weight.sum()), float(low), float(high))
