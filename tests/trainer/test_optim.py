from __future__ import annotations

import pytest
import torch
from support.training import config, gradients, items, trainee
from tunedock_trainer.optim import learning_rate
from tunedock_trainer.settings import OptimConfig


def rates(schedule: str, **changes: object) -> list[float]:
    values = {"learning_rate": 1.0, "schedule": schedule, "warmup_steps": 2, "final_ratio": 0.1, **changes}
    run = OptimConfig.model_validate(values)
    return [learning_rate(step, 10, run) for step in range(1, 11)]


def test_the_rate_rises_linearly_and_falls_to_the_final_ratio() -> None:
    for schedule in ("linear", "cosine"):
        curve = rates(schedule)
        assert curve[:2] == [0.5, 1.0]
        assert curve[1:] == sorted(curve[1:], reverse=True)
        assert curve[-1] == pytest.approx(0.1)
    assert rates("linear")[5] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates("constant") == [0.5] + [1.0] * 9
    assert rates("constant", warmup_steps=0) == [1.0] * 10


def test_gradients_are_clipped_to_the_global_norm() -> None:
    run = config(optim=OptimConfig(learning_rate=1e-2, max_grad_norm=0.5))
    one = trainee(run, items(8))
    one.adapter.grads.fill_(1.0)
    norm = one.optimizer.step(0.0)
    assert norm == pytest.approx(one.adapter.params.numel() ** 0.5, rel=1e-3)
    moment = one.optimizer.state()["exp_avg"]
    assert float(moment.norm()) == pytest.approx(0.5 * 0.1, rel=1e-3)


def test_one_step_equals_torch_adamw_on_the_same_gradient() -> None:
    one = trainee(config(optim=OptimConfig(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.0)), items(8))
    reference = torch.nn.Parameter(one.adapter.params.clone())
    gradients(one, one.sampler.batch(0))
    reference.grad = one.adapter.grads.clone()
    one.optimizer.step(1e-2)
    torch.optim.AdamW([reference], lr=1e-2, weight_decay=0.1).step()
    assert torch.allclose(one.adapter.params, reference, atol=1e-7)
    assert not one.adapter.grads.any()
