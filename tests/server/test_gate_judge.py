"""The gate's arithmetic: what passes, and which sentence a failure gets."""

from __future__ import annotations

import random

from tunedock_api.manifest import ProbeExample
from tunedock_server.gate.judge import Measured, Verdict, judge, slope
from tunedock_server.pool import Scores
from tunedock_server.settings import GateSettings

LIMITS = GateSettings()
LENGTH = 40


def measured(gain: float = 1.0, noise: float = 0.01, wrong_tokens: int = 0, shift: float = 0.5) -> list[Measured]:
    """Texts whose trainer shift has mean size `shift`; the engine moves `gain` times as far, with `noise` on top."""
    rng = random.Random(3)
    found = []
    for _ in range(4):
        tokens = [rng.randrange(100) for _ in range(LENGTH)]
        base = [-rng.uniform(1, 4) for _ in range(LENGTH - 1)]
        moved = [b + rng.choice((-1, 1)) * shift for b in base]
        top = [rng.randrange(100) for _ in range(LENGTH - 1)]
        engine = [b + gain * (m - b) + rng.gauss(0, noise) for b, m in zip(base, moved, strict=True)]
        engine_top = [t + 1 if i < wrong_tokens else t for i, t in enumerate(top)]
        probe = ProbeExample(
            token_ids=tuple(tokens),
            start=1,
            adapter_logprobs=tuple(moved),
            base_logprobs=tuple(base),
            adapter_top1=tuple(top),
        )
        found.append(Measured(Scores(tuple(engine), tuple(engine_top)), Scores(tuple(base), tuple(top)), 1, probe))
    return found


def verdict(**options: float) -> Verdict:
    return judge(measured(**options), LIMITS)  # type: ignore[arg-type]


def test_an_engine_that_agrees_passes_and_reports_its_numbers() -> None:
    found = verdict()
    assert found.passed
    assert found.parity["status"] == "verified"
    assert found.parity["num_tokens"] == 4 * (LENGTH - 1)
    assert 0 < found.parity["mean_abs_logprob_diff"] < 0.02
    assert abs(found.parity["shift_slope"] - 1) < 0.02


def test_a_no_op_is_named_as_such() -> None:
    assert "no effect" in verdict(gain=0.0, noise=0.0).reason


def test_a_no_op_behind_engine_noise_fails_on_the_shift() -> None:
    found = verdict(gain=0.0, noise=0.02, shift=0.05)
    assert "0.0" in found.reason
    assert "wrong scaling" in found.reason


def test_twice_the_scaling_fails() -> None:
    assert "2.0" in verdict(gain=2.0, shift=0.1).reason


def test_another_best_token_too_often_fails() -> None:
    assert "best token" in verdict(wrong_tokens=10).reason


def test_a_strong_adapter_may_differ_in_proportion_to_its_effect() -> None:
    assert verdict(shift=9.0, noise=0.25).passed
    assert not verdict(shift=0.5, noise=0.25).passed


def test_in_a_probe_of_few_tokens_one_may_have_another_best_token() -> None:
    one = measured()[0]
    assert one.probe is not None
    probe = ProbeExample(
        token_ids=one.probe.token_ids[:3],
        start=1,
        adapter_logprobs=one.probe.adapter_logprobs[:2],
        base_logprobs=one.probe.base_logprobs[:2],
        adapter_top1=(one.adapter.top1[0] + 1, one.adapter.top1[1]),
    )
    short = Measured(
        Scores(one.adapter.logprobs[:2], one.adapter.top1[:2]),
        Scores(one.base.logprobs[:2], one.base.top1[:2]),
        1,
        probe,
    )
    assert judge([short], LIMITS).passed


def test_without_a_probe_only_effect_and_finiteness_are_asked() -> None:
    bare = [Measured(one.adapter, one.base) for one in measured()]
    found = judge(bare, LIMITS)
    assert found.passed
    assert found.parity["status"] == "not_checked"


def test_infinite_or_missing_scores_are_refused() -> None:
    bad = Measured(Scores((float("nan"),), (1,)), Scores((-1.0,), (1,)))
    assert "not finite" in judge([bad], LIMITS).reason
    assert not judge([], LIMITS).passed


def test_slope_of_nothing_is_zero() -> None:
    assert slope([0.0, 0.0], [1.0, 2.0]) == 0.0
    assert slope([1.0, 2.0], [2.0, 4.0]) == 2.0
