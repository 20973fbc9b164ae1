"""The gated MLP, down(silu(gate(x)) · up(x)), keeping two tensors of its width for backward instead of four."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .recompute import with_recipe

_PARTS = ("gate_proj", "up_proj", "down_proj")


def patch_mlps(model: nn.Module) -> int:
    """Replaces the forward of every MLP that computes exactly what ours does; returns how many."""
    patched = 0
    for module in model.modules():
        if _is_gated(module) and _same(module):
            module.forward = _forward(module)
            patched += 1
    return patched


def _is_gated(module: nn.Module) -> bool:
    takes_rows_alone = len(signature(module.forward).parameters) == 1
    return takes_rows_alone and all(isinstance(getattr(module, part, None), nn.Linear) for part in _PARTS)


def _forward(module: Any) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        gate, up = module.gate_proj(x), module.up_proj(x)
        product = _GatedProduct.apply(gate, up)
        return module.down_proj(with_recipe(product, _product, gate, up))

    return forward


def _same(module: Any) -> bool:
    """Other activations, and what some models do in between, stay theirs."""
    weight = module.gate_proj.weight
    x = torch.randn(4, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
    with torch.no_grad():
        return torch.equal(module(x), _forward(module)(x))


def _product(gate: Tensor, up: Tensor) -> Tensor:
    return F.silu(gate) * up


class _GatedProduct(torch.autograd.Function):
    """silu(gate) · up, rounded where torch's own operators round; backward computes silu(gate) again."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _product(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), grad * F.silu(gate)
