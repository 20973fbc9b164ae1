"""AdamW on one flat tensor, global clipping and the learning-rate schedules."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .adapter import Adapter
from .settings import OptimConfig


def learning_rate(step: int, total_steps: int, config: OptimConfig) -> float:
    """The rate of optimizer step `step` (from 1): linear warm-up, then linear, cosine or constant to the final ratio."""
    if step <= config.warmup_steps:
        return config.learning_rate * step / config.warmup_steps
    if config.schedule == "constant":
        return config.learning_rate
    done = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
    left = 1 - done if config.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return config.learning_rate * (config.final_ratio + (1 - config.final_ratio) * left)


class Optimizer:
    """AdamW (β 0.9/0.999, ε 1e-8) over an adapter's flat parameters."""

    def __init__(self, adapter: Adapter, config: OptimConfig) -> None:
        self._adapter, self._config = adapter, config
        self._parameter = torch.nn.Parameter(adapter.params)
        self._parameter.grad = adapter.grads
        self._adamw = torch.optim.AdamW(
            [self._parameter], lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )

    def step(self, rate: float) -> float:
        """Clips, steps, clears the gradients and refreshes the compute copy. Returns the norm before clipping."""
        norm = float(self._adapter.grads.norm())
        limit = self._config.max_grad_norm
        if limit and norm > limit:
            self._adapter.grads.mul_(limit / (norm + 1e-6))
        self._adamw.param_groups[0]["lr"] = rate
        self._adamw.step()
        self._adapter.grads.zero_()
        self._adapter.refresh()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Both moments and the step count; empty before the first step."""
        return dict(self._adamw.state.get(self._parameter, {}))

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Takes what `state` gave."""
        if state:
            device = self._parameter.device
            self._adamw.state[self._parameter] = {key: value.to(device) for key, value in state.items()}
