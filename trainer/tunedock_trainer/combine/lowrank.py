"""The best plain LoRA for a change of weights, and how far from the change it is.

Shapes: a module's change `delta` [O, I]; its LoRA A [R, I] and B [O, R], so that B A approximates `delta`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Pairs = dict[str, tuple[Tensor, Tensor]]

_OVERSAMPLE, _ITERATIONS = 32, 4


@dataclass(frozen=True)
class Fit:
    """`relative_error` is ‖Δ − B A‖ / ‖Δ‖ in the Frobenius norm over all modules, with A and B as they are stored."""

    pairs: Pairs
    relative_error: float
    worst_module: str
    worst_error: float


def fit(deltas: Mapping[str, Tensor], rank: int, dtype: torch.dtype) -> Fit:
    """The best approximation of rank `rank` (Eckart-Young), by a randomised SVD (Halko et al., arXiv 0909.4061).

    Modules that do not change are left out. Deterministic. Raises ValueError when nothing changes at all.
    """
    pairs, errors, norms = {}, {}, {}
    for name, delta in deltas.items():
        norm = float(delta.float().norm())
        if norm == 0.0:
            continue
        pairs[name] = truncated(delta.float(), rank, dtype)
        errors[name], norms[name] = distance(delta, pairs[name]), norm
    if not pairs:
        raise ValueError("no module changes")
    worst = max(errors, key=lambda name: errors[name] / norms[name])
    return Fit(pairs, _total(errors) / _total(norms), worst, errors[worst] / norms[worst])


def truncated(delta: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A and B that share the singular values evenly, so that neither loses range in a 16-bit type."""
    width = min(rank + _OVERSAMPLE, *delta.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        u, s, v = torch.svd_lowrank(delta, q=width, niter=_ITERATIONS)
    root = s[:rank].sqrt()
    return (v[:, :rank] * root).t().to(dtype).contiguous(), (u[:, :rank] * root).to(dtype).contiguous()


def distance(delta: Tensor, pair: tuple[Tensor, Tensor]) -> float:
    """‖Δ − B A‖, computed in float32."""
    a, b = pair
    return float((delta.float() - b.float() @ a.float()).norm())


def relative_distance(deltas: Mapping[str, Tensor], pairs: Mapping[str, tuple[Tensor, Tensor]]) -> float:
    """‖Δ − B A‖ / ‖Δ‖ over all modules; a module without a pair counts with all of its change."""
    gaps = {
        name: distance(delta, pairs[name]) if name in pairs else float(delta.float().norm())
        for name, delta in deltas.items()
    }
    return _total(gaps) / max(_total({name: float(delta.float().norm()) for name, delta in deltas.items()}), 1e-30)


def _total(norms: Mapping[str, float]) -> float:
    return sum(norm * norm for norm in norms.values()) ** 0.5
