"""LoRA on frozen linear modules, for modules that read the same input computed together.

One group of modules with the input x [N, I]:
    h = x Aᵀ            [N, G·R]   one matmul for all modules of the group (q, k, v: three A's in one)
    y_i = x W_iᵀ + h_i B_iᵀ         B holds the scaling
Backward, with g_i = ∂L/∂y_i:
    u = [g_i B_i]       [N, G·R]
    ∂L/∂x = Σ g_i W_i + u A,   ∂L/∂A = uᵀ x,   ∂L/∂B_i = scaling · g_iᵀ h_i
The gradients are added to the adapter's flat fp32 buffers. Autograd sees one node a group instead of twelve, and no bf16
copies of fp32 weights are made in each pass. Rows of different adapters may share a pass: `Segment` says which is whose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter, Views
from .rows import Segment


@dataclass
class Active:
    """What the patched modules apply at present: `adapters[segment.adapter]` on rows `segment.start:segment.end`.

    Without segments the modules are the plain base. `dropout` (0 is off) acts on the input of A, with `generator`.
    """

    adapters: Sequence[Adapter] = ()
    segments: Sequence[Segment] = ()
    dropout: float = 0.0
    generator: torch.Generator | None = None


@dataclass
class _Group:
    """Linear modules that read one tensor, and the outputs waiting for those that have not asked yet."""

    names: tuple[str, ...]
    linears: tuple[nn.Linear, ...]
    active: Active
    anchor: Tensor
    source: Tensor | None = None
    waiting: dict[int, Tensor] = field(default_factory=dict)

    def output(self, number: int, x: Tensor) -> Tensor:
        """The output of module `number` for `x`; the first module to ask has all of them computed."""
        if self.source is not x or number not in self.waiting:
            outputs = _GroupedLora.apply(self.anchor, x, self, _dropped(x, self.active))
            self.source, self.waiting = x, dict(enumerate(outputs))
        result = self.waiting.pop(number)
        if not self.waiting:
            self.source = None
        return result


class LoraModel:
    """Patches the linear modules of a frozen model in place; `use` says which adapters they apply."""

    def __init__(self, model: nn.Module, groups: Sequence[tuple[str, ...]]) -> None:
        self.active = Active()
        device = next(model.parameters()).device
        self._anchor = torch.zeros((), device=device, requires_grad=True)
        for names in groups:
            linears = tuple(_linear(model, name) for name in names)
            group = _Group(tuple(names), linears, self.active, self._anchor)
            for number, linear in enumerate(linears):
                linear.forward = _forward(group, number)  # type: ignore[method-assign,assignment]

    @contextmanager
    def use(self, active: Active) -> Iterator[None]:
        """Within this context, forward and backward, `active` applies; afterwards the plain base."""
        self._set(active)
        try:
            yield
        finally:
            self._set(Active())

    def _set(self, active: Active) -> None:
        self.active.adapters, self.active.segments = active.adapters, active.segments
        self.active.dropout, self.active.generator = active.dropout, active.generator


def _forward(group: _Group, number: int) -> Callable[[Tensor], Tensor]:
    return lambda x: group.output(number, x)


def _linear(model: nn.Module, name: str) -> nn.Linear:
    module = model.get_submodule(name)
    if not isinstance(module, nn.Linear):
        raise TypeError(f"{name} is a {type(module).__name__}, not a linear module")
    return module


def _dropped(x: Tensor, active: Active) -> Tensor | None:
    """The dropout factors of this call, or None when dropout is off."""
    if not active.dropout or not active.segments or not torch.is_grad_enabled():
        return None
    keep = torch.rand(x.shape, generator=active.generator, device=x.device) >= active.dropout
    return keep.to(x.dtype) / (1 - active.dropout)


class _GroupedLora(torch.autograd.Function):
    """See the module's docstring. `anchor` only makes autograd call backward when x itself needs no gradient."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, group: _Group, factors: Tensor | None) -> tuple[Tensor, ...]:
        flat = x.reshape(-1, x.shape[-1])
        outputs = [nn.functional.linear(flat, linear.weight, linear.bias) for linear in group.linears]
        dropped = flat if factors is None else flat * factors.reshape(flat.shape)
        pieces, parts = [], []
        for segment in group.active.segments:
            views = group.active.adapters[segment.adapter].views.get(group.names)
            if views is None:
                continue
            h = dropped[segment.start : segment.end] @ views.a.T
            for member, b, (begin, end) in zip(views.members, views.b, views.spans, strict=True):
                outputs[member][segment.start : segment.end].addmm_(h[:, begin:end], b.T)
            pieces.append((segment, views))
            parts.append(h)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(flat, dropped, factors, *parts)
        ctx.group, ctx.pieces, ctx.shape = group, pieces, x.shape
        return tuple(output.view(*x.shape[:-1], -1) for output in outputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        flat, dropped, factors, *parts = ctx.saved_tensors
        rows = [None if grad is None else grad.reshape(flat.shape[0], -1) for grad in grads]
        x_grad = _base_grad(ctx.group, rows) if ctx.needs_input_grad[1] else None
        for (segment, views), h in zip(ctx.pieces, parts, strict=True):
            span = slice(segment.start, segment.end)
            u = _lora_grads(views, h, dropped[span], [None if row is None else row[span] for row in rows])
            if x_grad is not None and factors is None:
                x_grad[span].addmm_(u, views.a)
            elif x_grad is not None:
                x_grad[span] += (u @ views.a) * factors.reshape(flat.shape)[span]
        return None, None if x_grad is None else x_grad.view(ctx.shape), None, None


def _base_grad(group: _Group, rows: Sequence[Tensor | None]) -> Tensor | None:
    """Σ g_i W_i over the modules that have a gradient."""
    total: Tensor | None = None
    for linear, grad in zip(group.linears, rows, strict=True):
        if grad is not None:
            total = grad @ linear.weight if total is None else total.addmm_(grad, linear.weight)
    return total


def _lora_grads(views: Views, h: Tensor, x: Tensor, rows: Sequence[Tensor | None]) -> Tensor:
    """Adds ∂A and ∂B of one adapter to its buffers; returns u [n, G·R]."""
    u = torch.zeros_like(h)
    for number, (member, (begin, end)) in enumerate(zip(views.members, views.spans, strict=True)):
        grad = rows[member]
        if grad is not None:
            u[:, begin:end].copy_(grad @ views.b[number])
            views.b_grad[number].add_(grad.T @ h[:, begin:end], alpha=views.scaling[number])
    views.a_grad.add_(u.T @ x)
    return u
