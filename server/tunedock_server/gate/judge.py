"""Does the serving engine reproduce what the trainer saw? Pure arithmetic over log-probabilities in nats.

Three questions, because each alone can be fooled:
- parity: mean |engine - trainer| small and the same best tokens. A weak adapter passes this as a no-op.
- effect: the engine's answers with the adapter differ from its answers without. Noise of a low-precision engine passes.
- shift: the engine's change (adapter - base) follows the trainer's change with slope 1. A scaling error of 2 gives
  slope 2, a no-op slope 0, a foreign adapter a slope near 0 whatever its size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunedock_api.manifest import ProbeExample

from ..pool import Scores
from ..settings import GateSettings


@dataclass(frozen=True)
class Measured:
    """One text scored by the engine under the adapter and under the base. `start`: first position that counts.

    Scores are indexed as in `Scores`: entry i belongs to position i + 1.
    """

    adapter: Scores
    base: Scores
    start: int = 1
    probe: ProbeExample | None = None


@dataclass(frozen=True)
class Verdict:
    """`parity` is stored with the version; `reason` is empty when it may serve."""

    parity: dict[str, Any]
    reason: str = ""

    @property
    def passed(self) -> bool:
        return not self.reason


def judge(measured: Sequence[Measured], limits: GateSettings) -> Verdict:
    """The verdict on one version. With probes all questions are asked; without, only effect and finiteness."""
    numbers = [value for one in measured for value in (*one.adapter.logprobs, *one.base.logprobs)]
    if not numbers or not all(map(math.isfinite, numbers)):
        return Verdict({"status": "failed"}, "the engine's log-probabilities under this adapter are not finite numbers")
    engine_shift = [a - b for one in measured for a, b in zip(_tail(one, "adapter"), _tail(one, "base"), strict=True)]
    effect = _mean_abs(engine_shift)
    parity: dict[str, Any] = {"effect": effect, "num_tokens": len(engine_shift)}
    if effect < limits.min_effect:
        parity["status"] = "failed"
        return Verdict(
            parity,
            f"the adapter has no effect in the serving engine: mean |adapter - base| is {effect:.2g} nats over "
            f"{len(engine_shift)} tokens, at least {limits.min_effect:g} is needed",
        )
    if any(one.probe is None for one in measured):
        return Verdict({**parity, "status": "not_checked"})
    return _compare(measured, engine_shift, parity, limits)


def _compare(
    measured: Sequence[Measured], engine_shift: Sequence[float], parity: dict[str, Any], limits: GateSettings
) -> Verdict:
    probes = [one.probe for one in measured if one.probe is not None]
    trainer = [value for probe in probes for value in probe.adapter_logprobs]
    trainer_shift = [
        a - b for probe in probes for a, b in zip(probe.adapter_logprobs, probe.base_logprobs, strict=True)
    ]
    engine = [value for one in measured for value in _tail(one, "adapter")]
    difference = _mean_abs([e - t for e, t in zip(engine, trainer, strict=True)])
    best = [top for probe in probes for top in probe.adapter_top1]
    engine_best = [top for one in measured for top in one.adapter.top1[one.start - 1 :]]
    differing = sum(a != b for a, b in zip(best, engine_best, strict=True))
    effect = _mean_abs(trainer_shift)
    parity |= {
        "mean_abs_logprob_diff": difference,
        "top1_agreement": 1 - differing / len(best),
        "trainer_effect": effect,
        "num_examples": len(probes),
    }
    allowed = limits.max_mean_abs_diff + limits.effect_share * effect
    reasons = _parity_reasons(difference, allowed, differing, len(best), limits)
    if effect >= limits.min_shift:
        parity["shift_slope"] = slope(trainer_shift, engine_shift)
        reasons += _shift_reasons(parity["shift_slope"], limits)
    parity["status"] = "failed" if reasons else "verified"
    return Verdict(parity, "; ".join(reasons))


def _parity_reasons(
    difference: float, allowed: float, differing: int, num_tokens: int, limits: GateSettings
) -> list[str]:
    """Of a probe of a few tokens one may have another best token: two almost equal ones change places in the last bits."""
    reasons = []
    if difference > allowed:
        reasons.append(
            f"the engine's log-probabilities differ from the trainer's by {difference:.3f} nats on average "
            f"(allowed: {allowed:.3f})"
        )
    if differing > max(1, int((1 - limits.min_top1_agreement) * num_tokens)):
        reasons.append(
            f"the engine's best token equals the trainer's at {1 - differing / num_tokens:.1%} of the positions "
            f"(needed: {limits.min_top1_agreement:.0%})"
        )
    return reasons


def _shift_reasons(value: float, limits: GateSettings) -> list[str]:
    if abs(value - 1) <= limits.shift_tolerance:
        return []
    return [
        f"the adapter moves the engine's log-probabilities {value:.2f} times as far as the trainer's "
        f"(allowed: 1 ± {limits.shift_tolerance:g}): wrong scaling, wrong base model or wrong adapter"
    ]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Least-squares slope of y over x through the origin; 0 when x is all zeros."""
    power = math.fsum(v * v for v in x)
    return math.fsum(a * b for a, b in zip(x, y, strict=True)) / power if power else 0.0


def _tail(one: Measured, side: str) -> tuple[float, ...]:
    scores: Scores = one.adapter if side == "adapter" else one.base
    return scores.logprobs[one.start - 1 :]


def _mean_abs(values: Sequence[float]) -> float:
    return math.fsum(map(abs, values)) / len(values) if values else 0.0
